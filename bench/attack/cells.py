"""Cells that a malicious relay changes, copies, splices and puts in another order, and records that are equal in two slots.

Every attack is made by a relay of a standing circuit on cells that it passes on (`bench.attack.line`), and its neighbour is
honest. What the neighbour does with a changed cell must be what it does with any cell, and the far end must deliver nothing of
it. A cell whose bits were flipped must leave the neighbour with no 16 bytes left of what it would have been.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.attack.line import BACKWARD, FORWARD, Block, Line, Queue, queue_of, replace
from nyx.crypto.kem import Entropy
from nyx.crypto.keys import StaticKeys
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA
from nyx.errors import RemoteProtocolError
from nyx.onion.build import ClientBuild, HopBuild
from nyx.wire.codes import DROP_LABELS, Drop
from nyx.wire.geometry import BUILD_SLOTS, CELL_LEFT_SIZE, CELL_SIZE, PACKET_CELL, PACKET_CIRCUIT
from tests.shards.small_network import SmallNode

BITS: Final = 8 * CELL_SIZE
CHUNK: Final = 400  # cells changed at once: they and their untouched twins fit into one batch


@dataclass
class Found:
    """What became of one kind of attack."""

    attacked: int = 0
    delivered: int = 0  # of what was changed, or a second time
    twins: int = 0  # untouched cells that arrived as they should: the apparatus works
    outcomes: set[str] = field(default_factory=set)  # at the next honest hop, of changed cells
    expected: set[str] = field(default_factory=set)  # of untouched ones, or of any failed cell at an end
    alike: int = 0  # blocks of 16 bytes that the honest hop sent as if nothing had been changed

    @property
    def distinguishable(self) -> int:
        """Outcomes that untouched cells do not have, and blocks that did not change."""
        return len(self.outcomes - self.expected) + self.alike


def outcome(node: SmallNode, before: NDArray[np.int64], ended: int) -> str:
    """What a node did with one batch, as its neighbours and its counters could tell."""
    drops = node.batch.drops - before
    named = [f"{DROP_LABELS[code]}" for code in np.flatnonzero(drops)]
    return "+".join(["passed"] * bool(node.batch.outbox.n) + ["delivered"] * bool(ended) + named)


def forget(node: SmallNode) -> None:
    """Let a hop forget which cells have passed: an untouched twin may then follow."""
    for name, column in node.columns.items():
        if name.startswith("filter_table"):
            column[:] = 0


def mend(node: SmallNode) -> None:
    """Let an end take cells again after a failed one: each is tried as if it were the first."""
    node.columns["circuits"]["bad_cells"] = 0


def flips(hops: int, seed: int, *, share: float = 1.0, suite: int = SUITE_AEGIS128L) -> Found:
    """Single-bit flips of cells on every link of a circuit, both ways: all 9,792, or a random share of them."""
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        line = Line(seed, Path(folder), hops, suite=suite)
        for direction in (FORWARD, BACKWARD):
            for place in range(hops):
                bits = line.random.permutation(BITS)[: max(1, int(share * BITS))]
                for at in range(0, len(bits), CHUNK):
                    _flip(line, direction, place, bits[at : at + CHUNK], found)
    return found


def _bring(line: Line, direction: int, place: int, count: int, circuit: int = 0) -> SmallNode:
    """Fresh cells in the outbox of the node at `place` of the route."""
    route = line.route(direction)
    node = line.start(direction, count, circuit)
    for after in route[1 : place + 1]:
        line.deliver(after, line.leave(node))
        node = after
    return node


def _flip(line: Line, direction: int, place: int, bits: NDArray[np.int64], found: Found) -> None:
    """One flipped bit in each of so many cells that the node at `place` sends; their untouched twins go first."""
    route = line.route(direction)
    attacker = _bring(line, direction, place, len(bits))
    honest, far = route[place + 1], route[-1]
    queue = queue_of(attacker)
    untouched = line.leave(attacker)
    queue.packets[np.arange(len(bits)), PACKET_CELL + bits // 8] ^= (1 << bits % 8).astype(np.uint8)
    replace(attacker, queue)
    changed = line.leave(attacker)
    found.attacked += len(bits)
    before = honest.batch.drops.copy()
    if honest is far:
        found.twins += line.deliver(far, untouched)
        _each_alone(line, far, changed, found)
        return
    line.deliver(honest, untouched)
    found.expected.add(outcome(honest, before, 0))
    plain, untouched = queue_of(honest), line.leave(honest)
    forget(honest)
    before = honest.batch.drops.copy()
    ended = line.deliver(honest, changed)
    found.outcomes.add(outcome(honest, before, ended))
    found.alike += _alike(plain.packets, queue_of(honest).packets)
    changed = line.leave(honest)
    found.twins += line.deliver(far, line.carry(direction, honest, len(route) - 1, untouched))
    _each_alone(line, far, line.carry(direction, honest, len(route) - 1, changed), found)


def _alike(one: Block, other: Block) -> int:
    """Blocks of 16 bytes that two sets of cells have in common, place by place; all of them when a cell is missing."""
    if len(one) != len(other):
        return max(one.size, other.size)
    whole = CELL_SIZE - CELL_SIZE % CELL_LEFT_SIZE
    first, second = (q[:, PACKET_CELL : PACKET_CELL + whole].reshape(-1, CELL_LEFT_SIZE) for q in (one, other))
    return int((first == second).all(axis=1).sum())


def _each_alone(line: Line, far: SmallNode, packets: Block, found: Found) -> None:
    """Cells that must fail, one after the other at the end, each as if it were the first."""
    for place in range(len(packets)):
        before = far.batch.drops.copy()
        ended = line.deliver(far, packets[place : place + 1])
        found.delivered += ended
        if far.batch.drops[Drop.BAD_CELL] - before[Drop.BAD_CELL] != 1:
            found.outcomes.add(outcome(far, before, ended) or "nothing")
        mend(far)


# ---------------------------------------------------------------- splices, copies, orders


def mixtures(hops: int, seed: int, *, count: int = CHUNK // 2) -> dict[str, Found]:
    """Cells of two circuits exchanged, spliced, doubled and re-ordered by each relay of their common path, both ways.

    Beyond three hops two circuits seldom share a path: there all cells are of one circuit, and none are exchanged.
    """
    two = hops <= 3
    found = {name: Found() for name in _CHANGES if two or name != "exchanged"}
    with tempfile.TemporaryDirectory() as folder:
        line = Line(seed, Path(folder), hops, circuits=1 + two)
        for direction in (FORWARD, BACKWARD):
            for place in range(hops):
                for name, one in found.items():
                    _mix(line, direction, place, count, _CHANGES[name], one, fails=name in _FAIL)
    return found


def _exchange(packets: Block) -> Block:
    """Circuit ids of the halves: each cell goes on with another circuit."""
    return _swapped(packets, slice(PACKET_CIRCUIT, PACKET_CELL))


def _splice(packets: Block) -> Block:
    """The left part of each cell goes with the right part of another circuit's."""
    return _swapped(packets, slice(PACKET_CELL, PACKET_CELL + CELL_LEFT_SIZE))


