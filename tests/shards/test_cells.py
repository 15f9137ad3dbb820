"""Cells through the worker's kernels: client, three relays, and back, with the keys of four different nodes."""

import numpy as np
import pytest

from nyx.columns import Columns, allocate
from nyx.crypto.scratch import new_scratch
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA
from nyx.link.session import SESSION_LIVE, session_columns
from nyx.onion.filter import filter_columns, start_filter
from nyx.onion.ratchet import begin_chain
from nyx.wire.codes import Drop
from nyx.wire.geometry import FRAMES_SIZE, PACKET_CELL, PACKET_CIRCUIT, PACKET_FRAMES, PACKET_SIZE, PACKET_TYPE
from shards.kernels.cells import COUNT_DONE, COUNT_ENDED, COUNT_MOVED, COUNT_OUT, process_cells, wrap_cells
from shards.kernels.epochs import forget_epochs, move_circuits
from shards.tables import (
    BACK,
    FORTH,
    LIVE,
    ROLE_CLIENT,
    ROLE_LAST,
    ROLE_RELAY,
    circuit_columns,
    circuit_table,
)

SECOND = 1_000_000_000
GAP = 15_000  # ms


class Node:
    """The columns of one worker, and its kernels over a shared pool of packets."""

    def __init__(self, rng, pool):
        self.columns: Columns = allocate([*session_columns(4), *circuit_columns(4), *filter_columns(1 << 10)])
        start_filter(self.columns, rng.randbytes)
        self.columns["sessions"]["state"][:2] = SESSION_LIVE
        self.columns["sessions"]["link"][:2] = (5, 6)
        self.pool = pool
        self.drops = np.zeros(len(Drop), np.int64)
        self.out_slots = np.zeros(64, np.int64)
        self.out_rows = np.zeros(64, np.int64)
        self.frames, self.connections, self.sequences = (np.zeros(64, np.int64) for _ in range(3))
        self.done, self.counts = np.zeros(64, np.int64), np.zeros(8, np.int64)

    def circuit(self, role, suite, seeds, back_id, forth_id):
        row = self.columns["circuits"][1]
        row["role"], row["suite"], row["hops"] = role, suite, len(seeds)
        row["back_session"], row["back_id"] = (1, back_id) if role != ROLE_CLIENT else (0, 0)
        row["forth_session"], row["forth_id"] = (2, forth_id) if role != ROLE_LAST else (0, 0)
        row["connection"] = 3
        row["keys"] = 1 + (4 if role == ROLE_CLIENT else 1)
        for hop, pair in enumerate(seeds):
            for direction, seed in zip((FORTH, BACK), pair, strict=True):
                begin_chain(self.columns["layer_keys"], int(row["keys"]) - 1 + hop, direction, bytes(bytearray(seed)), suite)
        row["state"] = LIVE
        self.table = circuit_table(self.columns, 12345)

    def process(self, slots, arrived_on, now=SECOND):
        slots = np.array(slots, np.int64)
        rows, cells = np.full(len(slots), arrived_on, np.int64), np.arange(len(slots))
        c, t = self.columns, self.table
        process_cells(
            self.pool, slots, rows, cells, len(slots), now, GAP, c["sessions"], t.keys, t.values, t.multiplier, c["circuits"],
            c["layer_epochs"], c["layer_keys"], c["cell_windows"], c["filter"], c["filter_table"], new_scratch(),
            np.zeros(len(slots), np.int64), np.zeros(len(slots), np.int64), self.out_slots, self.out_rows, 0,
            self.frames, self.connections, self.sequences, self.done, self.counts, self.drops,
        )  # fmt: skip
        return int(self.counts[COUNT_OUT]), int(self.counts[COUNT_ENDED]), int(self.counts[COUNT_DONE])

    def wrap(self, slots):
        circuit_of = np.array([0, 0, 2], np.int64)
        c, rows = self.columns, np.zeros(len(slots), np.int64)
        connections = np.full(len(slots), 2, np.int64)
        wrap_cells(
            self.pool, np.array(slots, np.int64), connections, len(slots), circuit_of, c["circuits"], c["layer_epochs"],
            c["layer_keys"], new_scratch(), SECOND, rows,
        )  # fmt: skip
        return rows


