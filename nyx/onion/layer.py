"""The onion layer: a strong tweakable permutation of a cell, and its inverse, from AEGIS-128L or from ChaCha20 and Poly1305.

Place on a packet's way: "onion unwrap". A relay applies `layer`, the client its inverse `unlayer`, in both directions.
One flipped bit anywhere changes the whole cell. A cell is L (16 bytes) || R (1208 bytes). Source and proof:
docs/protocol.md, "Onion layer".

    layer         AEGIS-128L: keys k1..k5                      ChaCha20: keys k1..k6
    R[0:16] ^=    SipHashX_k1(L)                               SipHashX_k1(L)
    L       ^=    SipHashX_k3(AegisTag_k2(tweak, R))           HChaCha20_k3(tweak, Poly1305_k2(R))[0:16]
    R       ^=    AegisStream_k4(nonce L)                      ChaCha20(key HChaCha20_k4(L))
    L       ^=    AegisTag_k5(tweak, R)[0:16]                  HChaCha20_k6(tweak, Poly1305_k5(R))[0:16]

Every line undoes itself, so the inverse is the lines backwards. AegisTag is the 32-byte tag of R as associated data of an
empty message under the tweak as nonce; AegisStream the encryption of zeros; the tweak XORs into HChaCha20's constant.
Keystream, tags and hashes live in the scratch (`nyx.crypto.scratch`) and are wiped before a function returns.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.scratch import (
    SCRATCH_CONSTANT,
    SCRATCH_SHORT,
    SCRATCH_STREAM,
    SCRATCH_TAG,
    SCRATCH_TWEAK,
    new_scratch,
)
from nyx.crypto.sodium import (
    AEGIS_KEY,
    AEGIS_TAG,
    CHACHA_KEY,
    HCHACHA_CONSTANT,
    HCHACHA_SIZE,
    POLY1305_KEY,
    SIPHASH_KEY,
    aegis128l_encrypt,
    chacha20_xor,
    hchacha20,
    memzero,
    poly1305,
    siphashx24,
)
from nyx.crypto.suites import LAYER_KEY_SIZES, SUITE_AEGIS128L, SUITE_CHACHA
from nyx.kernel import Int, address, inline, kernel, load_word, store_word, swap_word
from nyx.wire.geometry import BUILD_SLOTS, CELL_LEFT_SIZE, CELL_RIGHT_SIZE, CELL_SIZE, LAYER_KEY_MAX, TWEAK_SIZE

FORWARD: Final = 0  # towards the last hop
BACKWARD: Final = 1  # towards the client
EPOCH_LIMIT: Final = 1 << 40

_ZEROS: Final = np.zeros(CELL_RIGHT_SIZE, np.uint8)
_SIGMA: Final = np.frombuffer(HCHACHA_CONSTANT, np.uint8)

_AEGIS_K2: Final = SIPHASH_KEY
_AEGIS_K3: Final = _AEGIS_K2 + AEGIS_KEY
_AEGIS_K4: Final = _AEGIS_K3 + SIPHASH_KEY
_AEGIS_K5: Final = _AEGIS_K4 + AEGIS_KEY
_CHACHA_K2: Final = SIPHASH_KEY
_CHACHA_K3: Final = _CHACHA_K2 + POLY1305_KEY
_CHACHA_K4: Final = _CHACHA_K3 + CHACHA_KEY
_CHACHA_K5: Final = _CHACHA_K4 + CHACHA_KEY
_CHACHA_K6: Final = _CHACHA_K5 + POLY1305_KEY

Bytes = NDArray[np.uint8]
Longs = NDArray[np.int64]


@inline
def write_tweak(tweak: Bytes, at: Int, direction: Int, kind: Int, slot: Int, epoch: Int) -> None:
    """Write the 16 bytes that make a layer different per direction, kind, slot and key epoch."""
    head = np.int64(direction) << 56 | np.int64(kind) << 48 | np.int64(slot) << 40 | np.int64(epoch)
    store_word(address(tweak) + at, swap_word(head))
    store_word(address(tweak) + at + 8, 0)


@inline
def _xor_16(at: Int, source: Int) -> None:
    """XOR 16 bytes, by the words in which they were written: wider loads would wait for them."""
    store_word(at, load_word(at) ^ load_word(source))
    store_word(at + 8, load_word(at + 8) ^ load_word(source + 8))


@inline
def _xor_left(pool: Bytes, at: Int, scratch: Bytes, source: Int) -> None:
    _xor_16(address(pool) + at, address(scratch) + source)


@inline
def _hash_left(pool: Bytes, at: Int, key: Int, scratch: Bytes) -> None:
    """R[0:16] ^= SipHashX_k1(L), the same in both suites."""
    siphashx24(address(scratch) + SCRATCH_SHORT, address(pool) + at, CELL_LEFT_SIZE, key)
    _xor_16(address(pool) + at + CELL_LEFT_SIZE, address(scratch) + SCRATCH_SHORT)


@inline
def _aegis_tag(pool: Bytes, at: Int, key: Int, tweak: Int, scratch: Bytes) -> Int:
    """AegisTag_key(tweak, R) into the scratch; returns its address."""
    tag = address(scratch) + SCRATCH_TAG
    right = address(pool) + at + CELL_LEFT_SIZE
    aegis128l_encrypt(tag, tag, 0, address(_ZEROS), 0, right, CELL_RIGHT_SIZE, 0, tweak, key)
    return tag


@inline
def _aegis_prf(pool: Bytes, at: Int, keys: Int, tweak: Int, scratch: Bytes) -> None:
    """L ^= SipHashX_k3(AegisTag_k2(tweak, R))."""
    tag = _aegis_tag(pool, at, keys + _AEGIS_K2, tweak, scratch)
    siphashx24(address(scratch) + SCRATCH_SHORT, tag, AEGIS_TAG, keys + _AEGIS_K3)
    _xor_left(pool, at, scratch, SCRATCH_SHORT)


@inline
def _aegis_stream(pool: Bytes, at: Int, keys: Int, scratch: Bytes) -> None:
    """R ^= AegisStream_k4(nonce L)."""
    stream = address(scratch) + SCRATCH_STREAM
    tag = address(scratch) + SCRATCH_TAG
    left = address(pool) + at
    aegis128l_encrypt(stream, tag, 0, address(_ZEROS), CELL_RIGHT_SIZE, tag, 0, 0, left, keys + _AEGIS_K4)
    right = pool[at + CELL_LEFT_SIZE : at + CELL_SIZE]
    np.bitwise_xor(right, scratch[SCRATCH_STREAM : SCRATCH_STREAM + CELL_RIGHT_SIZE], right)


@inline
def _aegis_axu(pool: Bytes, at: Int, keys: Int, tweak: Int, scratch: Bytes) -> None:
    """L ^= AegisTag_k5(tweak, R)[0:16]."""
    _aegis_tag(pool, at, keys + _AEGIS_K5, tweak, scratch)
    _xor_left(pool, at, scratch, SCRATCH_TAG)


@inline
def _chacha_constant(tweak: Bytes, tweak_at: Int, scratch: Bytes) -> Int:
    """HChaCha20's constant with the tweak in it, into the scratch; returns its address."""
    constant = scratch[SCRATCH_CONSTANT : SCRATCH_CONSTANT + TWEAK_SIZE]
    np.bitwise_xor(_SIGMA[0:TWEAK_SIZE], tweak[tweak_at : tweak_at + TWEAK_SIZE], constant)
    return address(scratch) + SCRATCH_CONSTANT


