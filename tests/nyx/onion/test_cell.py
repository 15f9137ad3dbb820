"""The opened cell: only zero zeros and a possible sequence are a cell, and the window is as wide forward as back."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nyx.crypto.replay import WINDOW_WORDS
from nyx.crypto.suites import LAYER_KEY_SIZES, SUITE_AEGIS128L, SUITE_CHACHA
from nyx.kernel import address, kernel
from nyx.onion.cell import SEQUENCE_LIMIT, cell_accept, cell_sequence, write_cell_head
from nyx.onion.layer import apply_layer, remove_layer
from nyx.wire.codes import Drop
from nyx.wire.geometry import CELL_SIZE, WINDOW_BITS
from tests.reference.link import Window

AT = 5


@kernel("i8", "u1[]", "i8")
def read(pool: Any, at: int) -> int:
    return cell_sequence(pool, at)


@kernel("i8", "u1[]", "i8", "i8")
def write(pool: Any, at: int, sequence: int) -> int:
    write_cell_head(pool, at, sequence)
    return 0


@kernel("i8", "u8[]", "i8[]", "i8")
def accept(words: Any, commit: Any, sequence: int) -> int:
    return cell_accept(words, 0, address(commit), sequence)


@given(st.integers(0, SEQUENCE_LIMIT - 1))
def test_head_round_trip(sequence: int) -> None:
    pool = np.full(40, 0xAA, np.uint8)
    write(pool, AT, sequence)
    assert pool[AT : AT + 16].tobytes() == sequence.to_bytes(8, "big") + bytes(8)
    assert (np.delete(pool, slice(AT, AT + 16)) == 0xAA).all()
    assert read(pool, AT) == sequence


@given(st.binary(min_size=16, max_size=16))
def test_anything_else_is_no_cell(head: bytes) -> None:
    sequence = int.from_bytes(head[:8], "big")
    expected = sequence if head[8:] == bytes(8) and sequence < SEQUENCE_LIMIT else -1
    assert read(np.frombuffer(bytes(AT) + head, np.uint8).copy(), AT) == expected


def test_one_bit_in_the_zeros_or_above_the_limit() -> None:
    for bit in [*range(64, 128), 0, 1]:
        pool = np.zeros(16, np.uint8)
        pool[bit // 8] ^= 0x80 >> bit % 8
        assert read(pool, 0) == -1, bit


@settings(max_examples=40)
@given(st.lists(st.one_of(st.integers(0, 300), st.integers(0, 3 * WINDOW_BITS)), min_size=1, max_size=30))
def test_window_is_bounded_on_both_sides(sequences: list[int]) -> None:
    words, commit, model = np.zeros(WINDOW_WORDS, np.uint64), np.zeros(1, np.int64), Window()
    for sequence in sequences:
        code = accept(words, commit, sequence)
        if sequence > model.highest + WINDOW_BITS:
            assert code == Drop.TOO_FAR
        else:
            assert code == {"ok": Drop.OK, "replayed": Drop.REPLAYED, "too_old": Drop.TOO_OLD}[model.accept(sequence)]
        assert commit[0] == model.highest + 1


@pytest.mark.parametrize("highest", [-1, 0, 5, 1 << 40])
def test_the_far_edge(highest: int) -> None:
    words, commit = np.zeros(WINDOW_WORDS, np.uint64), np.array([highest + 1], np.int64)
    assert accept(words, commit, highest + WINDOW_BITS + 1) == Drop.TOO_FAR
    assert commit[0] == highest + 1
    assert not words.any()
    assert accept(words, commit, highest + WINDOW_BITS) == Drop.OK
    assert commit[0] == highest + WINDOW_BITS + 1


@pytest.mark.parametrize("suite", [SUITE_CHACHA, SUITE_AEGIS128L])
@pytest.mark.parametrize("hops", [1, 3, 7])
def test_a_bit_flipped_at_any_hop_is_seen_at_the_end(suite: int, hops: int, rng: random.Random) -> None:
    """The client inverts all layers, each hop applies one; a flip anywhere between leaves no cell."""
    keys = [rng.randbytes(LAYER_KEY_SIZES[suite]) for _ in range(hops)]
    clear = bytearray(rng.randbytes(CELL_SIZE))
    clear[:16] = (77).to_bytes(8, "big") + bytes(8)
    sealed = bytearray(clear)
    for key in reversed(keys):
        remove_layer(sealed, key, suite, 0)
    for flipped in (-1, *range(hops)):
        cell = bytearray(sealed)
        for i, key in enumerate(keys):
            if i == flipped:
                bit = rng.randrange(CELL_SIZE * 8)
                cell[bit // 8] ^= 1 << bit % 8
            apply_layer(cell, key, suite, 0)
        sequence = read(np.frombuffer(cell, np.uint8).copy(), 0)
        if flipped < 0:
            assert sequence == 77
            assert cell == clear
        else:
            assert sequence == -1
