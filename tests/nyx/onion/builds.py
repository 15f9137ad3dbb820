"""What the tests of builds share: seven nodes, their twins, and a build run through them."""

import random

from nyx.crypto.keys import StaticKeys
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA
from nyx.onion.build import ClientBuild, HopBuild
from tests.reference import circuit_build as twin

WALL = 1_800_000_000
SOURCE = random.Random(7)
NODES = [StaticKeys.generate(SOURCE.randbytes) for _ in range(7)]
SUITES = [SUITE_CHACHA, SUITE_AEGIS128L]


class Anything:
    """A set that has seen nothing; most tests are about the rest."""

    def seen(self, x, created, wall):
        return False


def build_for(hops, rng, suite=SUITE_AEGIS128L):
    return ClientBuild([n.public for n in hops], suite, rng.randbytes, WALL)


def hop_opens(cells, node, rng, **named):
    return HopBuild.open(cells, node, Anything(), rng.randbytes, WALL, **named)


def flip(cells, slot, bit):
    changed = bytearray(cells[slot])
    changed[bit // 8] ^= 1 << bit % 8
    return [*cells[:slot], bytes(changed), *cells[slot + 1 :]]


def through(build, nodes, rng, change=None, reach=None):
    """Run a build over all hops; `change(step, cells)` may alter what arrives at step 0..2n-1. Returns results and answers."""
    cells, results = list(build.cells), []
    for step, node in enumerate(nodes):
        if change:
            cells = change(step, cells)
        if reach is not None:
            reach.append(step)
        results.append(hop_opens(cells, node, rng))
        cells = list(results[-1].cells)
    for step, result in enumerate(reversed(results), len(nodes)):
        cells = result.answer_layer(cells)
        if change:
            cells = change(step, cells)
    return results, cells


def keys_of(holders):
    return [(holder.forward_seed, holder.backward_seed, holder.ck) for holder in holders]


def twin_node(keys):
    return twin.node(keys.public.node_id, keys.onion.to_bytes()[:32], keys.onion.kem.seed)
