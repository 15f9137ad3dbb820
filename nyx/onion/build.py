"""Circuit builds: seven uniform records, one round trip for any number of hops; the client's side and a hop's.

Place on a packet's way: before a circuit's first cell; build and answer cells of the control channel end here. Of seven slots
each hop owns one, the rest are random bytes. A hop opens its record, writes its answer in its place, and passes all seven
through its build layer; the last hop sends them back, each hop adding its answer layer. The client, who knows every layer,
computes what the spare slots must have become, so a slot changed anywhere is seen.

    request   X 32 | ct 1088 | hint 8 | work 8 | sealed body 72 | tag 16
    answer    Y 32 | sealed body 1176 | tag 16

A hop learns its predecessor (by the link), its successor and its own keys. Clock (`wall`) and entropy are arguments.
Source: docs/protocol.md, "Circuit build".
"""

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from nyx.crypto import schedule
from nyx.crypto.kem import Entropy, encapsulate, x25519, x25519_public
from nyx.crypto.keys import PublicKeys, StaticKeys
from nyx.crypto.suites import LAYER_KEY_SIZES
from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.onion.layer import BACKWARD, FORWARD, apply_layer, remove_layer
from nyx.onion.work import Proof, bits_of
from nyx.wire.geometry import (
    BUILD_SLOTS,
    CELL_SIZE,
    HINT_SIZE,
    HOPS_MAX,
    HOPS_MIN,
    NODE_ID_SIZE,
    RECORD_BODY_SIZE,
    RECORD_CT,
    RECORD_HINT,
    RECORD_SEALED,
    RECORD_WORK,
    RECORD_X,
    REPLY_BODY_SIZE,
    REPLY_SEALED,
    REPLY_Y,
    WORK_SIZE,
    X25519_SIZE,
)  # fmt: skip
from nyx.wire.packet import KIND_ANSWER, KIND_BUILD

VERSION: Final = 1
FLAG_LAST: Final = 1
AGE_MOST: Final = 600  # seconds since a record was made
AHEAD_MOST: Final = 120  # seconds by which its maker's clock may be fast
_NO_NODE: Final = bytes(NODE_ID_SIZE)
_REQUEST: Final = struct.Struct(">BBBBI32sIII20s")  # version, flags, suite, zero, created, next, delay, cells, bytes, zeros
_ANSWER: Final = struct.Struct(">BQQQB")  # status, boot epoch, cell limit, byte limit, effort; then zeros
_ANSWER_ZEROS: Final = bytes(REPLY_BODY_SIZE - _ANSWER.size)

STATUS_ACCEPTED: Final = 0
STATUS_BUSY: Final = 1
STATUS_SUITE: Final = 2
STATUS_LIMITS: Final = 3
STATUS_POLICY: Final = 4
STATUS_EFFORT: Final = 5  # too little proof of work for now


class BuildRefusedError(RemoteProtocolError):
    """A hop answered a build with a status other than "accepted": `hop` counts from 0, `status` is authenticated.

    `effort`: the proof of work that this hop asks now, in bits.
    """

    def __init__(self, hop: int, status: int, effort: int = 0) -> None:
        super().__init__(f"hop {hop + 1} of a build refused (status {status})")
        self.hop = hop
        self.status = status
        self.effort = effort


class Seen(Protocol):
    """The set of X values that this node has opened."""

    def seen(self, x: bytes, created: int, wall: int) -> bool:
        """Whether this X was here before; remembers it if not."""


@lru_cache(maxsize=1024)
def _hint_key(public: PublicKeys) -> bytes:
    return schedule.digest(b"nyx-hint", public.onion_x25519, public.onion_ek)


def _hint(x: bytes, public: PublicKeys) -> bytes:
    return hashlib.blake2b(x, digest_size=HINT_SIZE, key=_hint_key(public)).digest()


def apply_slots(cells: list[bytearray], key: bytes, suite: int, direction: int, kind: int) -> None:
    """A hop's layer over all seven slots."""
    for slot, cell in enumerate(cells):
        apply_layer(cell, key, suite, direction, kind, slot)


# ---------------------------------------------------------------- client


