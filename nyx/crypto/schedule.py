"""The key schedule: HKDF-SHA256, every label, and the chains of link and circuit, in the order the protocol derives them.

Place on a packet's way: before it; these functions make the keys that kernels later use. Nothing here is random and nothing
is kept, so the whole schedule is a function of the handshake's bytes and shared secrets, and the independent twin in
tests/reference recomputes it. Expand's info = label || context. Every seal here uses nonce 0: each key seals once.

Source: docs/protocol.md, "Link handshake", "Circuit build"; RFC 5869, RFC 8439.
"""

import hashlib
import hmac
from typing import Final

from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt, crypto_aead_chacha20poly1305_ietf_encrypt
from nacl.exceptions import CryptoError

from nyx.crypto.forget import forget
from nyx.crypto.suites import LAYER_KEY_SIZES, LINK_KEY_SIZES
from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.wire.geometry import MASK_KEY_SIZE, SEED_SIZE

HASH_SIZE: Final = 32
SEAL_KEY_SIZE: Final = 32
EXPAND_MAX: Final = 255 * HASH_SIZE  # RFC 5869
_NONCE: Final = bytes(12)

PROLOGUE: Final = b"Nyx0.1" + b"link-1"
LABEL_INIT_SEAL: Final = b"nyx init seal"
LABEL_RESP_SEAL: Final = b"nyx resp seal"
LABEL_SESSION: Final = b"nyx session"
LABEL_MASK: Final = b"nyx mask"
LABEL_BUILD: Final = b"nyx-build-1"
LABEL_BUILD_SEAL: Final = b"nyx build seal"
LABEL_BUILD_LAYER: Final = b"nyx build layer"
LABEL_ANSWER_LAYER: Final = b"nyx answer layer"
LABEL_ANSWER_SEAL: Final = b"nyx answer seal"
LABEL_DATA_FORWARD: Final = b"nyx data fwd"
LABEL_DATA_BACK: Final = b"nyx data back"
LABEL_CIRCUIT: Final = b"nyx circuit"
LABEL_LAYER: Final = b"nyx layer"
LABEL_RATCHET: Final = b"nyx ratchet"
LABEL_REFRESH_SEAL: Final = (b"nyx refresh seal fwd", b"nyx refresh seal back")  # by direction
LABEL_REFRESH_LAYER: Final = (b"nyx refresh layer fwd", b"nyx refresh layer back")


def digest(*parts: bytes) -> bytes:
    """SHA-256 over the parts, one after the other."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.digest()


def extract(salt: bytes, *secrets: bytes) -> bytes:
    """HKDF-Extract: a pseudorandom key of 32 bytes from the salt and the secrets, one after the other."""
    joined = b"".join(secrets)
    found = hmac.digest(salt, joined, "sha256")
    if len(secrets) > 1:
        forget(joined)
    return found


def expand(prk: bytes, label: bytes, size: int, context: bytes = b"") -> bytes:
    """HKDF-Expand: `size` bytes under info = label || context. Raises LocalProtocolError beyond 8,160 bytes."""
    if not 0 < size <= EXPAND_MAX:
        raise LocalProtocolError(f"HKDF gives 1 to {EXPAND_MAX} bytes, not {size}")
    info = label + context
    blocks = [b""]
    for counter in range(1, -(-size // HASH_SIZE) + 1):
        fed = blocks[-1] + info + bytes((counter,))
        blocks.append(hmac.digest(prk, fed, "sha256"))
        forget(fed)
    whole = b"".join(blocks)
    found = whole[:size]
    forget(*(part for part in (*blocks, whole) if part is not found))
    return found


def seal(key: bytes, ad: bytes, plain: bytes) -> bytes:
    """ChaCha20-Poly1305 with nonce 0: ciphertext || tag of 16 bytes. The key must never seal again."""
    return crypto_aead_chacha20poly1305_ietf_encrypt(plain, ad, _NONCE, key)


def unseal(key: bytes, ad: bytes, sealed: bytes) -> bytes:
    """The plain bytes of `seal`. Raises RemoteProtocolError when anything was altered."""
    try:
        return crypto_aead_chacha20poly1305_ietf_decrypt(sealed, ad, _NONCE, key)
    except CryptoError:
        raise RemoteProtocolError("a seal does not open") from None


# ---------------------------------------------------------------- link


def link_start(node_id: bytes, link_x25519: bytes, link_ek: bytes) -> bytes:
    """h0: the responder's identity and keys, hashed."""
    return digest(PROLOGUE, node_id, link_x25519, digest(link_ek))