@pytest.fixture(params=[SUITE_AEGIS128L, SUITE_CHACHA], ids=["aegis", "chacha"])
def chain(request, rng):
    """A client and three hops; circuit ids 101, 102, 103 on the links between them."""
    suite = request.param
    pool = np.zeros(8 * PACKET_SIZE, np.uint8)
    keys = [(rng.randbytes(32), rng.randbytes(32)) for _ in range(3)]
    nodes = [Node(rng, pool) for _ in range(4)]
    nodes[0].circuit(ROLE_CLIENT, suite, keys, 0, 101)
    nodes[1].circuit(ROLE_RELAY, suite, keys[:1], 101, 102)
    nodes[2].circuit(ROLE_RELAY, suite, keys[1:2], 102, 103)
    nodes[3].circuit(ROLE_LAST, suite, keys[2:3], 103, 0)
    return nodes


def cell(node, slot, sequence, rng):
    frames = rng.randbytes(FRAMES_SIZE)
    at = slot * PACKET_SIZE + PACKET_CELL
    node.pool[at : at + 16 + FRAMES_SIZE] = np.frombuffer(sequence.to_bytes(8, "big") + bytes(8) + frames, np.uint8)
    return frames


def frames_at(node, k=0):
    at = int(node.frames[k])
    return node.pool[at : at + FRAMES_SIZE].tobytes()


def forward(nodes, slots):
    assert list(nodes[0].wrap(slots)) == [1] * len(slots)
    for node in nodes[1:3]:
        assert node.process(slots, 0) == (len(slots), 0, 0)
        assert list(node.out_rows[: len(slots)]) == [1] * len(slots)
    return nodes[3].process(slots, 0)


def test_cells_cross_three_hops_and_come_back(chain, rng):
    sent = [cell(chain[0], slot, slot, rng) for slot in range(4)]
    plain = bytes(chain[0].pool)
    assert forward(chain, range(4)) == (0, 4, 4)
    assert [frames_at(chain[3], k) for k in range(4)] == sent
    assert list(chain[3].sequences[:4]) == [0, 1, 2, 3]
    assert list(chain[3].connections[:4]) == [2] * 4
    answer = cell(chain[3], 0, 9, rng)
    assert list(chain[3].wrap([0])) == [0]
    assert answer not in bytes(chain[3].pool)
    for node in (chain[2], chain[1]):
        assert node.process([0], 1) == (1, 0, 0)
        assert node.out_rows[0] == 0
    assert chain[0].process([0], 1) == (0, 1, 1)
    assert frames_at(chain[0]) == answer
    assert int(chain[0].sequences[0]) == 9
    assert plain != bytes(chain[0].pool)


def test_the_circuit_id_changes_at_every_hop(chain, rng):
    cell(chain[0], 0, 0, rng)
    seen = []
    chain[0].wrap([0])
    for node in chain[1:3]:
        seen.append(bytes(chain[0].pool[PACKET_CIRCUIT : PACKET_CIRCUIT + 4]))
        node.process([0], 0)
    seen.append(bytes(chain[0].pool[PACKET_CIRCUIT : PACKET_CIRCUIT + 4]))
    assert [int.from_bytes(s, "big") for s in seen] == [101, 102, 103]


