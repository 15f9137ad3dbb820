"""The link handshake: one packet each way, hybrid X25519 + ML-KEM-768, masked, silent to strangers and to replays.

Place on a packet's way: before all others; it makes the keys of a link's four sessions. The responder meets a packet of an
unknown CID in this order, cheap before dear, and the caller counts what falls out at each stage:

    length -> check_mac1 -> ReplayTable.seen -> respond: mask, header, DH and KEM, seal, fields, time, version, suite, relay

Whatever fails is dropped without a word; `HandshakeError` names the counter, never anything secret. A retry is a wholly new
Initiator. The answer travels under the initiator's CID of session 0, which the initiation carried sealed.

What it gives: the responder is authenticated by its answer, an initiating relay only by its first packet under ck2. Forward
secrecy is classical from ck2 on and post-quantum from ck3 on (nyx/link/upgrade.py); no circuit is built over a link before.
Source: docs/protocol.md, "Link handshake". Clock (`wall`, Unix seconds) and entropy are arguments.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from nyx.crypto import schedule
from nyx.crypto.kem import Entropy, encapsulate, x25519, x25519_public
from nyx.crypto.keys import PublicKeys, StaticKeys
from nyx.crypto.suites import LINK_KEY_SIZES, LINK_ORDER
from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.link.cookie import cookie_cid, mac2, open_cookie
from nyx.wire.codes import Drop
from nyx.wire.geometry import (
    ANSWER_BODY_SIZE,
    ANSWER_CT,
    ANSWER_E,
    ANSWER_SEALED,
    CID_SIZE,
    HEADER_SIZE,
    INIT_BODY_SIZE,
    INIT_CT,
    INIT_E,
    INIT_MAC1,
    INIT_MAC2,
    INIT_SEALED,
    MAC_SIZE,
    MASK_START,
    MLKEM_CT_SIZE,
    PACKET_SIZE,
    SEAL_TAG_SIZE,
    SESSIONS_PER_LINK,
    X25519_SIZE,
)  # fmt: skip

VERSION: Final = 1
FLAG_RELAY: Final = 1  # the initiator is a relay and names its static key
MAC_SLOT: Final = 120  # seconds a mac1 key lives
CLOCK_SKEW: Final = 120  # seconds between the two clocks
INITIATION_HEADER: Final = bytes((0x80, 0)) + (PACKET_SIZE - HEADER_SIZE).to_bytes(2, "big")
ANSWER_HEADER: Final = bytes((0x90, 0)) + (PACKET_SIZE - HEADER_SIZE).to_bytes(2, "big")
_INITIATION_BODY: Final = struct.Struct(">HHHHII48s32s")  # versions, suites, flags, zero, time, zero, CIDs, static X25519
_ANSWER_BODY: Final = struct.Struct(">HBB48sQI64s")  # version, suite, flags, CIDs, time, receive window, zeros
_NO_STATIC: Final = bytes(X25519_SIZE)


class HandshakeError(RemoteProtocolError):
    """A handshake packet to be dropped in silence; `drop` is its counter."""

    def __init__(self, message: str, drop: Drop = Drop.BAD_HANDSHAKE) -> None:
        super().__init__(message)
        self.drop = drop


@dataclass(frozen=True, slots=True, repr=False)
class SessionKeys:
    """One session's keys as one end uses them: AEAD keys of 16 or 32 bytes, mask keys of 16; all secret."""

    send_key: bytes
    receive_key: bytes
    send_mask: bytes
    receive_mask: bytes


