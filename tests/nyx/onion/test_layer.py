"""The layer: the twin's bytes, its own inverse, a strong permutation, a tweak that separates, nothing left in the scratch."""

import random
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nyx.crypto.scratch import SCRATCH_CONSTANT, SCRATCH_TWEAK, new_scratch
from nyx.crypto.suites import LAYER_KEY_SIZES, SUITE_AEGIS128L, SUITE_CHACHA
from nyx.kernel import PLAIN
from nyx.onion.layer import apply_layer, layer_batch, remove_layer, tweak_bytes, unlayer_batch
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE
from tests.reference import layer as twin

SUITES = [SUITE_CHACHA, SUITE_AEGIS128L]
BITS = CELL_SIZE * 8

suites = st.sampled_from(SUITES)
tweaks = st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, BUILD_SLOTS - 1), st.integers(0, (1 << 40) - 1))


def layers(cells: Any, key: bytes, suite: int, tweak: tuple[int, int, int, int], *, undo: bool, scratch: Any = None) -> Any:
    """Every row of `cells` through one kernel call; the result is a new array."""
    found = np.ascontiguousarray(cells, np.uint8).copy()
    n = len(found)
    ats = np.arange(n, dtype=np.int64) * CELL_SIZE
    columns = [np.full(n, value, np.int64) for value in (0, suite, *tweak)]
    run: Any = unlayer_batch if undo else layer_batch
    keys = np.frombuffer(key, np.uint8).copy()
    assert run(found.reshape(-1), ats, *columns, n, keys, new_scratch() if scratch is None else scratch) == n
    return found


def same_cells(cell: bytes, count: int) -> Any:
    return np.tile(np.frombuffer(cell, np.uint8), (count, 1))


@settings(max_examples=25 if PLAIN else 100)
@given(st.integers(0, 1 << 30), suites, tweaks)
def test_the_twin_makes_the_same_bytes(seed: int, suite: int, tweak: tuple[int, int, int, int]) -> None:
    rng = random.Random(seed)
    key, cell = rng.randbytes(LAYER_KEY_SIZES[suite]), rng.randbytes(CELL_SIZE)
    raw = twin.tweak(*tweak)
    assert tweak_bytes(*tweak) == raw
    forward = twin.layer(cell, suite, key, raw)
    backward = twin.unlayer(cell, suite, key, raw)
    assert twin.unlayer(forward, suite, key, raw) == cell
    work = bytearray(cell)
    apply_layer(work, key, suite, *tweak)
    assert work == forward
    remove_layer(work, key, suite, *tweak)
    assert work == cell
    remove_layer(work, key, suite, *tweak)
    assert work == backward
    apply_layer(work, key, suite, *tweak)
    assert work == cell


