"""Slow twin of the layer ratchet, written from docs/protocol.md, "Layer epochs": one direction of one hop.

Keeps every seed it ever had, which the real one must not. Shares no module with nyx.
"""

from tests.reference.agreement import expand
from tests.reference.layer import KEY_SIZES


class Chain:
    """The layer keys of all epochs from a first seed."""

    def __init__(self, seed, suite):
        self.seeds = [seed]
        self.suite = suite

    def seed(self, epoch):
        while len(self.seeds) <= epoch:
            self.seeds.append(expand(self.seeds[-1], b"nyx ratchet", 32))
        return self.seeds[epoch]

    def key(self, epoch):
        return expand(self.seed(epoch), b"nyx layer", KEY_SIZES[self.suite])


class Follower:
    """Which epoch a cell of a parity belongs to, for whoever saw all moves: (epoch, whether it opens)."""

    def __init__(self, gap):
        self.gap = gap
        self.epoch = 0
        self.moved = 0
        self.before_opens = False

    def cell(self, parity, now):
        if parity == self.epoch % 2:
            return self.epoch
        if self.epoch == 0 or now - self.moved >= self.gap:
            self.epoch, self.moved, self.before_opens = self.epoch + 1, now, True
            return self.epoch
        return self.epoch - 1 if self.before_opens else None

    def forget(self, now):
        if now - self.moved >= self.gap:
            self.before_opens = False