def _swapped(packets: Block, part: slice) -> Block:
    half, changed = len(packets) // 2, packets.copy()
    changed[:half, part], changed[half:, part] = packets[half:, part], packets[:half, part]
    return changed


_CHANGES: Final[dict[str, Callable[[Block], Block]]] = {
    "exchanged": _exchange,
    "spliced": _splice,
    "doubled": lambda packets: np.concatenate([packets, packets]),
    "re-ordered": lambda packets: packets[::-1],
}
_FAIL: Final = ("exchanged", "spliced")


def _mix(
    line: Line, direction: int, place: int, count: int, change: Callable[[Block], Block], found: Found, *, fails: bool
) -> None:
    route = line.route(direction)
    attacker, far = route[place], route[-1]
    queues = []
    for circuit in (0, len(line.rows) - 1):
        _bring(line, direction, place, count, circuit)
        queues.append(queue_of(attacker))
        replace(attacker, Queue(queues[0].packets[:0], queues[0].rows[:0]))
    packets = change(np.concatenate([queue.packets for queue in queues]))
    rows = np.concatenate([queue.rows for queue in queues])
    replace(attacker, Queue(packets, np.resize(rows, len(packets))))
    changed = line.leave(attacker)
    honest = route[place + 1]
    before = honest.batch.drops.copy()
    found.attacked += len(changed)
    if fails:
        arrived = changed if honest is far else _through(line, honest, changed, found, "passed", before)
        if honest is not far:
            arrived = line.carry(direction, honest, len(route) - 1, arrived)
        _each_alone(line, far, arrived, found)
        return
    if honest is far:
        ended = line.deliver(far, changed)
    else:
        extra = "passed+repeated_cell" if len(changed) > 2 * count else "passed"
        passed = _through(line, honest, changed, found, extra, before)
        ended = line.deliver(far, line.carry(direction, honest, len(route) - 1, passed))
    found.twins += min(ended, 2 * count)
    found.delivered += ended - min(ended, 2 * count)


