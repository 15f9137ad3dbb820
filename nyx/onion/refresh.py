"""Circuit refresh: a fresh ML-KEM key for every hop, so that a circuit's keys no longer rest on the relays' onion keys alone.

Place on a packet's way: beside a running circuit, at once after its build and every 10 minutes; cells of kind 3 of the control
channel end here. The form is that of a build: seven slots, one for each hop and the rest random, layered so that each hop finds
its own in plain form, answers in its place and passes all seven through its layer. What a build does by public keys, a refresh
does by the circuit key ck that client and hop share, so only the client of a circuit can refresh it.

    request   sealed: ek 1184 | epoch u32 | 20 zero bytes                                             | tag 16
    answer    sealed: ct 1088 | cells forward u64 | cells backward u64 | 16 + 88 zero bytes           | tag 16

The new keys are in force from the layer epoch that the request names. Seals and layers depend on a counter, so no key seals
twice. Source: docs/protocol.md, "Refresh".
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nyx.crypto import schedule
from nyx.crypto.forget import forget
from nyx.crypto.kem import KEM_SEED_SIZE, Entropy, KemKey, encapsulate
from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.onion.build import apply_slots, equal_slots, shuffled_slots
from nyx.onion.layer import BACKWARD, FORWARD, apply_layer, remove_layer
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE, HOPS_MAX, MLKEM_CT_SIZE, MLKEM_EK_SIZE, SHORT_TAG_SIZE
from nyx.wire.packet import KIND_REFRESH

_REQUEST: Final = struct.Struct(f">{MLKEM_EK_SIZE}sI20s")
_ANSWER: Final = struct.Struct(f">{MLKEM_CT_SIZE}sQQ104s")


@dataclass(frozen=True, slots=True, repr=False)
class Fresh:
    """What a refresh gives for one hop; secret."""

    forward_seed: bytes
    backward_seed: bytes
    ck: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Refreshed:
    """One hop's answer, as the client opens it: keys, and how many cells have come to that hop in each direction."""

    fresh: Fresh
    cells_forward: int
    cells_backward: int


class ClientRefresh:
    """One refresh: send `cells` (slot order, kind 3), give the seven cells that come back to `finish`."""

    def __init__(self, cks: Sequence[bytes], suite: int, counter: int, epoch: int, entropy: Entropy) -> None:
        """`cks` from the first hop to the last. A counter serves once; the keys will be in force from layer epoch `epoch`."""
        if not 0 < len(cks) <= HOPS_MAX:
            raise LocalProtocolError(f"a refresh of {len(cks)} hops")
        self.epoch: Final = epoch
        self._cks, self._suite, self._counter = list(cks), suite, counter
        self.slots: Final = shuffled_slots(entropy)[: len(cks)]  # of the hops' requests; secret
        self._keys = [KemKey(entropy(KEM_SEED_SIZE)) for _ in cks]
        self._layers = [_layers(ck, suite, counter) for ck in cks]
        cells = [bytearray(entropy(CELL_SIZE)) for _ in range(BUILD_SLOTS)]
        for i, (ck, key, slot) in enumerate(zip(cks, self._keys, self.slots, strict=True)):
            body = _REQUEST.pack(key.public, epoch, bytes(20))
            sealing = schedule.refresh_seal(ck, FORWARD, counter)
            cells[slot][:] = schedule.seal(sealing, bytes((slot,)), body)
            forget(sealing)
            for forward, _ in reversed(self._layers[:i]):
                remove_layer(cells[slot], forward, suite, FORWARD, KIND_REFRESH, slot)
        self.cells: list[bytes] = [bytes(cell) for cell in cells]

    def __repr__(self) -> str:
        return f"ClientRefresh(hops={len(self._cks)}, counter={self._counter}, epoch={self.epoch})"

    def finish(self, answers: Sequence[bytes]) -> list[Refreshed]:
        """Every hop's answer. Raises RemoteProtocolError when a slot is not what the hops must have made of it."""
        if len(answers) != BUILD_SLOTS or any(len(cell) != CELL_SIZE for cell in answers):
            raise LocalProtocolError("a refresh is answered by seven cells")
        cells = [bytearray(cell) for cell in answers]
        for slot, cell in enumerate(cells):
            for _, backward in self._layers:
                remove_layer(cell, backward, self._suite, BACKWARD, KIND_REFRESH, slot)
        self._check_spares(cells)
        return [self._open(i, cells[slot], slot) for i, slot in enumerate(self.slots)]

    def forget(self) -> None:
        """It is over, answered or not: the keys that it holds are zeros afterwards."""
        forget(*self._cks, *(key for pair in self._layers for key in pair))

    def _check_spares(self, cells: Sequence[bytearray]) -> None:
        spares = [slot for slot in range(BUILD_SLOTS) if slot not in self.slots]
        expected = [bytearray(self.cells[slot]) for slot in spares]
        for slot, cell in zip(spares, expected, strict=True):
            for forward, _ in self._layers:
                apply_layer(cell, forward, self._suite, FORWARD, KIND_REFRESH, slot)
        if not equal_slots(expected, [cells[slot] for slot in spares]):
            raise RemoteProtocolError("a spare slot of a refresh was changed")

    def _open(self, i: int, cell: bytearray, slot: int) -> Refreshed:
        for forward, _ in reversed(self._layers[i:]):
            remove_layer(cell, forward, self._suite, FORWARD, KIND_REFRESH, slot)
        ck, key = self._cks[i], self._keys[i]
        sealing = schedule.refresh_seal(ck, BACKWARD, self._counter)
        body = schedule.unseal(sealing, bytes((slot,)), bytes(cell))
        forget(sealing)
        ct, forward_cells, backward_cells, zeros = _ANSWER.unpack(body)
        if any(zeros):
            raise RemoteProtocolError("an answer's fields are wrong")
        return Refreshed(_fresh(ck, key.public, ct, key.decapsulate(ct)), forward_cells, backward_cells)