@inline
def _chacha_prf(pool: Bytes, at: Int, hash_key: Int, key: Int, constant: Int, scratch: Bytes) -> None:
    """L ^= HChaCha20_key(constant, Poly1305_hash_key(R))[0:16]."""
    tag = address(scratch) + SCRATCH_TAG
    poly1305(tag, address(pool) + at + CELL_LEFT_SIZE, CELL_RIGHT_SIZE, hash_key)
    hchacha20(address(scratch) + SCRATCH_SHORT, tag, key, constant)
    _xor_left(pool, at, scratch, SCRATCH_SHORT)


@inline
def _chacha_stream(pool: Bytes, at: Int, keys: Int, scratch: Bytes) -> None:
    """R ^= ChaCha20(key HChaCha20_k4(L), nonce 0, counter 0)."""
    short = address(scratch) + SCRATCH_SHORT
    right = address(pool) + at + CELL_LEFT_SIZE
    hchacha20(short, address(pool) + at, keys + _CHACHA_K4, 0)
    chacha20_xor(right, right, CELL_RIGHT_SIZE, address(_ZEROS), short)


@inline
def _wipe(suite: Int, scratch: Bytes) -> None:
    """Wipe what the passes left: keystream (AEGIS only; ChaCha20 encrypts in place), tag, hash or stream key."""
    if suite == SUITE_AEGIS128L:
        memzero(address(scratch) + SCRATCH_STREAM, SCRATCH_SHORT + HCHACHA_SIZE - SCRATCH_STREAM)
    else:
        memzero(address(scratch) + SCRATCH_TAG, SCRATCH_SHORT + HCHACHA_SIZE - SCRATCH_TAG)


