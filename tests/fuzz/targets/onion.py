"""Circuit builds and refreshes at both ends, with fields chosen by the input under the right keys; and the opened cell."""

import random
from typing import Any, Final

import numpy as np

from nyx.crypto.keys import StaticKeys
from nyx.crypto.replay import WINDOW_WORDS
from nyx.errors import RemoteProtocolError
from nyx.kernel import address, kernel
from nyx.onion.build import ClientBuild, HopBuild
from nyx.onion.cell import SEQUENCE_LIMIT, cell_accept, cell_sequence
from nyx.onion.refresh import ClientRefresh, answer_layer, answer_refresh
from nyx.wire.codes import Drop
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE, RECORD_BODY_SIZE, REPLY_BODY_SIZE, WINDOW_BITS
from tests.fuzz.script import Script
from tests.reference import agreement, circuit_refresh
from tests.reference import circuit_build as twin
from tests.reference.layer import layer, tweak

WALL: Final = 1_800_000_000
_RNG: Final = random.Random(31)
_HOP: Final = StaticKeys.generate(_RNG.randbytes)
_TWIN: Final = twin.node(_HOP.public.node_id, _HOP.onion.to_bytes()[:32], _HOP.onion.kem.seed)


class _Seen:
    """What a hop opened; the real table has its own tests."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()

    def seen(self, x: bytes, created: int, wall: int) -> bool:
        assert WALL - 600 <= created <= wall + 120, "only what is in time is remembered"
        self.known.add(x)
        return False


def build_hop(data: bytes) -> bool:
    """Seven cells: silence that leaves no trace, or seven others that are all changed."""
    script, seen = Script(data), _Seen()
    choice = script.number()
    cells = [random.Random(slot).randbytes(CELL_SIZE) for slot in range(BUILD_SLOTS)]
    if choice == 0:
        raw = script.rest()[: BUILD_SLOTS * CELL_SIZE].ljust(BUILD_SLOTS * CELL_SIZE, b"\0")
        cells = [raw[i * CELL_SIZE :][:CELL_SIZE] for i in range(BUILD_SLOTS)]
    else:
        body = script.take(RECORD_BODY_SIZE)
        cells[choice % BUILD_SLOTS], _ = twin.request(_TWIN, random.Random(9).randbytes(32), body, 1 + (choice >> 3 & 1))
    try:
        found = HopBuild.open(cells, _HOP, seen, random.Random(8).randbytes, WALL)
    except RemoteProtocolError:
        assert not seen.known
        return False
    assert len(seen.known) == 1
    assert [len(cell) for cell in found.cells] == [CELL_SIZE] * BUILD_SLOTS
    assert not set(found.cells) & set(cells)
    assert found.next_node_id not in (_HOP.public.node_id, bytes(32))
    assert len(found.answer_layer(found.cells)) == BUILD_SLOTS
    return True


_BUILD: Final = ClientBuild([_HOP.public], 1, _RNG.randbytes, WALL)
_SLOT, _, _MEMORY = twin.hop_opens(_BUILD.cells, _TWIN)


def build_client(data: bytes) -> bool:
    """The answers: a circuit, or an error that a caller can act on, whatever a hop or somebody on the way writes."""
    script = Script(data)
    choice, flip = script.number(), script.number(3)
    cells, keys = twin.hop_answers(_BUILD.cells, _SLOT, _MEMORY, random.Random(7).randbytes(32), script.take(REPLY_BODY_SIZE))
    cells = twin.hop_returns(cells, _MEMORY)
    if choice & 1:
        slot, bit = flip % BUILD_SLOTS, flip // BUILD_SLOTS % (8 * CELL_SIZE)
        cells[slot] = (int.from_bytes(cells[slot], "big") ^ 1 << bit).to_bytes(CELL_SIZE, "big")
    try:
        found = _BUILD.finish(cells)
    except RemoteProtocolError:
        return False
    assert not choice & 1, "a changed cell passed"
    assert (found.hops[0].forward_seed, found.hops[0].ck) == (keys["forward"], keys["ck"])
    return True


_CK: Final = _RNG.randbytes(32)
_BODY: Final = CELL_SIZE - 16


def refresh_hop(data: bytes) -> bool:
    """Seven cells with a request whose fields are the input's, or with none: silence, or seven others that are all changed."""
    script = Script(data)
    choice, raw = script.number(), script.take(_BODY)
    cells = [random.Random(slot).randbytes(CELL_SIZE) for slot in range(BUILD_SLOTS)]
    suite, counter = 1 + (choice >> 3 & 1), choice >> 4
    if choice:
        slot = choice % BUILD_SLOTS
        cells[slot] = agreement.seal(circuit_refresh.seal_key(_CK, 0, counter), bytes([slot]), raw)
    try:
        found = answer_refresh(cells, _CK, suite, range(1, 9), cells_forward=1, cells_backward=2)
    except RemoteProtocolError:
        return False
    assert counter in range(1, 9)
    assert (found.counter, found.epoch) == (counter, int.from_bytes(raw[1184:1188], "big"))
    assert not any(raw[1188:])
    assert [len(cell) for cell in found.cells] == [CELL_SIZE] * BUILD_SLOTS
    assert not set(found.cells) & set(cells)
    assert len(answer_layer(found.cells, _CK, suite, counter)) == BUILD_SLOTS
    return True