@dataclass(frozen=True, slots=True, repr=False)
class HopLayers:
    """Seeds of the data layers of one hop, as the client holds them; secret."""

    forward_seed: bytes
    backward_seed: bytes
    ck: bytes


@dataclass(frozen=True, slots=True, repr=False)
class ClientCircuit:
    """What a finished build gives: the layers from the first hop to the last."""

    suite: int
    hops: tuple[HopLayers, ...]


@dataclass(frozen=True, slots=True, repr=False)
class _Record:
    """What the client keeps of one hop's record until the answers come."""

    slot: int
    x: bytes
    t0: bytes
    sealed: bytes
    keys: schedule.BuildKeys


class ClientBuild:
    """One build: send `cells` (slot order, kind 1), give the seven answer cells to `finish`."""

    def __init__(self, hops: Sequence[PublicKeys], suite: int, entropy: Entropy, wall: int, proofs: Sequence[Proof] = ()) -> None:
        """`hops` from the first to the last, all different; one layer suite that all of them offer.

        `proofs`: of work, one for each hop; none where no hop asks any.
        """
        if not HOPS_MIN <= len(hops) <= HOPS_MAX or suite not in LAYER_KEY_SIZES:
            raise LocalProtocolError(f"a circuit of {len(hops)} hops with layer suite {suite}")
        if len({hop.node_id for hop in hops}) != len(hops):
            raise LocalProtocolError("a circuit passes each relay once")
        self._suite = suite
        slots = shuffled_slots(entropy)
        ids = [hop.node_id for hop in hops[1:]] + [_NO_NODE]
        proofs = proofs or [Proof(entropy(X25519_SIZE), entropy(WORK_SIZE)) for _ in hops]
        parts = zip(hops, ids, slots[: len(hops)], proofs, strict=True)
        made = [_request(hop, after, slot, suite, wall, proof) for hop, after, slot, proof in parts]
        self._records = [record for record, _ in made]
        cells = [bytearray(entropy(CELL_SIZE)) for _ in range(BUILD_SLOTS)]
        for record, request in made:
            cells[record.slot][:] = request
        self._layers = [record.keys.layers(suite) for record in self._records]
        for i, record in enumerate(self._records):
            for before in range(i - 1, -1, -1):
                remove_layer(cells[record.slot], self._layers[before][0], suite, FORWARD, KIND_BUILD, record.slot)
        self.cells: list[bytes] = [bytes(cell) for cell in cells]

    def __repr__(self) -> str:
        return f"ClientBuild(hops={len(self._records)}, suite={self._suite})"

    def finish(self, answers: Sequence[bytes]) -> ClientCircuit:
        """The circuit's keys. Raises RemoteProtocolError when a slot is not what the hops must have made of it.

        Raises BuildRefusedError when a hop refused. Either way the circuit is to be closed unused.
        """
        if len(answers) != BUILD_SLOTS or any(len(cell) != CELL_SIZE for cell in answers):
            raise LocalProtocolError("a build is answered by seven cells")
        cells = [bytearray(cell) for cell in answers]
        for slot, cell in enumerate(cells):
            for _, answer_layer in self._layers:
                remove_layer(cell, answer_layer, self._suite, BACKWARD, KIND_ANSWER, slot)
        self._check_spares(cells)
        return ClientCircuit(self._suite, tuple(self._open(i, record, cells) for i, record in enumerate(self._records)))

    def _check_spares(self, cells: list[bytearray]) -> None:
        spares = set(range(BUILD_SLOTS)) - {record.slot for record in self._records}
        expected = {slot: bytearray(self.cells[slot]) for slot in spares}
        for slot, cell in expected.items():
            for build_layer, _ in self._layers:
                apply_layer(cell, build_layer, self._suite, FORWARD, KIND_BUILD, slot)
        if not equal_slots(list(expected.values()), [cells[slot] for slot in expected]):
            raise RemoteProtocolError("a spare slot of a build was changed")

    def _open(self, i: int, record: _Record, cells: list[bytearray]) -> HopLayers:
        cell = cells[record.slot]
        for build_layer, _ in reversed(self._layers[i:]):
            remove_layer(cell, build_layer, self._suite, FORWARD, KIND_BUILD, record.slot)
        y, sealed = bytes(cell[REPLY_Y:REPLY_SEALED]), bytes(cell[REPLY_SEALED:])
        t1 = schedule.digest(record.t0, record.sealed, y)
        keys = schedule.CircuitKeys(t1, record.keys.prk0, x25519(record.x, y))
        body = schedule.unseal(keys.answer_seal, y + record.t0, sealed)
        status, *_, effort = _ANSWER.unpack_from(body)
        if body[_ANSWER.size :] != _ANSWER_ZEROS:
            raise RemoteProtocolError(f"the answer of hop {i + 1} of a build breaks a rule")
        if status != STATUS_ACCEPTED:
            raise BuildRefusedError(i, status, effort)
        return HopLayers(keys.forward_seed, keys.backward_seed, keys.ck)


