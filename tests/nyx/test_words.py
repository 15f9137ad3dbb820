"""Words at an address, aligned or not, and their byte order; the same in both modes."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nyx.kernel import address, kernel, load_word, store_word, swap_word


@kernel("i8", "u1[]", "i8", "i8", "i8[]")
def use_words(data: Any, at: int, value: int, out: Any) -> int:
    base = address(data)
    out[0] = load_word(base + at)
    store_word(base + at, value)
    out[1] = load_word(base + at)
    out[2] = swap_word(value)
    return 0


@given(st.binary(min_size=24, max_size=24), st.integers(0, 16), st.integers(-(1 << 63), (1 << 63) - 1))
def test_words(data: bytes, at: int, value: int) -> None:
    vector, out = np.frombuffer(bytearray(data), np.uint8), np.zeros(3, np.int64)
    use_words(vector, at, value, out)
    assert out[0] == int.from_bytes(data[at : at + 8], "little", signed=True)
    raw = value.to_bytes(8, "little", signed=True)
    assert vector.tobytes() == data[:at] + raw + data[at + 8 :]
    assert out[1] == value
    assert out[2] == int.from_bytes(raw, "big", signed=True)
