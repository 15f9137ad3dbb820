"""The replay window is the set it stands for, and no kill makes it forget."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nyx.crypto import replay
from nyx.crypto.replay import WINDOW_BYTES, WINDOW_WORDS, window_accept, window_check, window_mark
from nyx.kernel import PLAIN, address, kernel
from nyx.wire.codes import Drop
from nyx.wire.geometry import WINDOW_BITS
from tests.reference.link import WINDOW, Window

CODES = {"ok": Drop.OK, "replayed": Drop.REPLAYED, "too_old": Drop.TOO_OLD}
GUARD = 3  # words before and after the window that must not change


@kernel("i8", "u8[]", "i8", "i8[]", "i8[]", "i8", "i8[]")
def accept_all(words: Any, base: int, commit: Any, numbers: Any, n: int, codes: Any) -> int:
    for i in range(n):
        codes[i] = window_accept(words, base, address(commit), np.int64(numbers[i]))
    return 0


@kernel("i8", "u8[]", "i8", "i8", "i8[]", "i8", "i8[]")
def check_and_mark_all(words: Any, base: int, highest: int, numbers: Any, n: int, codes: Any) -> int:
    for i in range(n):
        number = np.int64(numbers[i])
        codes[i] = window_check(words, base, highest, number)
        if codes[i] == 0:
            highest = window_mark(words, base, highest, number)
    return highest


near = st.integers(-130, 130)
far = st.one_of(near, st.integers(-WINDOW_BITS - 70, WINDOW_BITS + 70), st.sampled_from([-WINDOW_BITS, WINDOW_BITS, 1 << 22]))


@st.composite
def numbers(draw: st.DrawFn) -> list[int]:
    found = [draw(st.integers(0, 1 << 40))]
    for step in draw(st.lists(st.tuples(far, st.booleans()), max_size=60)):
        found.append(max(0, (max(found) if step[1] else found[-1]) + step[0]))
    return found


def fresh() -> Any:
    words = np.zeros(WINDOW_WORDS + 2 * GUARD, np.uint64)
    words[:GUARD] = words[-GUARD:] = 0xA5A5A5A5A5A5A5A5
    return words


def test_sizes() -> None:
    assert WINDOW == WINDOW_BITS
    assert WINDOW_BYTES == 131072
    assert WINDOW_WORDS == 16384


@settings(max_examples=20 if PLAIN else 100)
@given(numbers())
def test_accepts_exactly_what_the_set_accepts(sequence: list[int]) -> None:
    words, commit, codes = fresh(), np.zeros(1, np.int64), np.zeros(len(sequence), np.int64)
    accept_all(words, GUARD, commit, np.array(sequence, np.int64), len(sequence), codes)
    model = Window()
    assert codes.tolist() == [CODES[model.accept(n)] for n in sequence]
    assert commit[0] == model.highest + 1
    assert (words[:GUARD] == 0xA5A5A5A5A5A5A5A5).all()
    assert (words[-GUARD:] == 0xA5A5A5A5A5A5A5A5).all()
    bits = int(np.bitwise_count(words[GUARD:-GUARD]).sum())
    assert bits == sum(n > model.highest - WINDOW for n in model.accepted)


@settings(max_examples=20 if PLAIN else 100)
@given(numbers())
def test_check_and_mark_agree_with_accept(sequence: list[int]) -> None:
    values, size = np.array(sequence, np.int64), len(sequence)
    words, commit, codes = fresh(), np.zeros(1, np.int64), np.zeros(size, np.int64)
    accept_all(words, GUARD, commit, values, size, codes)
    others, found = fresh(), np.zeros(size, np.int64)
    assert check_and_mark_all(others, GUARD, -1, values, size, found) == commit[0] - 1
    assert (codes == found).all()
    assert (words == others).all()


@pytest.mark.parametrize("jump", [1, 2, 10, 63, 64, 65, 130, WINDOW_BITS - 1, WINDOW_BITS, WINDOW_BITS + 1])
@pytest.mark.parametrize("second", [1, 2, 9, 64, 100])
def test_bits_of_a_round_ago_are_cleared(jump: int, second: int) -> None:
    first = WINDOW_BITS + jump
    sequence = [*range(300), first, first + second, *range(first - 70, first + second + 70)]
    words, commit, codes = fresh(), np.zeros(1, np.int64), np.zeros(len(sequence), np.int64)
    accept_all(words, GUARD, commit, np.array(sequence, np.int64), len(sequence), codes)
    model = Window()
    assert codes.tolist() == [CODES[model.accept(n)] for n in sequence]


class KilledError(Exception):
    """The worker died here."""


class MortalWords:
    """A window whose writer is killed at its n-th store."""

    def __init__(self, words: Any, lives: int) -> None:
        self.words = words
        self.lives = lives

    def __getitem__(self, at: int) -> Any:
        return self.words[at]

    def __setitem__(self, at: int, value: Any) -> None:
        if self.lives == 0:
            raise KilledError
        self.lives -= 1
        self.words[at] = value


def die(*_: object) -> None:
    raise KilledError


@pytest.mark.skipif(not PLAIN, reason="compiled code cannot be stopped between two stores")
@settings(max_examples=60)
@given(numbers(), st.integers(0, 200), st.booleans())
def test_a_kill_never_makes_a_window_forget(sequence: list[int], lives: int, before_commit: bool) -> None:
    words, commit, codes = fresh(), np.zeros(1, np.int64), np.zeros(len(sequence), np.int64)
    accept_all(words, GUARD, commit, np.array(sequence[:-1], np.int64), len(sequence) - 1, codes)
    model = Window()
    for number in sequence[:-1]:
        model.accept(number)
    mortal: Any = MortalWords(words, lives)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KilledError):
        if before_commit:
            patch.setattr(replay, "store_release", die)
        window_accept(mortal, GUARD, int(commit.ctypes.data), np.int64(sequence[-1]))
    for number in model.accepted:
        assert window_check(words, GUARD, int(commit[0]) - 1, number) != Drop.OK