@pytest.mark.parametrize("hop", [1, 2, 3])
def test_a_flipped_bit_at_any_hop_delivers_nothing(chain, rng, hop):
    for trial in range(24):
        cell(chain[0], 0, trial, rng)
        chain[0].wrap([0])
        result = (0, 0, 0)
        for at, node in enumerate(chain[1:], 1):
            if at == hop:
                bit = rng.randrange(1224 * 8)
                chain[0].pool[PACKET_CELL + bit // 8] ^= 1 << bit % 8
            result = node.process([0], 0)
        assert result == (0, 0, 1)
        assert chain[3].columns["circuits"][1]["bad_cells"] == 1
        chain[3].columns["circuits"][1]["bad_cells"] = 0
    assert chain[3].drops[Drop.BAD_CELL] == 24


def test_nothing_is_released_after_the_first_failed_cell(chain, rng):
    for slot in range(3):
        cell(chain[0], slot, slot, rng)
    chain[0].wrap(range(3))
    for node in chain[1:3]:
        node.process(range(3), 0)
    chain[3].pool[PACKET_SIZE + PACKET_CELL + 700] ^= 1
    assert chain[3].process(range(3), 0) == (0, 1, 3)
    assert list(chain[3].sequences[:1]) == [0]
    assert chain[3].process([2], 0) == (0, 0, 1)


def test_a_connection_without_a_circuit_borrows_no_keys(chain, rng):
    """Its row number would be -1: the last row's circuit, which is somebody else's."""
    node = chain[0]
    node.columns["circuits"][3] = node.columns["circuits"][1]
    frames = cell(node, 0, 0, rng)
    rows = np.zeros(1, np.int64)
    c = node.columns
    wrap_cells(
        node.pool, np.zeros(1, np.int64), np.zeros(1, np.int64), 1, np.zeros(3, np.int64), c["circuits"], c["layer_epochs"],
        c["layer_keys"], new_scratch(), SECOND, rows,
    )  # fmt: skip
    assert list(rows) == [-1]
    assert node.pool[PACKET_FRAMES : PACKET_FRAMES + FRAMES_SIZE].tobytes() == frames
    assert c["circuits"][3]["cells_forth"] == 0


def test_a_repeated_cell_stops_at_the_first_hop(chain, rng):
    cell(chain[0], 0, 0, rng)
    chain[0].wrap([0])
    copy = chain[0].pool[:PACKET_SIZE].copy()
    assert chain[1].process([0], 0) == (1, 0, 0)
    chain[0].pool[:PACKET_SIZE] = copy
    assert chain[1].process([0], 0) == (0, 0, 1)
    assert chain[1].drops[Drop.REPEATED_CELL] == 1


def test_a_repeated_sequence_is_dropped_at_the_end(chain, rng):
    for expected in ((0, 1, 1), (0, 0, 1)):
        cell(chain[0], 0, 77, rng)
        assert forward(chain, [0]) == expected
    assert chain[3].drops[Drop.REPLAYED] == 1
    assert chain[3].columns["circuits"][1]["bad_cells"] == 0


def test_an_unknown_circuit_and_a_dead_next_session_are_dropped(chain, rng):
    cell(chain[0], 0, 0, rng)
    chain[0].wrap([0])
    chain[0].pool[PACKET_CIRCUIT + 3] ^= 1
    assert chain[1].process([0], 0) == (0, 0, 1)
    assert chain[1].drops[Drop.UNKNOWN_CIRCUIT] == 1
    chain[0].pool[PACKET_CIRCUIT + 3] ^= 1
    chain[1].columns["sessions"]["state"][1] = 0
    assert chain[1].process([0], 0) == (0, 0, 1)
    assert chain[1].drops[Drop.NO_ROUTE] == 1


def test_a_circuit_id_of_another_link_is_unknown(chain, rng):
    cell(chain[0], 0, 0, rng)
    chain[0].wrap([0])
    assert chain[1].process([0], 1) == (0, 0, 1)
    assert chain[1].drops[Drop.UNKNOWN_CIRCUIT] == 1


def advance(node, direction, epochs, now):
    """An originator begins its next epochs."""
    c = node.columns
    for _ in range(epochs):
        assert move_circuits(c["circuits"], c["layer_epochs"], c["layer_keys"], np.array([1]), 1, now, new_scratch()) == 0
    return int(c["layer_epochs"]["now"][2 + direction]) >> 40


def epoch_of(node, direction):
    return int(node.columns["layer_epochs"]["now"][2 + direction]) >> 40


def test_every_epoch_has_its_parity_and_every_hop_follows(chain, rng):
    now = SECOND
    for epoch in range(1, 6):
        now += 30 * SECOND
        for originator, direction, way in ((0, FORTH, (1, 2, 3)), (3, BACK, (2, 1, 0))):
            assert advance(chain[originator], direction, 1, now) == epoch
            frames = cell(chain[originator], 0, epoch, rng)
            chain[originator].wrap([0])
            result = (0, 0, 0)
            for node in way:
                assert int(chain[0].pool[PACKET_TYPE]) == 0x20 * (epoch % 2)
                chain[node].counts[:] = 0
                result = chain[node].process([0], int(direction == BACK), now)
                assert int(chain[node].counts[COUNT_MOVED]) == 1
                assert epoch_of(chain[node], direction) == epoch
            assert result == (0, 1, 1)
            assert frames_at(chain[way[-1]]) == frames


def test_cells_that_were_overtaken_by_a_new_epoch_still_open(chain, rng):
    old, new = (cell(chain[0], slot, slot, rng) for slot in range(2))
    chain[0].wrap([0])
    advance(chain[0], FORTH, 1, SECOND)
    chain[0].wrap([1])
    for slot, frames in ((1, new), (0, old)):
        for node in chain[1:3]:
            assert node.process([slot], 0, 30 * SECOND) == (1, 0, 0)
        assert chain[3].process([slot], 0, 30 * SECOND) == (0, 1, 1)
        assert frames_at(chain[3]) == frames
    assert [epoch_of(node, FORTH) for node in chain] == [1] * 4


def test_a_cell_of_an_epoch_whose_keys_are_gone_is_dropped_and_is_no_failed_cell(chain, rng):
    cell(chain[0], 0, 0, rng)
    chain[0].wrap([0])
    for node in chain[1:]:
        node.columns["layer_epochs"]["now"][2 + FORTH] = 1 << 40 | 29_000
        node.columns["layer_epochs"]["kept"][2 + FORTH] = 1
    copy = chain[0].pool[:PACKET_SIZE].copy()
    for hop, node in enumerate(chain[1:], 1):
        chain[0].pool[PACKET_CIRCUIT + 3] = 100 + hop
        assert node.process([0], 0, 30 * SECOND) == (0, 0, 1)
        assert node.drops[Drop.OLD_EPOCH] == 1
        assert node.columns["circuits"][1]["bad_cells"] == 0
        chain[0].pool[:PACKET_SIZE] = copy


@pytest.mark.parametrize("late", [1, 29, 31, 46, 48, 51, 60, 75, 100, 130, 200])
def test_a_relay_never_passes_a_repeated_cell_on_as_it_did_before(chain, rng, late):
    """Whatever is repeated is dropped, or comes out under other keys: a colluder behind the hop cannot know it again."""
    relay, start = chain[1], 7 * SECOND
    cell(chain[0], 0, 0, rng)
    chain[0].wrap([0])
    again = chain[0].pool[:PACKET_SIZE].copy()
    assert relay.process([0], 0, start) == (1, 0, 0)
    first = bytes(chain[0].pool[PACKET_CELL:PACKET_SIZE])
    moves = [start + SECOND * at for at in (32, 64, 96, 128, 160, 192)]
    for sequence, now in enumerate(moves, 1):
        if now > start + late * SECOND:
            break
        advance(chain[0], FORTH, 1, now)
        cell(chain[0], 0, sequence, rng)
        chain[0].wrap([0])
        assert relay.process([0], 0, now) == (1, 0, 0)
    now = start + late * SECOND
    forget_epochs(relay.columns["circuits"], relay.columns["layer_epochs"], relay.columns["layer_keys"], now, GAP)
    chain[0].pool[:PACKET_SIZE] = again
    passed, _, _ = relay.process([0], 0, now)
    assert not passed or bytes(chain[0].pool[PACKET_CELL:PACKET_SIZE]) != first


assert PACKET_FRAMES == PACKET_CELL + 16
