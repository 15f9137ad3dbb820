"""The cryptographic primitives: libsodium's functions, as PyNaCl carries them, for kernels and for plain Python.

Every argument is an int64: an address or a length. Return values of C's `int`: 0 is success, -1 is "does not verify".
AEGIS tags of this library are 32 bytes and cannot be cut. AEGIS is only for processors with AES instructions; the portable
code is not constant time (`nyx.crypto.suites.available_suites`). Source: libsodium's headers; docs/protocol.md, "Primitives".
"""

import ctypes
from importlib.util import find_spec
from typing import Final

from nyx.kernel import foreign
from nyx.wire.geometry import AEGIS_KEY_SIZE, CHACHA_KEY_SIZE

_spec: Final = find_spec("nacl._sodium")
if _spec is None or _spec.origin is None:
    raise ImportError("PyNaCl does not carry its libsodium (nacl._sodium)")
LIBRARY: Final = _spec.origin
if ctypes.CDLL(LIBRARY).sodium_init() < 0:
    raise ImportError(f"{LIBRARY}: sodium_init failed")

AEGIS_TAG: Final = 32
AEGIS_KEY: Final = AEGIS_KEY_SIZE
AEGIS_NONCE: Final = 16
AEGIS256_NONCE: Final = 32
CHACHA_TAG: Final = 16
CHACHA_KEY: Final = CHACHA_KEY_SIZE
CHACHA_NONCE: Final = 12
HMAC_SIZE: Final = 32  # and of its key
SIPHASH_KEY: Final = 16
SIPHASH_SIZE: Final = 8
SIPHASHX_SIZE: Final = 16
POLY1305_KEY: Final = 32
POLY1305_TAG: Final = 16
HCHACHA_INPUT: Final = 16
HCHACHA_SIZE: Final = 32
HCHACHA_CONSTANT: Final = b"expand 32-byte k"

# The text below each names its arguments in order; "0" is one that these functions do not use.
_ENCRYPT: Final = ("i8",) * 10
_DECRYPT: Final = ("i8",) * 9

aegis128l_encrypt: Final = foreign(LIBRARY, "crypto_aead_aegis128l_encrypt_detached", "i4", *_ENCRYPT)
"""ciphertext, tag, 0, message, its length, associated data, its length, 0, nonce, key"""
aegis128l_decrypt: Final = foreign(LIBRARY, "crypto_aead_aegis128l_decrypt_detached", "i4", *_DECRYPT)
"""message, 0, ciphertext, its length, tag, associated data, its length, nonce, key"""
aegis256_encrypt: Final = foreign(LIBRARY, "crypto_aead_aegis256_encrypt_detached", "i4", *_ENCRYPT)
"""ciphertext, tag, 0, message, its length, associated data, its length, 0, nonce, key"""
aegis256_decrypt: Final = foreign(LIBRARY, "crypto_aead_aegis256_decrypt_detached", "i4", *_DECRYPT)
"""message, 0, ciphertext, its length, tag, associated data, its length, nonce, key"""
chacha20poly1305_encrypt: Final = foreign(LIBRARY, "crypto_aead_chacha20poly1305_ietf_encrypt_detached", "i4", *_ENCRYPT)
"""ciphertext, tag, 0, message, its length, associated data, its length, 0, nonce, key"""
chacha20poly1305_decrypt: Final = foreign(LIBRARY, "crypto_aead_chacha20poly1305_ietf_decrypt_detached", "i4", *_DECRYPT)
"""message, 0, ciphertext, its length, tag, associated data, its length, nonce, key"""
siphash24: Final = foreign(LIBRARY, "crypto_shorthash_siphash24", "i4", "i8", "i8", "i8", "i8")
"""8 bytes of output, input, its length, key"""
siphashx24: Final = foreign(LIBRARY, "crypto_shorthash_siphashx24", "i4", "i8", "i8", "i8", "i8")
"""16 bytes of output, input, its length, key"""
sha256: Final = foreign(LIBRARY, "crypto_hash_sha256", "i4", "i8", "i8", "i8")
"""32 bytes of output, input, its length"""
hmac_sha256: Final = foreign(LIBRARY, "crypto_auth_hmacsha256", "i4", "i8", "i8", "i8", "i8")
"""32 bytes of output, input, its length, key of 32 bytes"""
blake2b: Final = foreign(LIBRARY, "crypto_generichash_blake2b", "i4", *("i8",) * 6)
"""output, its length, input, its length, key, its length"""
poly1305: Final = foreign(LIBRARY, "crypto_onetimeauth_poly1305", "i4", "i8", "i8", "i8", "i8")
"""16 bytes of output, input, its length, key"""
hchacha20: Final = foreign(LIBRARY, "crypto_core_hchacha20", "i4", "i8", "i8", "i8", "i8")
"""32 bytes of output, 16 of input, key, 16 bytes of constant or 0 for the usual one"""
chacha20_xor: Final = foreign(LIBRARY, "crypto_stream_chacha20_ietf_xor", "i4", "i8", "i8", "i8", "i8", "i8")
"""output, input, its length, nonce, key"""
memcmp: Final = foreign(LIBRARY, "sodium_memcmp", "i4", "i8", "i8", "i8")
"""two inputs, their length; 0 when equal, in constant time"""
is_zero: Final = foreign(LIBRARY, "sodium_is_zero", "i4", "i8", "i8")
"""input, its length; 1 when all are zero, in constant time"""
memzero: Final = foreign(LIBRARY, "sodium_memzero", "void", "i8", "i8")
"""what to wipe, its length"""
