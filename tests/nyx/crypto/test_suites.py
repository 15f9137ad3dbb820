"""Suites: AEGIS only where the processor has the instructions, and sizes that agree with the geometry."""

import pytest

from nyx.crypto.suites import (
    LAYER_CELL_LIMITS,
    LAYER_KEY_SIZES,
    LINK_KEY_SIZES,
    LINK_ORDER,
    SUITE_AEGIS128L,
    SUITE_AEGIS256,
    SUITE_CHACHA,
    SUITE_NAMES,
    available_suites,
    with_layers,
)
from nyx.link.session import SESSION_KEY_SIZE
from nyx.wire.geometry import LAYER_KEY_MAX


@pytest.mark.parametrize(
    ("flags", "suites"),
    [
        ("fpu sse2 aes avx avx2", [SUITE_AEGIS128L, SUITE_AEGIS256, SUITE_CHACHA]),
        ("fp asimd evtstrm aes pmull", [SUITE_AEGIS128L, SUITE_AEGIS256, SUITE_CHACHA]),
        ("fpu sse2 vaes avx", [SUITE_CHACHA]),
        ("fpu aes", [SUITE_CHACHA]),
        ("", [SUITE_CHACHA]),
    ],
)
def test_available(flags: str, suites: list[int]) -> None:
    assert available_suites(flags) == suites


def test_keys_fit_where_they_are_kept() -> None:
    assert max(LINK_KEY_SIZES.values()) <= SESSION_KEY_SIZE
    assert max(LAYER_KEY_SIZES.values()) == LAYER_KEY_MAX
    assert LINK_KEY_SIZES.keys() == set(LINK_ORDER) == SUITE_NAMES.keys()
    assert LAYER_KEY_SIZES.keys() == LAYER_CELL_LIMITS.keys() == LINK_KEY_SIZES.keys() - {SUITE_AEGIS256}
    assert with_layers(LINK_ORDER) == [SUITE_AEGIS128L, SUITE_CHACHA]