@dataclass(frozen=True, slots=True, repr=False)
class HopRefresh:
    """What a hop makes of a request: `cells` to pass on (the last hop: input of `answer_layer`), keys for `epoch`."""

    counter: int
    epoch: int
    fresh: Fresh
    cells: tuple[bytes, ...]


def answer_refresh(
    cells: Sequence[bytes], ck: bytes, suite: int, counters: Iterable[int], *, cells_forward: int, cells_backward: int
) -> HopRefresh:
    """Open our request among the seven cells, under one of these counters, and answer in its place.

    Raises RemoteProtocolError when none is for us: drop it in silence.
    """
    if len(cells) != BUILD_SLOTS or any(len(cell) != CELL_SIZE for cell in cells):
        raise LocalProtocolError("a refresh has seven cells")
    counter, slot, body = _find(cells, ck, counters)
    ek, epoch, zeros = _REQUEST.unpack(body)
    if any(zeros):
        raise RemoteProtocolError("a request's fields are wrong")
    shared, ct = encapsulate(ek)
    answer = _ANSWER.pack(ct, cells_forward, cells_backward, bytes(104))
    out = [bytearray(cell) for cell in cells]
    sealing, layer = schedule.refresh_seal(ck, BACKWARD, counter), schedule.refresh_layer(ck, FORWARD, counter, suite)
    out[slot][:] = schedule.seal(sealing, bytes((slot,)), answer)
    apply_slots(out, layer, suite, FORWARD, KIND_REFRESH)
    forget(sealing, layer)
    return HopRefresh(counter, epoch, _fresh(ck, ek, ct, shared), tuple(bytes(cell) for cell in out))


def answer_layer(cells: Sequence[bytes], ck: bytes, suite: int, counter: int) -> list[bytes]:
    """The seven cells on their way back, through a hop's layer."""
    found = [bytearray(cell) for cell in cells]
    layer = schedule.refresh_layer(ck, BACKWARD, counter, suite)
    apply_slots(found, layer, suite, BACKWARD, KIND_REFRESH)
    forget(layer)
    return [bytes(cell) for cell in found]


def _layers(ck: bytes, suite: int, counter: int) -> tuple[bytes, bytes]:
    forward = schedule.refresh_layer(ck, FORWARD, counter, suite)
    return forward, schedule.refresh_layer(ck, BACKWARD, counter, suite)


def _fresh(ck: bytes, ek: bytes, ct: bytes, shared: bytes) -> Fresh:
    keys = schedule.RefreshKeys(ck, ek, ct, shared)
    forget(shared)
    return Fresh(keys.forward_seed, keys.backward_seed, keys.ck)


def _find(cells: Sequence[bytes], ck: bytes, counters: Iterable[int]) -> tuple[int, int, bytes]:
    for counter in counters:
        key = schedule.refresh_seal(ck, FORWARD, counter)
        for slot, cell in enumerate(cells):
            try:
                body = schedule.unseal(key, bytes((slot,)), cell)
            except RemoteProtocolError:
                continue
            forget(key)
            return counter, slot, body
        forget(key)
    raise RemoteProtocolError("no request of this refresh is for us")


assert _REQUEST.size == _ANSWER.size == CELL_SIZE - SHORT_TAG_SIZE