@dataclass(frozen=True, slots=True)
class LinkSecrets:
    """What both ends hold after a handshake (generation 0) or after each upgrade of it (1, 2, ...).

    `local_cids[i]` names what arrives here on session i, `peer_cids[i]` what leaves. `peer` is None for a client.
    `receive_window` is the peer's, in packets; 0 when it has not said. `clock` is the peer's wall clock, Unix seconds.
    """

    initiator: bool
    suite: int
    peer: PublicKeys | None
    local_cids: tuple[bytes, ...]
    peer_cids: tuple[bytes, ...]
    ck: bytes
    h2: bytes
    receive_window: int
    clock: int
    generation: int = 0

    def __repr__(self) -> str:
        role = "initiator" if self.initiator else "responder"
        return f"LinkSecrets({role}, suite={self.suite}, peer={self.peer!r}, generation={self.generation})"

    def session_keys(self, index: int) -> SessionKeys:
        """The keys of session `index` (0-3); the initiator sends with direction 0."""
        mine, theirs = (0, 1) if self.initiator else (1, 0)
        return SessionKeys(
            schedule.session_key(self.ck, self.suite, index, mine),
            schedule.session_key(self.ck, self.suite, index, theirs),
            schedule.mask_key(self.ck, index, mine),
            schedule.mask_key(self.ck, index, theirs),
        )

    def upgrade(self, secret: bytes, local_cids: Sequence[bytes], peer_cids: Sequence[bytes]) -> "LinkSecrets":
        """The next generation: ck' = Extract(ck, K_e || h2), under new CIDs."""
        ck = schedule.extract(self.ck, secret, self.h2)
        return replace(
            self, ck=ck, local_cids=_checked_cids(local_cids), peer_cids=_checked_cids(peer_cids), generation=self.generation + 1
        )


@dataclass(frozen=True, slots=True)
class Response:
    """The responder's answer, 1280 bytes to send to where the initiation came from, and its secrets."""

    packet: bytes = field(repr=False)
    secrets: LinkSecrets


# ---------------------------------------------------------------- mask, mac1


@lru_cache(maxsize=1024)
def _mask_key(public: PublicKeys, direction: int) -> bytes:
    return schedule.digest(b"nyx-mask", public.link_x25519, public.link_ek, bytes((direction,)))


@lru_cache(maxsize=1024)
def _mac1_key(public: PublicKeys, slot: int) -> bytes:
    return schedule.digest(b"nyx-mac1", public.link_x25519, public.link_ek, slot.to_bytes(8, "big"))


def _masked(packet: bytes, end: int, public: PublicKeys, direction: int) -> bytes:
    """The packet with bytes 12 to `end` XORed with the handshake mask; its own inverse."""
    counter_and_nonce = bytes(4) + packet[:CID_SIZE]
    stream = Cipher(ChaCha20(_mask_key(public, direction), counter_and_nonce), mode=None).encryptor()
    return packet[:MASK_START] + stream.update(packet[MASK_START:end]) + packet[end:]


def _mac1(packet: bytes, public: PublicKeys, slot: int) -> bytes:
    return hashlib.blake2b(packet[:INIT_MAC1], digest_size=MAC_SIZE, key=_mac1_key(public, slot)).digest()


def mac1_keys(public: PublicKeys, wall: int) -> bytes:
    """The keys of mac1 that are in force, joined: of this time slot and of its neighbours, the likeliest first."""
    slot = wall // MAC_SLOT
    return b"".join(_mac1_key(public, near) for near in (slot, slot - 1, slot + 1))


def check_mac1(packet: bytes, public: PublicKeys, wall: int) -> bool:
    """Whether a packet of a stranger can be an initiation to us: length and mac1, made for this time slot or a neighbour's.

    Public keys make this MAC: it turns away junk and scans, it proves nobody's identity.
    """
    if len(packet) != PACKET_SIZE:
        return False
    slot = wall // MAC_SLOT
    claimed = packet[INIT_MAC1:INIT_MAC2]
    return any(hmac.compare_digest(_mac1(packet, public, near), claimed) for near in (slot, slot - 1, slot + 1))


# ---------------------------------------------------------------- fields


def _checked_cids(cids: Sequence[bytes]) -> tuple[bytes, ...]:
    found = tuple(bytes(c) for c in cids)
    if len(found) != SESSIONS_PER_LINK or len(set(found)) != len(found) or any(len(c) != CID_SIZE for c in found):
        raise LocalProtocolError(f"a link has {SESSIONS_PER_LINK} different CIDs of {CID_SIZE} bytes")
    return found


