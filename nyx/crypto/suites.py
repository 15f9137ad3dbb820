"""Cipher suites: their numbers, key sizes, and which of them this processor may use. Source: docs/protocol.md, "Suites"."""

from collections.abc import Iterable
from typing import Final

from nyx.wire.geometry import AEGIS256_KEY_SIZE, AEGIS_KEY_SIZE, CHACHA_KEY_SIZE, LAYER_KEY_AEGIS, LAYER_KEY_CHACHA

SUITE_CHACHA: Final = 1
SUITE_AEGIS128L: Final = 2
SUITE_AEGIS256: Final = 3  # links only; there is no layer of it

SUITE_NAMES: Final = {SUITE_CHACHA: "chacha20poly1305", SUITE_AEGIS128L: "aegis128l", SUITE_AEGIS256: "aegis256"}
LINK_KEY_SIZES: Final = {SUITE_CHACHA: CHACHA_KEY_SIZE, SUITE_AEGIS128L: AEGIS_KEY_SIZE, SUITE_AEGIS256: AEGIS256_KEY_SIZE}
LINK_ORDER: Final = (SUITE_AEGIS128L, SUITE_AEGIS256, SUITE_CHACHA)  # the fastest first
LAYER_KEY_SIZES: Final = {SUITE_CHACHA: LAYER_KEY_CHACHA, SUITE_AEGIS128L: LAYER_KEY_AEGIS}
# Cells under one data layer key, before its security bound says stop.
LAYER_CELL_LIMITS: Final = {SUITE_CHACHA: 1 << 24, SUITE_AEGIS128L: 1 << 30}


def available_suites(flags: str) -> list[int]:
    """Suites that a processor with these feature flags (words, as in /proc/cpuinfo) may use, the preferred first.

    AEGIS needs AES instructions: without them libsodium falls back to code that is slow and not constant time.
    """
    have = set(flags.split())
    fast = "aes" in have and bool(have & {"avx", "asimd", "neon"})
    return list(LINK_ORDER) if fast else [SUITE_CHACHA]


def with_layers(suites: Iterable[int]) -> list[int]:
    """Those of the suites that onion layers have."""
    return [suite for suite in suites if suite in LAYER_KEY_SIZES]
