"""Link packets over bytes: seal, open, numbers, and the replay window as a set."""

from dataclasses import dataclass, field

from tests.reference import primitives as p

CHACHA, AEGIS, AEGIS256 = 1, 2, 3
KEY_SIZES = {CHACHA: 32, AEGIS: 16, AEGIS256: 32}
WINDOW = 1 << 20


@dataclass(frozen=True)
class Keys:
    suite: int
    key: bytes
    mask: bytes
    direction: int
    generation: int = 0


def _nonce(keys: Keys, number: int) -> bytes:
    if keys.suite != CHACHA:
        aegis = keys.direction.to_bytes(4, "big") + keys.generation.to_bytes(4, "big") + number.to_bytes(8, "big")
        return aegis + bytes(16 if keys.suite == AEGIS256 else 0)
    return keys.direction.to_bytes(4, "big") + number.to_bytes(8, "big")


def _masked(packet: bytes, mask_key: bytes) -> bytes:
    return packet[:12] + p.xor(packet[12:20], p.siphash(mask_key, packet[20:36], 8)) + packet[20:]


def seal(keys: Keys, cid: bytes, header: bytes, payload: bytes, number: int, zeros: bytes = bytes(16)) -> bytes:
    """A packet of 1280 bytes; `zeros` other than zeros makes what an honest sender never sends."""
    assert len(cid) == 12
    assert len(header) == 4
    assert len(payload) == 1228
    ad = cid + header + (number & 0xFFFFFFFF).to_bytes(4, "big")
    if keys.suite == AEGIS:
        sealed = b"".join(p.aegis128l_seal(keys.key, _nonce(keys, number), payload, ad))
    elif keys.suite == AEGIS256:
        sealed = b"".join(p.aegis256_seal(keys.key, _nonce(keys, number), payload, ad))
    else:
        sealed = p.chacha20poly1305_seal(keys.key, _nonce(keys, number), payload + zeros, ad)
    packet = ad + sealed
    assert len(packet) == 1280
    return _masked(packet, keys.mask)


def open_(keys: Keys, packet: bytes, expected: int) -> tuple[int, bytes, bytes] | None:
    """Number, header and payload; None for anything wrong. The window is not looked at."""
    clear = _masked(packet, keys.mask)
    number = decode_number(expected - 1, int.from_bytes(clear[16:20], "big"), 32)
    if keys.suite == AEGIS:
        payload = p.aegis128l_open(keys.key, _nonce(keys, number), clear[20:1248], clear[1248:], clear[:20])
    elif keys.suite == AEGIS256:
        payload = p.aegis256_open(keys.key, _nonce(keys, number), clear[20:1248], clear[1248:], clear[:20])
    else:
        payload = p.chacha20poly1305_open(keys.key, _nonce(keys, number), clear[20:], clear[:20])
        if payload is None or any(payload[1228:]):
            return None
        payload = payload[:1228]
    return None if payload is None else (number, clear[12:16], payload)


def decode_number(largest: int, truncated: int, bits: int) -> int:
    """RFC 9000, A.3, by definition: of all numbers with these low bits the one nearest to largest + 1, ties to the larger.

    Never negative.
    """
    expected, span = largest + 1, 1 << bits
    base = expected - expected % span + truncated
    candidates = [c for c in (base - span, base, base + span) if c >= 0]
    return min(candidates, key=lambda c: (abs(c - expected), -c))


@dataclass
class Window:
    """What a replay window means: numbers accepted, and nothing at or below highest - 2^20."""

    accepted: set[int] = field(default_factory=set)
    highest: int = -1

    def check(self, number: int) -> str:
        if self.highest >= 0 and number <= self.highest - WINDOW:
            return "too_old"
        return "replayed" if number in self.accepted else "ok"

    def accept(self, number: int) -> str:
        verdict = self.check(number)
        if verdict == "ok":
            self.accepted.add(number)
            self.highest = max(self.highest, number)
        return verdict
