"""Cells and packets that come again: on the wire, from a malicious neighbour, after a worker's death, over generations.

The packets and cells are real ones of a standing circuit (`bench.attack.line`); windows and filters are those that a node has
in its columns, sized for a million cells a second. A copy is accepted when it goes one step further than the first hop that can
know it: past the link window for a packet, past the hop's filter or the end's window for a cell. Fresh cells beside them say
how often a filter takes one for a copy.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.attack.line import FORWARD, Block, Line, Queue, queue_of, replace
from nyx.onion.filter import GENERATION_NS
from nyx.wire.codes import DROP_LABELS
from nyx.wire.geometry import CELL_LEFT_SIZE, PACKET_CELL
from shards.udp import BATCH
from tests.shards.small_network import SECOND, SmallNode

RATE: Final = 1_000_000  # fresh cells a second of the apparatus' clock
BUCKETS: Final = 1 << 22  # 2^24 places a generation, 50 s at a third of a million cells a second
KILLS: Final = 5


@dataclass
class Found:
    """Copies sent and accepted, the counters under which they were dropped, and fresh cells taken for copies."""

    sent: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    fresh: int = 0
    dropped_fresh: int = 0

    @property
    def false_drops(self) -> float:
        """Share of fresh cells that were dropped."""
        return self.dropped_fresh / self.fresh if self.fresh else 0.0

    def count(self, kind: str, sent: int, accepted: int) -> None:
        """Add to one kind."""
        self.sent[kind] = self.sent.get(kind, 0) + sent
        self.accepted[kind] = self.accepted.get(kind, 0) + accepted


def replays(total: int, seed: int, *, buckets: int = BUCKETS) -> Found:
    """So many copies in all, and as many fresh cells."""
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        line = Line(seed, Path(folder), 3, buckets=buckets)
        for node in line.nodes:
            node.batch.drops[:] = 0
        _on_the_wire(line, total * 3 // 10, found)
        _from_a_neighbour(line, total * 3 // 10, found)
        _after_deaths(line, total * 2 // 10, found)
        _over_generations(line, total * 2 // 10, found)
        for node in line.nodes:
            _name(found, node.batch.drops)
        _fresh(line, total, found)
    return found


def _name(found: Found, drops: Any) -> None:
    for code in np.flatnonzero(drops):
        found.drops[DROP_LABELS[code]] = found.drops.get(DROP_LABELS[code], 0) + int(drops[code])


def _accepted(line: Line, node: SmallNode, block: Block) -> int:
    """How many packets of a block a node passed on or delivered; what it passed on is thrown away."""
    return line.deliver(node, block) + len(line.leave(node))


def _on_the_wire(line: Line, total: int, found: Found) -> None:
    """An outsider repeats the packets that a relay got from its neighbour."""
    line.start(FORWARD, BATCH)
    packets = line.leave(line.nodes[0])
    assert _accepted(line, line.nodes[1], packets) == BATCH
    for _ in range(_rounds(total)):
        found.count("packets on the wire", BATCH, _accepted(line, line.nodes[1], packets))


def _rounds(total: int) -> int:
    return max(1, -(-total // BATCH))


def _cells_of(line: Line) -> Queue:
    """Fresh cells, as the first relay is about to pass them on."""
    line.start(FORWARD, BATCH)
    line.deliver(line.nodes[1], line.leave(line.nodes[0]))
    return queue_of(line.nodes[1])


def _again(line: Line, cells: Queue) -> Block:
    """The first relay sends these cells, once more, under new numbers."""
    replace(line.nodes[1], cells)
    return line.leave(line.nodes[1])


def _from_a_neighbour(line: Line, total: int, found: Found) -> None:
    """A malicious relay repeats the cells of a circuit, each time under a new and valid link seal."""
    cells = _cells_of(line)
    assert _accepted(line, line.nodes[2], _again(line, cells)) == BATCH
    for _ in range(_rounds(total)):
        found.count("cells of a malicious neighbour", BATCH, _accepted(line, line.nodes[2], _again(line, cells)))


def _after_deaths(line: Line, total: int, found: Found) -> None:
    """Both, after the worker was killed and the next life took over its memory."""
    line.start(FORWARD, BATCH)
    packets = line.leave(line.nodes[0])
    line.deliver(line.nodes[1], packets)
    cells, victim = queue_of(line.nodes[1]), line.nodes[2]
    assert _accepted(line, victim, _again(line, cells)) == BATCH
    for _ in range(KILLS):
        for node in line.nodes[1:3]:
            _kill(line, node, found)
        for _ in range(_rounds(total // (2 * KILLS))):
            found.count("packets after a kill", BATCH, _accepted(line, line.nodes[1], packets))
            found.count("cells after a kill", BATCH, _accepted(line, victim, _again(line, cells)))


def _kill(line: Line, node: SmallNode, found: Found) -> None:
    """A new life on the same memory; what the last one counted is kept."""
    _name(found, node.batch.drops)
    node.restart()
    line.wire(node)


def _over_generations(line: Line, total: int, found: Found) -> None:
    """The relay forgets after two generations; whatever it lets through then, the end has seen. Nothing is delivered twice."""
    cells = _cells_of(line)
    far = line.nodes[-1]
    sent = _again(line, cells)
    line.deliver(line.nodes[2], sent)
    assert line.deliver(far, line.leave(line.nodes[2])) == BATCH
    steps = 8
    for _ in range(steps):
        line.net.now += GENERATION_NS // 2
        for _ in range(_rounds(total // steps)):
            line.deliver(line.nodes[2], _again(line, cells))
            found.count("cells over generations, at the end", BATCH, line.deliver(far, line.leave(line.nodes[2])))


def _fresh(line: Line, total: int, found: Found) -> None:
    """Cells that no hop has seen, on a circuit that stands: they differ in the bytes by which a hop knows a cell again."""
    cells, victim = _cells_of(line), line.nodes[2]
    replace(line.nodes[1], Queue(cells.packets[:0], cells.rows[:0]))
    for _ in range(_rounds(total)):
        left = line.random.integers(0, 256, (BATCH, CELL_LEFT_SIZE), np.uint8)
        cells.packets[:, PACKET_CELL : PACKET_CELL + CELL_LEFT_SIZE] = left
        line.net.now += BATCH * SECOND // RATE
        passed = _accepted(line, victim, _again(line, cells))
        found.fresh += BATCH
        found.dropped_fresh += BATCH - passed