def equal_slots(some: Sequence[bytes | bytearray], others: Sequence[bytes | bytearray]) -> bool:
    """Whether all of these cells are the same, in constant time."""
    same = True
    for one, other in zip(some, others, strict=True):
        same &= hmac.compare_digest(one, other)
    return same


def shuffled_slots(entropy: Entropy) -> list[int]:
    """The seven slots in random order, without bias."""
    left, drawn = list(range(BUILD_SLOTS)), []
    while left:
        value = entropy(1)[0]
        if value < 256 - 256 % len(left):
            drawn.append(left.pop(value % len(left)))
    return drawn


def _request(hop: PublicKeys, after: bytes, slot: int, suite: int, wall: int, proof: Proof) -> tuple[_Record, bytes]:
    x = proof.x
    public = x25519_public(x)
    encapsulated, ct = encapsulate(hop.onion_ek)
    opening = public + ct + _hint(public, hop) + proof.work
    t0 = schedule.build_start(hop.node_id, hop.onion_x25519, hop.onion_ek, opening)
    keys = schedule.BuildKeys(t0, x25519(x, hop.onion_x25519), encapsulated)
    flags = FLAG_LAST if after == _NO_NODE else 0
    body = _REQUEST.pack(VERSION, flags, suite, 0, wall, after, 0, 0, 0, bytes(20))
    sealed = schedule.seal(keys.seal, opening, body)
    return _Record(slot, x, t0, sealed, keys), opening + sealed


# ---------------------------------------------------------------- hop


@dataclass(frozen=True, slots=True, repr=False)
class HopResult:
    """What a hop holds after it opened its record: `cells` to pass on (kind 1; the last hop: input of `answer_layer`)."""

    next_node_id: bytes | None  # None: this is the last hop
    cells: tuple[bytes, ...]
    suite: int
    forward_seed: bytes
    backward_seed: bytes
    ck: bytes
    status: int
    _answer_key: bytes

    @property
    def secrets(self) -> tuple[bytes, bytes, bytes]:
        """What outlives the build: seeds of the data layers, forward and backward, and the circuit key."""
        return self.forward_seed, self.backward_seed, self.ck

    def answer_layer(self, cells: Sequence[bytes]) -> list[bytes]:
        """The seven cells on their way back, through this hop's answer layer."""
        found = [bytearray(cell) for cell in cells]
        apply_slots(found, self._answer_key, self.suite, BACKWARD, KIND_ANSWER)
        return [bytes(cell) for cell in found]


@dataclass(frozen=True, slots=True, repr=False)
class _Opened:
    """A request whose seal opened and whose fields make sense."""

    slot: int
    t0: bytes
    sealed: bytes
    x: bytes
    keys: schedule.BuildKeys
    suite: int
    next: bytes | None
    created: int


