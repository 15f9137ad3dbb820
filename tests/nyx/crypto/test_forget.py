"""Secrets held as bytes are overwritten where they stand, and derivation leaves no copy of what it gave."""

import ctypes
import hashlib
import hmac
import random

import pytest

from nyx.crypto import schedule
from nyx.crypto.forget import REACHES, forget


def _where(data: bytes) -> int:
    return id(data) + bytes.__basicsize__ - 1


@pytest.mark.parametrize("size", [16, 17, 32, 80, 176])
def test_what_is_forgotten_is_zeros_and_whole_around(rng: random.Random, size: int) -> None:
    secret = rng.randbytes(size)
    at = _where(secret)
    forget(secret)
    assert REACHES
    assert secret == bytes(size)
    assert ctypes.string_at(at, size + 1) == bytes(size + 1)


def test_short_ones_stay() -> None:
    for size in range(16):
        secret = bytes([7]) * size
        forget(secret)
        assert secret == bytes([7]) * size


@pytest.mark.parametrize("size", [1, 16, 31, 32, 33, 64, 80, 176])
def test_hkdf_gives_what_it_gave_while_it_overwrites_its_blocks(rng: random.Random, size: int) -> None:
    prk, label = rng.randbytes(32), b"label"
    plain, block = b"", b""
    for counter in range(1, 7):
        block = hmac.digest(prk, block + label + bytes((counter,)), hashlib.sha256)
        plain += block
    kept = bytes(bytearray(prk))
    assert schedule.expand(prk, label, size) == plain[:size]
    assert prk == kept


def test_a_circuits_keys_are_right_and_their_inputs_untouched(rng: random.Random) -> None:
    t1, prk0, shared = (rng.randbytes(32) for _ in range(3))
    before = [bytes(bytearray(part)) for part in (t1, prk0, shared)]
    one, other = (schedule.CircuitKeys(t1, prk0, shared) for _ in range(2))
    assert (one.forward_seed, one.backward_seed, one.ck) == (other.forward_seed, other.backward_seed, other.ck)
    assert [t1, prk0, shared] == before
    assert any(one.forward_seed)
    assert any(one.answer_seal)