@inline
def layer(pool: Bytes, at: Int, keys: Bytes, key_at: Int, suite: Int, tweak: Bytes, tweak_at: Int, scratch: Bytes) -> None:
    """Apply one layer to the cell at pool[at:], under the key block at keys[key_at:]. What a relay does."""
    key = address(keys) + key_at
    _hash_left(pool, at, key, scratch)
    if suite == SUITE_AEGIS128L:
        tweak_address = address(tweak) + tweak_at
        _aegis_prf(pool, at, key, tweak_address, scratch)
        _aegis_stream(pool, at, key, scratch)
        _aegis_axu(pool, at, key, tweak_address, scratch)
    else:
        constant = _chacha_constant(tweak, tweak_at, scratch)
        _chacha_prf(pool, at, key + _CHACHA_K2, key + _CHACHA_K3, constant, scratch)
        _chacha_stream(pool, at, key, scratch)
        _chacha_prf(pool, at, key + _CHACHA_K5, key + _CHACHA_K6, constant, scratch)
    _wipe(suite, scratch)


@inline
def unlayer(pool: Bytes, at: Int, keys: Bytes, key_at: Int, suite: Int, tweak: Bytes, tweak_at: Int, scratch: Bytes) -> None:
    """Undo one layer of the cell at pool[at:]. What the client does, for every hop."""
    key = address(keys) + key_at
    if suite == SUITE_AEGIS128L:
        tweak_address = address(tweak) + tweak_at
        _aegis_axu(pool, at, key, tweak_address, scratch)
        _aegis_stream(pool, at, key, scratch)
        _aegis_prf(pool, at, key, tweak_address, scratch)
    else:
        constant = _chacha_constant(tweak, tweak_at, scratch)
        _chacha_prf(pool, at, key + _CHACHA_K5, key + _CHACHA_K6, constant, scratch)
        _chacha_stream(pool, at, key, scratch)
        _chacha_prf(pool, at, key + _CHACHA_K2, key + _CHACHA_K3, constant, scratch)
    _hash_left(pool, at, key, scratch)
    _wipe(suite, scratch)


_BATCH: Final = ("u1[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8[]", "i8", "u1[]", "u1[]")