def _through(line: Line, honest: SmallNode, packets: Block, found: Found, expected: str, before: NDArray[np.int64]) -> Block:
    ended = line.deliver(honest, packets)
    found.outcomes.add(outcome(honest, before, ended))
    found.expected.add(expected)
    return line.leave(honest)


# ---------------------------------------------------------------- equal records


class _Fresh:
    """A set of keys of records that has seen none."""

    def seen(self, _x: bytes, _created: int, _wall: int) -> bool:
        """No record was here before."""
        return False


def equal_records(seed: int) -> Found:
    """A build with equal cells in two slots, for every pair of slots, through an honest hop, there and back.

    Colluding neighbours of a hop would know each other's build by cells that are still equal behind it.
    """
    found, wall = Found(), 1_500_000
    entropy = random.Random(seed).randbytes
    hops = [StaticKeys.generate(entropy) for _ in range(2)]
    for suite in (SUITE_AEGIS128L, SUITE_CHACHA):
        for first, second in combinations(range(BUILD_SLOTS), 2):
            cells = list(ClientBuild([keys.public for keys in hops], suite, entropy, wall).cells)
            cells[second] = cells[first]
            if not _has_record(cells, hops[0], entropy, wall):
                cells[first] = cells[second] = entropy(CELL_SIZE)
                cells = _with_record(cells, (first, second), hops, suite, entropy, wall)
            result = HopBuild.open(cells, hops[0], _Fresh(), entropy, wall)
            found.attacked += 1
            for passed in (result.cells, result.answer_layer([cells[first]] * BUILD_SLOTS)):
                found.alike += _equal_pairs(passed)
    return found


def _has_record(cells: Sequence[bytes], keys: StaticKeys, entropy: Entropy, wall: int) -> bool:
    try:
        HopBuild.open(cells, keys, _Fresh(), entropy, wall)
    except RemoteProtocolError:
        return False
    return True


def _with_record(
    cells: Sequence[bytes],
    pair: tuple[int, int],
    hops: Sequence[StaticKeys],
    suite: int,
    entropy: Callable[[int], bytes],
    wall: int,
) -> list[bytes]:
    """Builds anew until the hop's record stands outside the pair, whose cells are then made equal."""
    while True:
        drawn = list(ClientBuild([keys.public for keys in hops], suite, entropy, wall).cells)
        drawn[pair[0]] = drawn[pair[1]] = cells[pair[0]]
        if _has_record(drawn, hops[0], entropy, wall):
            return drawn


def _equal_pairs(cells: Sequence[bytes]) -> int:
    """Blocks of 16 bytes that two slots have in common, place by place."""
    matrix: Any = np.frombuffer(b"".join(cells), np.uint8).reshape(len(cells), CELL_SIZE)
    whole = CELL_SIZE - CELL_SIZE % CELL_LEFT_SIZE
    blocks = matrix[:, :whole].reshape(len(cells), -1, CELL_LEFT_SIZE)
    return sum(int((blocks[a] == blocks[b]).all(axis=1).sum()) for a, b in combinations(range(len(cells)), 2))
