"""The layer ratchet: data layer keys that change every 30 s, each from the one before, so that old cells stay closed for good.

Place on a packet's way: at "onion unwrap", which key and which tweak a data cell gets. A chain is one direction of one circuit:
an epoch, counted from 0 at the build, and for each hop that this node holds keys of (one, or all of them at the client) a seed.

    layer keys of epoch e = Expand(seed_e, "nyx layer", L)        seed_(e+1) = Expand(seed_e, "nyx ratchet", 32)

The originator (client forward, last hop back) moves by the clock (`shards.ratchet`); everybody else follows the parity bit that
each cell carries. Two epochs are kept: the current one, and for a while the one before, for cells that were overtaken. A cell of
the other parity that comes `gap` or more after the last move is of the next epoch, a sooner one of the epoch before; so the epoch
before is of no use after `gap`, and is erased. Source: docs/protocol.md, "Layer epochs".

    keys of a hop: of forward, of backward, circuit key 32 | the next one 32
    ... and direction: layer key of even epochs 176 | of odd epochs 176 | seed of even epochs 32 | of odd ones 32 | fresh seed 32

A refresh (`nyx.onion.refresh`) puts a fresh seed there, which takes over at an epoch named for the whole circuit, "fresh_at".

A kill at any point leaves either epoch in force, whole. The commits are single words: "kept" takes the other place's epoch out of
use before it is overwritten, "now" (epoch and time of the move) puts the next one in force, and only then is the old seed erased.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.forget import forget
from nyx.crypto.schedule import LABEL_LAYER, LABEL_RATCHET, layer_key
from nyx.crypto.scratch import SCRATCH_STREAM
from nyx.crypto.sodium import HMAC_SIZE, hmac_sha256, is_zero, memzero
from nyx.crypto.suites import SUITE_AEGIS128L
from nyx.kernel import Int, address, called, inline, load_acquire, load_word, store_release, store_word
from nyx.onion.refresh import Fresh
from nyx.wire.geometry import LAYER_KEY_AEGIS, LAYER_KEY_CHACHA, LAYER_KEY_MAX, SEED_SIZE

INTERVAL: Final = 30  # seconds between two marks
PARTS: Final = 30  # of an interval
GAP_PARTS: Final = 15  # after a move, in which the other parity is the epoch before
WAIT_PARTS: Final = 16  # after the first acknowledgement under an epoch, before the originator may move on
JITTER_PARTS: Final = 2  # by which an originator is later than a mark, at most
MEMORY_PARTS: Final = 50  # for which a relay remembers a cell: longer than any epoch opens, which is 32 parts and a gap

CHAIN: Final = np.dtype(
    [
        ("now", np.int64),  # epoch << MOVED_BITS | ms, monotonic, of the last move; the commit word
        ("kept", np.int64),  # the oldest epoch that opens: the current one or the one before
        ("since", np.int64),  # cells of this direction before the last move
        ("confirmed", np.int64),  # ns, of the originator: when a cell of this epoch was known to have arrived; 0: not yet
    ],
    align=True,
)
MOVED_BITS: Final = 40
MS: Final = 1_000_000
_MOVED: Final = (1 << MOVED_BITS) - 1
_FIELDS: Any = CHAIN.fields
_ROW: Final = CHAIN.itemsize
_NOW: Final = int(_FIELDS["now"][1])
_KEPT: Final = int(_FIELDS["kept"][1])

_SEEDS: Final = 2 * LAYER_KEY_MAX
_FRESH: Final = _SEEDS + 2 * SEED_SIZE
CHAIN_KEYS: Final = _FRESH + SEED_SIZE  # bytes of a hop and direction
_CK: Final = 2 * CHAIN_KEYS
_FRESH_CK: Final = _CK + SEED_SIZE
HOP_KEYS: Final = _FRESH_CK + SEED_SIZE

_LAYER: Final = np.frombuffer(LABEL_LAYER, np.uint8)
_RATCHET: Final = np.frombuffer(LABEL_RATCHET, np.uint8)
_LABEL: Final = SCRATCH_STREAM + HMAC_SIZE  # in the scratch: block before || label || counter, then the block that comes out
_BLOCK: Final = SCRATCH_STREAM + 128

Bytes = NDArray[np.uint8]
Chains = NDArray[Any]


def _write(keys: Bytes, at: int, secret: bytes) -> None:
    keys[at : at + len(secret)] = np.frombuffer(secret, np.uint8)
    forget(secret)


def begin_chain(keys: Bytes, block: int, direction: int, seed: bytes, suite: int) -> None:
    """Write the keys of epoch 0 of a hop and direction; `seed` is zeros afterwards."""
    at = block * HOP_KEYS + direction * CHAIN_KEYS
    _write(keys, at, layer_key(seed, suite))
    _write(keys, at + _SEEDS, seed)


def write_circuit_key(keys: Bytes, block: int, ck: bytes) -> None:
    """Write the circuit key of a hop; `ck` is zeros afterwards."""
    _write(keys, block * HOP_KEYS + _CK, ck)


def read_circuit_key(keys: Bytes, block: int) -> bytes:
    """The circuit key of a hop."""
    return keys[block * HOP_KEYS + _CK : block * HOP_KEYS + _FRESH_CK].tobytes()


def write_fresh(keys: Bytes, block: int, fresh: Fresh) -> None:
    """Write what a refresh gave for a hop; it is not in force before "fresh_at" says so. `fresh` is zeros afterwards."""
    at = block * HOP_KEYS
    _write(keys, at + _FRESH, fresh.forward_seed)
    _write(keys, at + CHAIN_KEYS + _FRESH, fresh.backward_seed)
    _write(keys, at + _FRESH_CK, fresh.ck)


def settle_circuit_key(keys: Bytes, block: int) -> None:
    """The next circuit key of a hop takes the place of the last. May be done again."""
    at = block * HOP_KEYS
    keys[at + _CK : at + _FRESH_CK] = keys[at + _FRESH_CK : at + HOP_KEYS]


@inline
def chain_keys(block: Int, direction: Int) -> Int:
    """Where the keys of a hop and direction begin; `block` counts hops from the column's first."""
    return np.int64(block) * HOP_KEYS + np.int64(direction) * CHAIN_KEYS