_REFRESH: Final = ClientRefresh([_CK], 1, 3, 9, random.Random(32).randbytes)
_PLACE: Final = _REFRESH.slots[0]


def refresh_client(data: bytes) -> bool:
    """The answers of one hop with fields of the input, any cell of which may be changed: keys, or the one error."""
    script = Script(data)
    choice, flip, body = script.number(), script.number(3), script.take(_BODY)
    cells = list(_REFRESH.cells)
    cells[_PLACE] = agreement.seal(circuit_refresh.seal_key(_CK, 1, 3), bytes([_PLACE]), body)
    key = circuit_refresh.layer_key(_CK, 0, 3, 1)
    cells = [layer(cell, 1, key, tweak(0, 3, slot, 0)) for slot, cell in enumerate(cells)]
    cells = circuit_refresh.hop_returns(cells, _CK, 3, 1)
    if choice & 1:
        slot, bit = flip % BUILD_SLOTS, flip // BUILD_SLOTS % (8 * CELL_SIZE)
        cells[slot] = (int.from_bytes(cells[slot], "big") ^ 1 << bit).to_bytes(CELL_SIZE, "big")
    try:
        [found] = _REFRESH.finish(cells)
    except RemoteProtocolError:
        return False
    assert not choice & 1, "a changed cell passed"
    assert not any(body[1104:])
    assert (found.cells_forward, found.cells_backward) == tuple(int.from_bytes(body[at : at + 8], "big") for at in (1088, 1096))
    return True


@kernel("i8", "u1[]", "u8[]", "i8[]", "i8[]")
def _cell(pool: Any, words: Any, commit: Any, out: Any) -> int:
    out[0] = cell_sequence(pool, 0)
    out[1] = cell_accept(words, 0, address(commit), out[0]) if out[0] >= 0 else -1
    return 0


def opened_cell(data: bytes) -> bool:
    """A row of cells: only zeros that are zero and a sequence that is new and near enough pass, each once."""
    words, commit, out, seen = np.zeros(WINDOW_WORDS, np.uint64), np.zeros(1, np.int64), np.zeros(2, np.int64), set()
    for at in range(0, min(len(data), 1024), 16):
        head = data[at : at + 16].ljust(16, b"\0")
        before, largest = (words.tobytes(), int(commit[0])), int(commit[0])
        _cell(np.frombuffer(head, np.uint8).copy(), words, commit, out)
        sequence = int.from_bytes(head[:8], "big")
        assert int(out[0]) == (sequence if head[8:] == bytes(8) and sequence < SEQUENCE_LIMIT else -1)
        if out[1] == Drop.OK:
            assert sequence not in seen
            assert largest - WINDOW_BITS <= sequence < largest + WINDOW_BITS
            seen.add(sequence)
            assert int(commit[0]) == max(largest, sequence + 1)
        else:
            assert (words.tobytes(), int(commit[0])) == before
    return bool(seen)
