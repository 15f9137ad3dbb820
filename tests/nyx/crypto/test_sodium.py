"""Published vectors, through the same calls that kernels make, and through the twin."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nyx.crypto import sodium
from nyx.kernel import Int, address, kernel
from tests.reference import primitives as twin

VECTORS: dict[str, Any] = json.loads(Path(__file__).parents[2].joinpath("vectors", "primitives.json").read_text())

SEAL, OPEN = 0, 1
AEADS = ["chacha20poly1305", "aegis128l", "aegis256"]
SIPHASH, SIPHASHX, POLY1305, HCHACHA, CHACHA_XOR = range(5)


@kernel("i8", "i8", "i8", "u1[]", "u1[]", "u1[]", "u1[]", "u1[]")
def aead(aegis: int, way: int, key: Any, nonce: Any, ad: Any, data: Any, tag: Any) -> int:
    c, t, a, n, k = address(data), address(tag), address(ad), address(nonce), address(key)
    if aegis == 1 and way == SEAL:
        return sodium.aegis128l_encrypt(c, t, 0, c, data.size - 1, a, ad.size - 1, 0, n, k)
    if aegis == 1:
        return sodium.aegis128l_decrypt(c, 0, c, data.size - 1, t, a, ad.size - 1, n, k)
    if aegis == 2 and way == SEAL:
        return sodium.aegis256_encrypt(c, t, 0, c, data.size - 1, a, ad.size - 1, 0, n, k)
    if aegis == 2:
        return sodium.aegis256_decrypt(c, 0, c, data.size - 1, t, a, ad.size - 1, n, k)
    if way == SEAL:
        return sodium.chacha20poly1305_encrypt(c, t, 0, c, data.size - 1, a, ad.size - 1, 0, n, k)
    return sodium.chacha20poly1305_decrypt(c, 0, c, data.size - 1, t, a, ad.size - 1, n, k)


@kernel("i8", "i8", "u1[]", "u1[]", "u1[]", "u1[]")
def short(which: int, out: Any, data: Any, key: Any, extra: Any) -> int:
    o, d, k, e = address(out), address(data), address(key), address(extra)
    if which == SIPHASH:
        return sodium.siphash24(o, d, data.size - 1, k)
    if which == SIPHASHX:
        return sodium.siphashx24(o, d, data.size - 1, k)
    if which == POLY1305:
        return sodium.poly1305(o, d, data.size - 1, k)
    if which == HCHACHA:
        return sodium.hchacha20(o, d, k, e)
    return sodium.chacha20_xor(o, d, data.size - 1, e, k)


@kernel("i8", "u1[]", "u1[]")
def compare(a: Any, b: Any) -> Int:
    equal = np.int64(sodium.memcmp(address(a), address(b), a.size) == 0)
    zero = np.int64(sodium.is_zero(address(a), a.size))
    sodium.memzero(address(b), b.size)
    return equal * 2 + zero


def vector(data: bytes) -> NDArray[np.uint8]:
    """The bytes and one more, so that nothing is empty; kernels above pass size - 1."""
    return np.frombuffer(bytearray(data + b"\0"), np.uint8)


def run_aead(suite: str, way: int, case: dict[str, str], data: bytes) -> tuple[int, bytes, bytes]:
    work, tag = vector(data), vector(bytes.fromhex(case["tag"]) if way == OPEN else bytes(32))
    key, nonce, ad = (vector(bytes.fromhex(case[name])) for name in ("key", "nonce", "ad"))
    code = aead(AEADS.index(suite), way, key, nonce, ad, work, tag)
    return code, work[:-1].tobytes(), tag.tobytes()


def run_short(which: int, size: int, data: bytes, key: bytes, extra: bytes) -> bytes:
    out = np.zeros(max(size, 1), np.uint8)
    assert short(which, out, vector(data), vector(key), vector(extra)) == 0
    return out.tobytes()[:size]


@pytest.mark.parametrize("suite", AEADS)
def test_aead_vectors(suite: str) -> None:
    for case in VECTORS[suite]["valid"]:
        message, ciphertext, tag = (bytes.fromhex(case[n]) for n in ("message", "ciphertext", "tag"))
        code, sealed, found = run_aead(suite, SEAL, case, message)
        assert (code, sealed, found[: len(tag)]) == (0, ciphertext, tag)
        assert run_aead(suite, OPEN, case, ciphertext)[:2] == (0, message)
        wrong = dict(case, tag=case["tag"][:-2] + f"{int(case['tag'][-2:], 16) ^ 1:02x}")
        assert run_aead(suite, OPEN, wrong, ciphertext)[0] != 0
    for case in VECTORS[suite].get("invalid", ()):
        assert run_aead(suite, OPEN, case, bytes.fromhex(case["ciphertext"]))[0] != 0


@pytest.mark.parametrize("suite", ["aegis128l", "aegis256"])
def test_aead_vectors_of_the_twin(suite: str) -> None:
    seal, open_ = (getattr(twin, f"{suite}_{way}") for way in ("seal", "open"))
    for case in VECTORS[suite]["valid"]:
        key, nonce, ad, message, ciphertext, tag = (
            bytes.fromhex(case[n]) for n in ("key", "nonce", "ad", "message", "ciphertext", "tag")
        )
        assert seal(key, nonce, message, ad) == (ciphertext, tag)
        assert open_(key, nonce, ciphertext, tag, ad) == message
    for case in VECTORS[suite]["invalid"]:
        key, nonce, ad, ciphertext, tag = (bytes.fromhex(case[n]) for n in ("key", "nonce", "ad", "ciphertext", "tag"))
        assert open_(key, nonce, ciphertext, tag, ad) is None


@pytest.mark.parametrize(("name", "which", "size"), [("siphash24", SIPHASH, 8), ("siphashx24", SIPHASHX, 16)])
def test_siphash_vectors(name: str, which: int, size: int) -> None:
    key = bytes(range(16))
    for length, output in VECTORS[name]["lengths"].items():
        message = bytes(range(int(length)))
        assert run_short(which, size, message, key, b"") == bytes.fromhex(output)
        assert twin.siphash(key, message, size) == bytes.fromhex(output)


def test_poly1305_vector() -> None:
    for case in VECTORS["poly1305"]["valid"]:
        key, message, tag = (bytes.fromhex(case[n]) for n in ("key", "message", "tag"))
        assert run_short(POLY1305, 16, message, key, b"") == tag == twin.poly1305(key, message)


def test_hchacha20_vector() -> None:
    for case in VECTORS["hchacha20"]["valid"]:
        key, data, output = (bytes.fromhex(case[n]) for n in ("key", "input", "output"))
        assert run_short(HCHACHA, 32, data, key, sodium.HCHACHA_CONSTANT) == output == twin.hchacha20(key, data)


def test_hchacha20_reads_the_constant() -> None:
    key, data, constant = bytes(range(32)), bytes(range(16)), bytes(range(16, 32))
    assert run_short(HCHACHA, 32, data, key, constant) == twin.hchacha20(key, data, constant)


def test_chacha20_vector() -> None:
    for case in VECTORS["chacha20"]["valid"]:
        key, nonce, keystream = (bytes.fromhex(case[n]) for n in ("key", "nonce", "keystream"))
        assert run_short(CHACHA_XOR, len(keystream), bytes(len(keystream)), key, nonce) == keystream
        assert twin.chacha20_xor(key, nonce, bytes(len(keystream))) == keystream


def test_constant_time_comparisons_and_wiping() -> None:
    for a, b, answer in ((bytes(16), bytes(16), 3), (bytes(15) + b"\1", bytes(16), 0), (b"\1" * 16, b"\1" * 16, 2)):
        left, right = np.frombuffer(a, np.uint8).copy(), np.frombuffer(b, np.uint8).copy()
        assert compare(left, right) == answer
        assert not right.any()