@inline
def key_at(at: Int, epoch: Int) -> Int:
    """Where the layer key of an epoch is."""
    return at + (np.int64(epoch) & 1) * LAYER_KEY_MAX


@inline
def seed_at(at: Int, epoch: Int) -> Int:
    """Where the seed of an epoch is."""
    return at + _SEEDS + (np.int64(epoch) & 1) * SEED_SIZE


@inline
def chain_epoch(chains: Chains, chain: Int) -> Int:
    """The epoch in force."""
    return load_acquire(address(chains) + chain * _ROW + _NOW) >> MOVED_BITS


@inline
def _copy(to: Int, source: Int, size: Int) -> None:
    """Copy whole words."""
    for at in range(0, size, 8):
        store_word(to + at, load_word(source + at))


@called
def _expand(keys: Bytes, out: Int, size: Int, prk: Int, label: Bytes, scratch: Bytes) -> None:
    """keys[out:][:size] = HKDF-Expand(keys[prk:][:32], label, size)."""
    base = address(scratch)
    for i in range(label.size):
        scratch[_LABEL + i] = label[i]
    fed, counter, done = np.int64(_LABEL), np.int64(1), np.int64(0)
    while done < size:
        scratch[_LABEL + label.size] = counter
        hmac_sha256(base + _BLOCK, base + fed, _LABEL + label.size + 1 - fed, address(keys) + prk)
        _copy(address(keys) + out + done, base + _BLOCK, min(np.int64(HMAC_SIZE), size - done))
        _copy(base + SCRATCH_STREAM, base + _BLOCK, np.int64(HMAC_SIZE))
        fed = np.int64(SCRATCH_STREAM)
        counter += 1
        done += HMAC_SIZE
    memzero(base + SCRATCH_STREAM, _BLOCK + HMAC_SIZE - SCRATCH_STREAM)


@inline
def _layer_size(suite: Int) -> Int:
    return np.int64(LAYER_KEY_AEGIS) if suite == SUITE_AEGIS128L else np.int64(LAYER_KEY_CHACHA)