class HopBuild:
    """A hop's work on a build."""

    @staticmethod
    def open(
        cells: Sequence[bytes],
        me: StaticKeys,
        seen: Seen,
        entropy: Entropy,
        wall: int,
        *,
        started: int = 0,
        boot_epoch: int = 0,
        predecessor: bytes | None = None,
        decide: Callable[[int, bool], int] = lambda _suite, _last: STATUS_ACCEPTED,
        effort: int = 0,
    ) -> HopResult:
        """Open our record among the seven cells and answer in its place.

        `started`: second in which `seen` was made, empty. `predecessor`: node id of the relay the build came from.
        `decide(suite, last)` gives the status to answer, `effort` is what we ask now.
        Raises RemoteProtocolError: drop the build in silence.
        """
        opened = _open_request(cells, me, wall, started)
        if opened.next in {me.public.node_id, predecessor} and opened.next is not None:
            raise RemoteProtocolError("a build that leads back")
        if seen.seen(opened.x, opened.created, wall):
            raise RemoteProtocolError("a record was repeated")
        status = decide(opened.suite, opened.next is None)
        y = entropy(X25519_SIZE)
        y_public = x25519_public(y)
        t1 = schedule.digest(opened.t0, opened.sealed, y_public)
        keys = schedule.CircuitKeys(t1, opened.keys.prk0, x25519(y, opened.x))
        body = _ANSWER.pack(status, boot_epoch, 0, 0, effort) + _ANSWER_ZEROS
        out = [bytearray(cell) for cell in cells]
        out[opened.slot][:] = y_public + schedule.seal(keys.answer_seal, y_public + opened.t0, body)
        build_layer, answer_layer = opened.keys.layers(opened.suite)
        apply_slots(out, build_layer, opened.suite, FORWARD, KIND_BUILD)
        passed = tuple(bytes(cell) for cell in out)
        return HopResult(opened.next, passed, opened.suite, keys.forward_seed, keys.backward_seed, keys.ck, status, answer_layer)


def offered_work(cells: Sequence[bytes], public: PublicKeys, epochs: Iterable[int]) -> tuple[bytes, int]:
    """X of the record for us among the seven cells, and the bits of its proof of work for the best of these directory epochs.

    Raises RemoteProtocolError when none is for us. Only hashes: it is asked before `HopBuild.open`.
    """
    record = bytes(cells[_find_slot(cells, public)])
    x, work = record[RECORD_X:RECORD_CT], record[RECORD_WORK:RECORD_SEALED]
    return x, max(bits_of(x, work, public.node_id, epoch) for epoch in epochs)


def _open_request(cells: Sequence[bytes], me: StaticKeys, wall: int, started: int) -> _Opened:
    if len(cells) != BUILD_SLOTS or any(len(cell) != CELL_SIZE for cell in cells):
        raise LocalProtocolError("a build has seven cells")
    slot = _find_slot(cells, me.public)
    record = bytes(cells[slot])
    x, ct, opening, sealed = (
        record[RECORD_X:RECORD_CT],
        record[RECORD_CT:RECORD_HINT],
        record[:RECORD_SEALED],
        record[RECORD_SEALED:],
    )
    public = me.public
    t0 = schedule.build_start(public.node_id, public.onion_x25519, public.onion_ek, opening)
    keys = schedule.BuildKeys(t0, me.onion.exchange(x), me.onion.kem.decapsulate(ct))
    body = schedule.unseal(keys.seal, opening, sealed)
    version, flags, suite, zero, created, after, _delay, _cells, _bytes, zeros = _REQUEST.unpack(body)
    if version != VERSION or flags & ~FLAG_LAST or suite not in LAYER_KEY_SIZES or zero or any(zeros):
        raise RemoteProtocolError("a record's fields are wrong")
    if not max(wall - AGE_MOST, started) <= created <= wall + AHEAD_MOST:
        raise RemoteProtocolError("a record is too old, or from the future")
    last = bool(flags & FLAG_LAST)
    if last != (after == _NO_NODE):
        raise RemoteProtocolError("a record's next hop and its flag contradict each other")
    return _Opened(slot, t0, sealed, x, keys, suite, None if last else after, created)


def _find_slot(cells: Sequence[bytes], public: PublicKeys) -> int:
    for slot, cell in enumerate(cells):
        if hmac.compare_digest(_hint(bytes(cell[RECORD_X:RECORD_CT]), public), bytes(cell[RECORD_HINT:RECORD_WORK])):
            return slot
    raise RemoteProtocolError("no record of this build is for us")


assert _REQUEST.size == RECORD_BODY_SIZE