@kernel("i8", *_BATCH)
def layer_batch(
    pool: Bytes,
    ats: Longs,
    key_ats: Longs,
    suites: Longs,
    directions: Longs,
    kinds: Longs,
    slots: Longs,
    epochs: Longs,
    n: int,
    keys: Bytes,
    scratch: Bytes,
) -> int:
    """Apply a layer to the first n cells: the i-th is at pool[ats[i]:], its key block at keys[key_ats[i]:]. Returns n."""
    for i in range(n):
        write_tweak(scratch, SCRATCH_TWEAK, directions[i], kinds[i], slots[i], epochs[i])
        layer(pool, np.int64(ats[i]), keys, np.int64(key_ats[i]), np.int64(suites[i]), scratch, SCRATCH_TWEAK, scratch)
    return n


@kernel("i8", *_BATCH)
def unlayer_batch(
    pool: Bytes,
    ats: Longs,
    key_ats: Longs,
    suites: Longs,
    directions: Longs,
    kinds: Longs,
    slots: Longs,
    epochs: Longs,
    n: int,
    keys: Bytes,
    scratch: Bytes,
) -> int:
    """Undo a layer of the first n cells; the arguments of `layer_batch`. Returns n."""
    for i in range(n):
        write_tweak(scratch, SCRATCH_TWEAK, directions[i], kinds[i], slots[i], epochs[i])
        unlayer(pool, np.int64(ats[i]), keys, np.int64(key_ats[i]), np.int64(suites[i]), scratch, SCRATCH_TWEAK, scratch)
    return n


@kernel("i8", "u1[]", "u1[]", "i8", "u1[]", "i8", "u1[]")
def _one(cell: Bytes, key: Bytes, suite: int, tweak: Bytes, undo: int, scratch: Bytes) -> int:
    if undo != 0:
        unlayer(cell, 0, key, 0, suite, tweak, 0, scratch)
    else:
        layer(cell, 0, key, 0, suite, tweak, 0, scratch)
    return 0


def tweak_bytes(direction: int, kind: int, slot: int, epoch: int) -> bytes:
    """The tweak as bytes. Raises ValueError for a part that does not fit."""
    if direction not in (FORWARD, BACKWARD) or not (0 <= kind <= 3 and 0 <= slot < BUILD_SLOTS and 0 <= epoch < EPOCH_LIMIT):
        raise ValueError(f"tweak of direction {direction}, kind {kind}, slot {slot}, epoch {epoch}")
    return bytes((direction, kind, slot)) + epoch.to_bytes(5, "big") + bytes(8)


def _call(cell: bytearray | Bytes, key: bytes, suite: int, tweak: bytes, *, undo: bool) -> None:
    if suite not in (SUITE_CHACHA, SUITE_AEGIS128L) or len(key) != LAYER_KEY_SIZES[suite] or len(cell) != CELL_SIZE:
        raise ValueError(f"a layer of suite {suite} over {len(cell)} bytes with a key of {len(key)} bytes")
    view = cell if isinstance(cell, np.ndarray) else np.frombuffer(cell, np.uint8)
    block = np.zeros(LAYER_KEY_MAX, np.uint8)
    block[: len(key)] = np.frombuffer(key, np.uint8)
    _one(view, block, suite, np.frombuffer(bytearray(tweak), np.uint8), int(undo), new_scratch())
    block[:] = 0


def apply_layer(
    cell: bytearray | Bytes, key: bytes, suite: int, direction: int, kind: int = 0, slot: int = 0, epoch: int = 0
) -> None:
    """Apply one layer to one cell in place, for builds and tests. Raises ValueError for sizes that do not fit."""
    _call(cell, key, suite, tweak_bytes(direction, kind, slot, epoch), undo=False)


def remove_layer(
    cell: bytearray | Bytes, key: bytes, suite: int, direction: int, kind: int = 0, slot: int = 0, epoch: int = 0
) -> None:
    """Undo one layer of one cell in place. Raises ValueError for sizes that do not fit."""
    _call(cell, key, suite, tweak_bytes(direction, kind, slot, epoch), undo=True)
