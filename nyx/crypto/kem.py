"""The two key agreements of every handshake: X25519 (libsodium) and ML-KEM-768 (`cryptography`), side by side.

Place on a packet's way: only the link handshake, its refresh and the circuit build, never a cell. Prices on the machine of
the notes, in microseconds: X25519 31, ML-KEM-768 key 80, encapsulate 20, decapsulate 29; so everything cheap comes first.

X25519 takes its secrets from the caller's entropy, and so do ML-KEM keys. Encapsulation draws from the library's own
generator: no kept library offers the derandomised form, so a run replays from its seed up to the ciphertexts.

Secrets are `bytes` here and cannot be wiped. Source: docs/protocol.md, "Link handshake", "Circuit build"; RFC 7748, FIPS 203.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base

from nyx.errors import RemoteProtocolError
from nyx.wire.codes import ErrorCode
from nyx.wire.geometry import MLKEM_CT_SIZE, MLKEM_EK_SIZE, X25519_SIZE

Entropy = Callable[[int], bytes]

KEM_SEED_SIZE: Final = 64  # d || z of FIPS 203: the whole private key
SECRET_SIZE: Final = 32
_ANY: Final = bytes(X25519_SIZE)  # clamped it is a multiple of 8: any scalar takes a point of small order to zero


def x25519_public(private: bytes) -> bytes:
    """The public key, 32 bytes, of an X25519 private key."""
    return crypto_scalarmult_base(private)


def x25519(private: bytes, public: bytes) -> bytes:
    """The shared secret of RFC 7748, 32 bytes.

    Raises RemoteProtocolError when it is all zero: the peer sent a point of small order.
    """
    try:
        return crypto_scalarmult(private, public)
    except RuntimeError:
        raise RemoteProtocolError("X25519 gave zero", ErrorCode.CRYPTO_FAIL) from None


def check_x25519(public: bytes) -> None:
    """Raises RemoteProtocolError for a point of small order: no secret can be agreed with it."""
    x25519(_ANY, public)


class KemKey:
    """An ML-KEM-768 private key, made from its seed of 64 bytes."""

    __slots__ = ("_key", "_seed", "public")

    def __init__(self, seed: bytes) -> None:
        self._seed = bytes(seed)
        self._key = MLKEM768PrivateKey.from_seed_bytes(self._seed)
        self.public: Final[bytes] = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"KemKey(public={self.public[:8].hex()}...)"

    @property
    def seed(self) -> bytes:
        """The seed d || z, 64 bytes; secret."""
        return self._seed

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 bytes; a wrong ciphertext gives a wrong secret, not an error (FIPS 203).

        Raises RemoteProtocolError for a ciphertext of the wrong length.
        """
        if len(ciphertext) != MLKEM_CT_SIZE:
            raise RemoteProtocolError("an ML-KEM ciphertext has the wrong length", ErrorCode.CRYPTO_FAIL)
        return self._key.decapsulate(ciphertext)


@lru_cache(maxsize=512)
def _loaded(ek: bytes) -> MLKEM768PublicKey:
    return MLKEM768PublicKey.from_public_bytes(ek)


def check_ek(ek: bytes) -> None:
    """Raises RemoteProtocolError unless this is an ML-KEM-768 encapsulation key (length, modulus check of FIPS 203)."""
    if len(ek) != MLKEM_EK_SIZE:
        raise RemoteProtocolError("an ML-KEM key has the wrong length", ErrorCode.CRYPTO_FAIL)
    try:
        _loaded(ek)
    except ValueError:
        raise RemoteProtocolError("an ML-KEM key is not reduced", ErrorCode.CRYPTO_FAIL) from None


def encapsulate(ek: bytes) -> tuple[bytes, bytes]:
    """A fresh shared secret (32 bytes) and its ciphertext (1088). Raises RemoteProtocolError for a key that is none."""
    check_ek(ek)
    secret, ciphertext = _loaded(ek).encapsulate()
    return secret, ciphertext


class HybridKey:
    """The pair that a link or an onion key is: X25519 private key and ML-KEM-768 seed, 96 secret bytes."""

    __slots__ = ("_x", "kem", "public")

    def __init__(self, x: bytes, seed: bytes) -> None:
        self._x = bytes(x)
        self.kem: Final = KemKey(seed)
        self.public: Final[bytes] = x25519_public(self._x)

    def __repr__(self) -> str:
        return f"HybridKey(public={self.public.hex()})"

    @classmethod
    def generate(cls, entropy: Entropy) -> "HybridKey":
        """A new pair from 96 bytes of entropy."""
        return cls(entropy(X25519_SIZE), entropy(KEM_SEED_SIZE))

    @property
    def ek(self) -> bytes:
        """The ML-KEM encapsulation key, 1184 bytes."""
        return self.kem.public

    def exchange(self, public: bytes) -> bytes:
        """X25519 with a public key of the peer; raises RemoteProtocolError when the result is all zero."""
        return x25519(self._x, public)

    def to_bytes(self) -> bytes:
        """Private key || seed, 96 bytes; secret."""
        return self._x + self.kem.seed

    @classmethod
    def from_bytes(cls, data: bytes) -> "HybridKey":
        """The inverse of `to_bytes`."""
        return cls(data[:X25519_SIZE], data[X25519_SIZE:])