def test_a_batch_mixes_suites_keys_and_tweaks(rng: random.Random) -> None:
    n, stride = 12, CELL_SIZE + 56
    pool = np.frombuffer(bytearray(rng.randbytes(n * stride)), np.uint8)
    before = pool.tobytes()
    suite = [rng.choice(SUITES) for _ in range(n)]
    tweak = [(rng.randrange(2), rng.randrange(4), rng.randrange(7), rng.randrange(1 << 40)) for _ in range(n)]
    keys = [rng.randbytes(LAYER_KEY_SIZES[s]) for s in suite]
    ends = np.cumsum([0] + [len(k) for k in keys])
    columns = [np.array(c, np.int64) for c in (suite, *zip(*tweak, strict=True))]
    ats, key_ats = np.arange(n) * stride + 24, ends[:-1].astype(np.int64)
    block = np.frombuffer(b"".join(keys), np.uint8).copy()
    apply: Any = layer_batch
    apply(pool, ats, key_ats, *columns, n, block, new_scratch())
    expected = bytearray(before)
    for i in range(n):
        at = int(ats[i])
        cell = before[at : at + CELL_SIZE]
        expected[at : at + CELL_SIZE] = twin.layer(cell, suite[i], keys[i], twin.tweak(*tweak[i]))
    assert pool.tobytes() == bytes(expected)
    remove: Any = unlayer_batch
    remove(pool, ats, key_ats, *columns, n, block, new_scratch())
    assert pool.tobytes() == before


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("suite", SUITES)
def test_every_flipped_bit_changes_the_whole_cell(suite: int, undo: bool, rng: random.Random) -> None:
    key, cell = rng.randbytes(LAYER_KEY_SIZES[suite]), rng.randbytes(CELL_SIZE)
    bits = np.array(sorted(rng.sample(range(BITS), 150)) if PLAIN else range(BITS))
    cells = same_cells(cell, len(bits) + 1)
    cells[np.arange(len(bits)), bits // 8] ^= (1 << bits % 8).astype(np.uint8)
    out = layers(cells, key, suite, (0, 0, 0, 3), undo=undo)
    changed = np.unpackbits(out[:-1] ^ out[-1], axis=1)
    total = changed.sum(axis=1)  # mean 4896, deviation 49
    assert total.min() > 4896 - 7 * 50
    assert total.max() < 4896 + 7 * 50
    assert changed[:, :128].sum(axis=1).min() > 64 - 7 * 6  # the left part alone: mean 64, deviation 5.7
    if not PLAIN:
        place = changed.mean(axis=0)  # each output bit, over all input bits: mean 0.5, deviation 0.005
        assert abs(place - 0.5).max() < 0.04


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("suite", SUITES)
def test_equal_cells_in_all_slots_come_out_different(suite: int, undo: bool, rng: random.Random) -> None:
    key, cell = rng.randbytes(LAYER_KEY_SIZES[suite]), rng.randbytes(CELL_SIZE)
    tweaks_ = [(d, k, s, e) for d in (0, 1) for k in (0, 1, 2, 3) for s in range(BUILD_SLOTS) for e in (0, 1, (1 << 40) - 1)]
    if PLAIN:
        tweaks_ = [t for t in tweaks_ if t[3] != 1]
    out = np.array([layers(same_cells(cell, 1), key, suite, t, undo=undo)[0] for t in tweaks_])
    bits = np.unpackbits(out, axis=1)
    for a, b in combinations(range(len(tweaks_)), 2):
        assert 4896 - 8 * 50 < int((bits[a] ^ bits[b]).sum()) < 4896 + 8 * 50, (tweaks_[a], tweaks_[b])


@pytest.mark.parametrize("suite", SUITES)
def test_every_part_of_the_key_matters(suite: int, rng: random.Random) -> None:
    key, cell = rng.randbytes(LAYER_KEY_SIZES[suite]), rng.randbytes(CELL_SIZE)
    base = layers(same_cells(cell, 1), key, suite, (0, 0, 0, 0), undo=False)
    ignored = (3, 4, 7, 8, 11, 12, 15)  # Poly1305 clears bits of these bytes of its key
    clamped = {start + i for start in (16, 112) for i in ignored}
    for byte in range(len(key)):
        if suite == SUITE_CHACHA and byte in clamped:
            continue
        other = bytearray(key)
        other[byte] ^= 4
        out = layers(same_cells(cell, 1), bytes(other), suite, (0, 0, 0, 0), undo=False)
        assert (out != base).any(), byte


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("suite", SUITES)
def test_scratch_is_wiped(suite: int, undo: bool, rng: random.Random) -> None:
    scratch = new_scratch()
    key, cell = rng.randbytes(LAYER_KEY_SIZES[suite]), rng.randbytes(CELL_SIZE)
    layers(same_cells(cell, 3), key, suite, (1, 2, 3, 4), undo=undo, scratch=scratch)
    assert scratch[SCRATCH_TWEAK : SCRATCH_TWEAK + 16].tobytes() == tweak_bytes(1, 2, 3, 4)
    public = np.r_[SCRATCH_TWEAK : SCRATCH_TWEAK + 16, SCRATCH_CONSTANT : SCRATCH_CONSTANT + 16]
    assert not np.delete(scratch, public).any()


@pytest.mark.parametrize(
    ("cell", "key", "suite", "tweak"),
    [
        (1223, 80, SUITE_AEGIS128L, (0, 0, 0, 0)),
        (1224, 79, SUITE_AEGIS128L, (0, 0, 0, 0)),
        (1224, 80, SUITE_CHACHA, (0, 0, 0, 0)),
        (1224, 80, 3, (0, 0, 0, 0)),
        (1224, 80, SUITE_AEGIS128L, (2, 0, 0, 0)),
        (1224, 80, SUITE_AEGIS128L, (0, 4, 0, 0)),
        (1224, 80, SUITE_AEGIS128L, (0, 0, 7, 0)),
        (1224, 80, SUITE_AEGIS128L, (0, 0, 0, 1 << 40)),
    ],
)
def test_what_does_not_fit_is_refused(cell: int, key: int, suite: int, tweak: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="of"):
        apply_layer(bytearray(cell), bytes(key), suite, *tweak)