@called
def advance(
    chains: Chains, chain: Int, keys: Bytes, block: Int, hops: Int, direction: Int, suite: Int, fresh_at: Int, cells: Int,
    now: Int, scratch: Bytes,
) -> Int:  # fmt: skip
    """Put the next epoch in force for all hops of a chain and erase the old seeds; returns its number. `cells`: passed so far."""
    base = address(chains) + chain * _ROW
    epoch = load_acquire(base + _NOW) >> MOVED_BITS
    store_release(base + _KEPT, epoch)
    for hop in range(hops):
        at = chain_keys(block + hop, direction)
        if fresh_at == epoch + 1:
            _copy(address(keys) + seed_at(at, epoch + 1), address(keys) + at + _FRESH, np.int64(SEED_SIZE))
        else:
            _expand(keys, seed_at(at, epoch + 1), np.int64(SEED_SIZE), seed_at(at, epoch), _RATCHET, scratch)
        _expand(keys, key_at(at, epoch + 1), _layer_size(suite), seed_at(at, epoch + 1), _LAYER, scratch)
    chains[chain]["since"] = cells
    chains[chain]["confirmed"] = 0
    store_release(base + _NOW, (epoch + 1) << MOVED_BITS | (now // MS & _MOVED))
    for hop in range(hops):
        memzero(address(keys) + seed_at(chain_keys(block + hop, direction), epoch), SEED_SIZE)
    return epoch + 1


@inline
def follow(
    chains: Chains, chain: Int, parity: Int, keys: Bytes, block: Int, hops: Int, direction: Int, suite: Int, fresh_at: Int,
    cells: Int, now: Int, gap: Int, scratch: Bytes,
) -> Int:  # fmt: skip
    """The epoch of an arriving cell of this parity, moving on if it is the next one; -1 where its keys are gone. `gap` in ms."""
    base = address(chains) + chain * _ROW
    word = load_acquire(base + _NOW)
    epoch = word >> MOVED_BITS
    if parity == epoch & 1:
        return epoch
    if epoch == 0 or now // MS - (word & _MOVED) >= gap:  # nothing is older than epoch 0
        return advance(chains, chain, keys, block, hops, direction, suite, fresh_at, cells, now, scratch)
    if load_acquire(base + _KEPT) < epoch:
        return epoch - 1
    return np.int64(-1)


@inline
def forget_before(
    chains: Chains, chain: Int, keys: Bytes, block: Int, hops: Int, direction: Int, now: Int, gap: Int
) -> Int:  # fmt: skip
    """Erase the keys of the epoch before, once they are of no more use; 1 if that was done."""
    base = address(chains) + chain * _ROW
    word = load_acquire(base + _NOW)
    epoch = word >> MOVED_BITS
    if load_acquire(base + _KEPT) == epoch or now // MS - (word & _MOVED) < gap:
        return 0
    store_release(base + _KEPT, epoch)
    for hop in range(hops):
        memzero(address(keys) + key_at(chain_keys(block + hop, direction), epoch + 1), LAYER_KEY_MAX)
    return 1


@inline
def mend_chain(chains: Chains, chain: Int, keys: Bytes, block: Int, hops: Int, direction: Int) -> Int:
    """After a death: erase what it left half derived or not yet erased; 1 if there was anything."""
    base = address(chains) + chain * _ROW
    epoch = load_acquire(base + _NOW) >> MOVED_BITS
    found: Int = 0
    for hop in range(hops):
        at = chain_keys(block + hop, direction)
        seed, key = address(keys) + seed_at(at, epoch + 1), address(keys) + key_at(at, epoch + 1)
        if is_zero(seed, SEED_SIZE) == 0:
            memzero(seed, SEED_SIZE)
            found = 1
        if load_acquire(base + _KEPT) == epoch and is_zero(key, LAYER_KEY_MAX) == 0:
            memzero(key, LAYER_KEY_MAX)
            found = 1
    return found


@inline
def forget_fresh(keys: Bytes, block: Int, hops: Int) -> Int:
    """Erase what a refresh gave, once it has taken over or will not; 1 if there was anything."""
    found: Int = 0
    for hop in range(hops):
        base = address(keys) + (np.int64(block) + hop) * HOP_KEYS
        for at in (_FRESH, CHAIN_KEYS + _FRESH, _FRESH_CK):
            if is_zero(base + at, SEED_SIZE) == 0:
                memzero(base + at, SEED_SIZE)
                found = 1
    return found