def session_key(ck: bytes, suite: int, session: int, direction: int) -> bytes:
    """The AEAD key of one session and direction: 32 bytes, or 16 for AEGIS-128L."""
    return expand(ck, LABEL_SESSION, LINK_KEY_SIZES[suite], bytes((session, direction)))


def mask_key(ck: bytes, session: int, direction: int) -> bytes:
    """The header mask's key of one session and direction, 16 bytes."""
    return expand(ck, LABEL_MASK, MASK_KEY_SIZE, bytes((session, direction)))


# ---------------------------------------------------------------- circuit build


def build_start(node_id: bytes, onion_x25519: bytes, onion_ek: bytes, opening: bytes) -> bytes:
    """T0: the hop's identity and keys and the record's bytes 0-1135, hashed."""
    return digest(LABEL_BUILD, node_id, onion_x25519, digest(onion_ek), opening)


def layer_key(seed: bytes, suite: int) -> bytes:
    """The key block of one direction's data layer for the epoch that the seed belongs to."""
    return expand(seed, LABEL_LAYER, LAYER_KEY_SIZES[suite])


def next_seed(seed: bytes) -> bytes:
    """The seed of one direction's next epoch; whoever derives it erases the one before."""
    return expand(seed, LABEL_RATCHET, SEED_SIZE)


class BuildKeys:
    """What prk0 gives: the request's seal and the layers that a build and its answer pass through."""

    __slots__ = ("prk0", "seal")

    def __init__(self, t0: bytes, shared: bytes, encapsulated: bytes) -> None:
        self.prk0: Final = extract(t0, shared, encapsulated)
        self.seal: Final = expand(self.prk0, LABEL_BUILD_SEAL, SEAL_KEY_SIZE)

    def layers(self, suite: int) -> tuple[bytes, bytes]:
        """Build layer key and answer layer key of this suite."""
        size = LAYER_KEY_SIZES[suite]
        return expand(self.prk0, LABEL_BUILD_LAYER, size), expand(self.prk0, LABEL_ANSWER_LAYER, size)


class CircuitKeys:
    """What prk1 gives: the answer's seal, the circuit's key and the seeds of the data layers of epoch 0."""

    __slots__ = ("answer_seal", "backward_seed", "ck", "forward_seed")

    def __init__(self, t1: bytes, prk0: bytes, shared: bytes) -> None:
        prk1 = extract(t1, prk0, shared)
        self.answer_seal: Final = expand(prk1, LABEL_ANSWER_SEAL, SEAL_KEY_SIZE)
        self.forward_seed: Final = expand(prk1, LABEL_DATA_FORWARD, SEED_SIZE)
        self.backward_seed: Final = expand(prk1, LABEL_DATA_BACK, SEED_SIZE)
        self.ck: Final = expand(prk1, LABEL_CIRCUIT, HASH_SIZE)
        forget(prk1)


# ---------------------------------------------------------------- circuit refresh


def refresh_seal(ck: bytes, direction: int, counter: int) -> bytes:
    """What seals the requests (direction 0) or answers (1) of the refresh of this counter."""
    return expand(ck, LABEL_REFRESH_SEAL[direction], SEAL_KEY_SIZE, counter.to_bytes(4, "big"))


def refresh_layer(ck: bytes, direction: int, counter: int, suite: int) -> bytes:
    """The key of the layer that requests or answers of the refresh of this counter pass through."""
    return expand(ck, LABEL_REFRESH_LAYER[direction], LAYER_KEY_SIZES[suite], counter.to_bytes(4, "big"))


class RefreshKeys:
    """What a hop's ephemeral secret makes of its circuit key: the next circuit key, and seeds of the data layers."""

    __slots__ = ("backward_seed", "ck", "forward_seed")

    def __init__(self, ck: bytes, ek: bytes, ct: bytes, shared: bytes) -> None:
        prk = extract(digest(ck, ek, ct), ck, shared)
        self.forward_seed: Final = expand(prk, LABEL_DATA_FORWARD, SEED_SIZE)
        self.backward_seed: Final = expand(prk, LABEL_DATA_BACK, SEED_SIZE)
        self.ck: Final = expand(prk, LABEL_CIRCUIT, HASH_SIZE)
        forget(prk)