def _split_cids(joined: bytes) -> tuple[bytes, ...]:
    cids = tuple(joined[i : i + CID_SIZE] for i in range(0, len(joined), CID_SIZE))
    if len(set(cids)) != len(cids):
        raise HandshakeError("two sessions have one CID")
    return cids


def _mask_of(ids: Iterable[int]) -> int:
    return sum(1 << i for i in set(ids))


def _checked_suites(suites: Sequence[int]) -> tuple[int, ...]:
    found = tuple(suites)
    if not found or any(suite not in LINK_KEY_SIZES for suite in found):
        raise LocalProtocolError(f"unknown suites in {found}; known are {sorted(LINK_KEY_SIZES)}")
    return found


def _choose(offered: int, suites: Sequence[int]) -> int:
    """The fastest suite that both ends have."""
    common = [suite for suite in suites if offered >> suite & 1]
    if not common:
        raise HandshakeError("no common suite")
    return min(common, key=LINK_ORDER.index)


# ---------------------------------------------------------------- initiator


class Initiator:
    """One attempt to open a link: send `packet`, give every packet that arrives under `answer_cid` to `finish`.

    `suites` are those of ours that the peer's signed descriptor names too. `me` is None for a client. Nothing changes when
    `finish` refuses a packet, so that a forged answer cannot hinder the true one. An attempt finishes once. What arrives under
    `cookie_cid` goes to `cookie`: a responder under load wants a wholly new attempt that carries its `cookie`.
    """

    def __init__(
        self,
        peer: PublicKeys,
        me: StaticKeys | None,
        suites: Sequence[int],
        local_cids: Sequence[bytes],
        entropy: Entropy,
        wall: int,
        cookie: bytes = b"",
    ) -> None:
        self.peer: Final = peer
        self.suites: Final = _checked_suites(suites)
        self.local_cids: Final = _checked_cids(local_cids)
        self.answer_cid: Final = self.local_cids[0]
        self._me = me
        self._e: bytes | None = entropy(X25519_SIZE)
        self._ck1, self._h1, self._sealed, self.packet = self._initiate(entropy, wall, cookie)
        self.cookie_cid: Final = cookie_cid(self.packet[:CID_SIZE], peer)

    def __repr__(self) -> str:
        return f"Initiator(peer={self.peer!r})"

    def _body(self, wall: int) -> bytes:
        static = self._me.public.link_x25519 if self._me else _NO_STATIC
        flags = FLAG_RELAY if self._me else 0
        cids = b"".join(self.local_cids)
        return _INITIATION_BODY.pack(_mask_of((VERSION,)), _mask_of(self.suites), flags, 0, wall, 0, cids, static)

    def _initiate(self, entropy: Entropy, wall: int, cookie: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        assert self._e is not None
        peer = self.peer
        e_public = x25519_public(self._e)
        k_r, ct_r = encapsulate(peer.link_ek)
        h0 = schedule.link_start(peer.node_id, peer.link_x25519, peer.link_ek)
        ck1 = schedule.extract(h0, x25519(self._e, peer.link_x25519), k_r)
        h1 = schedule.digest(h0, e_public, ct_r)
        header = entropy(CID_SIZE) + INITIATION_HEADER
        key = schedule.expand(ck1, schedule.LABEL_INIT_SEAL, schedule.SEAL_KEY_SIZE, h1)
        sealed = schedule.seal(key, header, self._body(wall))
        masked = _masked(header + e_public + ct_r + sealed, INIT_MAC1, peer, 0)
        packet = masked + _mac1(masked, peer, wall // MAC_SLOT)
        return ck1, h1, sealed, packet + (mac2(packet, cookie) if cookie else entropy(MAC_SIZE))

    def cookie(self, packet: bytes) -> bytes | None:
        """The cookie that the peer asks for; None when this is no answer of its to this attempt."""
        return open_cookie(bytes(packet), self.packet, self.peer)

    def finish(self, packet: bytes) -> LinkSecrets:
        """The link's secrets from the answer. Raises HandshakeError (drop the packet, keep waiting) unless the peer made it."""
        if self._e is None:
            raise LocalProtocolError("this attempt has finished")
        if len(packet) != PACKET_SIZE or packet[:CID_SIZE] != self.answer_cid:
            raise HandshakeError("not an answer to this attempt")
        plain = _masked(bytes(packet), PACKET_SIZE, self.peer, 1)
        if plain[MASK_START:HEADER_SIZE] != ANSWER_HEADER:
            raise HandshakeError("bytes 12-15 are not those of this message", Drop.BAD_HEADER)
        e_peer, ct_i = plain[ANSWER_E:ANSWER_CT], plain[ANSWER_CT:ANSWER_SEALED]
        h2 = schedule.digest(self._h1, self._sealed, e_peer, ct_i)
        try:
            ck2 = schedule.extract(self._ck1, *self._agreed(e_peer, ct_i), h2)
            key = schedule.expand(ck2, schedule.LABEL_RESP_SEAL, schedule.SEAL_KEY_SIZE, h2)
            body = schedule.unseal(key, plain[:HEADER_SIZE], plain[ANSWER_SEALED:])
        except RemoteProtocolError:
            raise HandshakeError("the keys do not agree or the seal does not open") from None
        secrets = self._secrets(body, ck2, h2)
        self._e = None
        return secrets

    def _agreed(self, e_peer: bytes, ct_i: bytes) -> list[bytes]:
        assert self._e is not None
        agreed = [x25519(self._e, e_peer)]
        if self._me is not None:
            agreed += [self._me.link.exchange(e_peer), self._me.link.kem.decapsulate(ct_i)]
        return agreed

    def _secrets(self, body: bytes, ck2: bytes, h2: bytes) -> LinkSecrets:
        version, suite, flags, cids, clock, window, zeros = _ANSWER_BODY.unpack(body)
        if version != VERSION or suite not in self.suites or flags or any(zeros):
            raise HandshakeError("the answer's fields break a rule")
        return LinkSecrets(
            initiator=True,
            suite=suite,
            peer=self.peer,
            local_cids=self.local_cids,
            peer_cids=_split_cids(cids),
            ck=ck2,
            h2=h2,
            receive_window=window,
            clock=clock,
        )


# ---------------------------------------------------------------- responder


@dataclass(frozen=True, slots=True, repr=False)
class _Opened:
    """An initiation whose seal opened: offered suites, claimed static key, CIDs, and the chain so far."""

    suites: int
    static: bytes | None
    cids: tuple[bytes, ...]
    time: int
    e_peer: bytes
    sealed: bytes
    ck1: bytes
    h1: bytes


def _open(packet: bytes, me: StaticKeys, wall: int, started: int) -> _Opened:
    """Mask, header, DH and KEM, seal, fields, time: everything that needs no directory. Raises HandshakeError."""
    public = me.public
    plain = _masked(packet, INIT_MAC1, public, 0)
    if plain[MASK_START:HEADER_SIZE] != INITIATION_HEADER:
        raise HandshakeError("bytes 12-15 are not those of this message", Drop.BAD_HEADER)
    e_peer, ct_r, sealed = plain[INIT_E:INIT_CT], plain[INIT_CT:INIT_SEALED], plain[INIT_SEALED:INIT_MAC1]
    h0 = schedule.link_start(public.node_id, public.link_x25519, public.link_ek)
    h1 = schedule.digest(h0, e_peer, ct_r)
    try:
        ck1 = schedule.extract(h0, me.link.exchange(e_peer), me.link.kem.decapsulate(ct_r))
        key = schedule.expand(ck1, schedule.LABEL_INIT_SEAL, schedule.SEAL_KEY_SIZE, h1)
        body = schedule.unseal(key, plain[:HEADER_SIZE], sealed)
    except RemoteProtocolError:
        raise HandshakeError("the keys do not agree or the seal does not open") from None
    versions, suites, flags, zero, time, zero2, cids, static = _INITIATION_BODY.unpack(body)
    relay = bool(flags & FLAG_RELAY)
    if zero or zero2 or flags & ~FLAG_RELAY or relay != (static != _NO_STATIC):
        raise HandshakeError("the initiation's fields break a rule")
    if abs(time - wall) > CLOCK_SKEW or time < started:
        raise HandshakeError("the clocks differ too much, or it is from before our start", Drop.STALE_HANDSHAKE)
    if not versions >> VERSION & 1:
        raise HandshakeError("no common version")
    return _Opened(suites, static if relay else None, _split_cids(cids), time, e_peer, sealed, ck1, h1)


def respond(
    packet: bytes,
    me: StaticKeys,
    suites: Sequence[int],
    local_cids: Sequence[bytes],
    entropy: Entropy,
    wall: int,
    find_relay: Callable[[bytes], PublicKeys | None],
    receive_window: int,
    started: int = 0,
) -> Response:
    """The answer to an initiation that passed `check_mac1` and `ReplayTable.seen`. Raises HandshakeError: say nothing.

    `find_relay` gives the directory's keys of the relay with this static link key. `started` is when this node started, Unix
    seconds: what was made before could be a replay of what the lost table knew. `receive_window` counts packets.
    """
    if len(packet) != PACKET_SIZE:
        raise HandshakeError("not 1280 bytes", Drop.SHORT)
    local = _checked_cids(local_cids)
    opened = _open(bytes(packet), me, wall, started)
    suite = _choose(opened.suites, _checked_suites(suites))
    peer = find_relay(opened.static) if opened.static is not None else None
    if opened.static is not None and (peer is None or peer.link_x25519 != opened.static):
        raise HandshakeError("the directory has no such relay")
    return _answer(opened, me, suite, peer, local, entropy, wall, receive_window)


def _answer(
    opened: _Opened,
    me: StaticKeys,
    suite: int,
    peer: PublicKeys | None,
    local: tuple[bytes, ...],
    entropy: Entropy,
    wall: int,
    receive_window: int,
) -> Response:
    e = entropy(X25519_SIZE)
    e_public = x25519_public(e)
    try:
        agreed = [x25519(e, opened.e_peer)]
        if peer is None:
            ct_i = entropy(MLKEM_CT_SIZE)
        else:
            k_i, ct_i = encapsulate(peer.link_ek)
            agreed += [x25519(e, peer.link_x25519), k_i]
    except RemoteProtocolError:
        raise HandshakeError("the keys do not agree or the seal does not open") from None
    h2 = schedule.digest(opened.h1, opened.sealed, e_public, ct_i)
    ck2 = schedule.extract(opened.ck1, *agreed, h2)
    body = _ANSWER_BODY.pack(VERSION, suite, 0, b"".join(local), wall, receive_window, bytes(64))
    header = opened.cids[0] + ANSWER_HEADER
    key = schedule.expand(ck2, schedule.LABEL_RESP_SEAL, schedule.SEAL_KEY_SIZE, h2)
    answer = _masked(header + e_public + ct_i + schedule.seal(key, header, body), PACKET_SIZE, me.public, 1)
    secrets = LinkSecrets(
        initiator=False,
        suite=suite,
        peer=peer,
        local_cids=local,
        peer_cids=opened.cids,
        ck=ck2,
        h2=h2,
        receive_window=0,
        clock=opened.time,
    )
    return Response(answer, secrets)


assert _INITIATION_BODY.size == INIT_BODY_SIZE
assert _ANSWER_BODY.size == ANSWER_BODY_SIZE
assert INIT_SEALED + INIT_BODY_SIZE + SEAL_TAG_SIZE == INIT_MAC1
assert ANSWER_SEALED + ANSWER_BODY_SIZE + SEAL_TAG_SIZE == PACKET_SIZE
