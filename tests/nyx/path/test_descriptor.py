"""Descriptors: round trips, and every wrong field refused though its signature is right."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.crypto.keys import StaticKeys
from nyx.path import cbor
from nyx.path import descriptor as module
from nyx.path.cbor import FormError
from nyx.path.descriptor import open_descriptor
from tests.nyx.path.networks import Member, descriptor, entropy

KEYS = StaticKeys.generate(entropy())
OTHER = StaticKeys.generate(entropy(2))
GOOD = descriptor(KEYS, Member("10.0.0.1"))


def resigned(change):
    """The record with its map changed and signed again."""
    body = cbor2.loads(cbor2.loads(GOOD.sign(KEYS))[0])
    change(body)
    raw = cbor.encode(body)
    return cbor.encode([raw, cbor.sign(KEYS.identity_seed, module.PURPOSE, raw)])


@given(
    st.text("abcXYZ-_ 09", max_size=32),
    st.lists(st.tuples(st.sampled_from(["1.2.3.4", "2001:db8::1", "127.0.0.1"]), st.integers(1, 65535)), min_size=1, max_size=4),
    st.integers(0, 2**63 - 1),
    st.integers(0, 64),
    st.booleans(),
)
def test_a_descriptor_comes_back_as_signed(alias, addresses, number, effort, exit_flag):
    made = descriptor(
        KEYS,
        Member("1.1.1.1", exit=exit_flag),
        alias,
        addresses=tuple(addresses),
        sequence=number,
        boot_epoch=number,
        effort=effort,
    )
    found = open_descriptor(made.sign(KEYS))
    assert found == made
    assert found.exit is exit_flag
    assert found.id == KEYS.public.node_id


def test_only_the_node_itself_signs():
    with pytest.raises(ValueError, match="signed by the node"):
        GOOD.sign(OTHER)


@pytest.mark.parametrize("at", range(0, len(GOOD.sign(KEYS)), 61))
def test_one_flipped_bit_anywhere_is_refused(at):
    data = bytearray(GOOD.sign(KEYS))
    data[at] ^= 1 << (at % 8)
    with pytest.raises(FormError):
        open_descriptor(bytes(data))


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    with pytest.raises(FormError):
        open_descriptor(data)


def test_truncated_extended_and_oversized_records_are_refused():
    data = GOOD.sign(KEYS)
    for wrong in (
        data[:-1],
        data + b"\0",
        data + bytes(module.SIZE_MAX),
        cbor.encode([data]),
        cbor.encode({}),
        cbor.encode([1, 2]),
    ):
        with pytest.raises(FormError):
            open_descriptor(wrong)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(version=2), "version 2 is unknown"),
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m.pop("effort"), "effort is missing"),
        (lambda m: m.update(node_id=bytes(32)), "not the hash of the identity"),
        (lambda m: m.update(alias=1), "alias is not printable"),
        (lambda m: m.update(alias="a\n"), "alias is not printable"),
        (lambda m: m.update(alias="a" * 33), "at most 32"),
        (lambda m: m.update(link_ek=b"x"), "link_ek is not 1184 bytes"),
        (lambda m: m.update(onion=[]), "one or two pairs"),
        (lambda m: m.update(onion=[[b""]]), "one or two pairs"),
        (lambda m: m.update(onion=m["onion"] * 3), "at most 2"),
        (lambda m: m.update(addresses=[]), "addresses is empty"),
        (lambda m: m.update(addresses=[[b"\x01\x02\x03\x04", 0]]), "port is 0"),
        (lambda m: m.update(addresses=[[b"\x01\x02\x03", 1]]), "4 or 16 bytes"),
        (lambda m: m.update(addresses=[[bytes(4), 1]]), "is no address of a node"),
        (lambda m: m.update(addresses=[[b"\xe0\0\0\1", 1]]), "is no address of a node"),
        (lambda m: m.update(addresses=[[bytes(10) + b"\xff\xff\x7f\0\0\1", 1]]), "is no address of a node"),
        (lambda m: m.update(addresses=m["addresses"] * 5), "at most 4"),
        (lambda m: m.update(flags=["exit", "exit"]), "each once"),
        (lambda m: m.update(link_suites=[2, 1]), "sorted list of suites"),
        (lambda m: m.update(layer_suites=[]), "sorted list of suites"),
        (lambda m: m.update(sequence=-1), "sequence is not a whole number"),
        (lambda m: m.update(sequence=1.0), "sequence is not a whole number"),
        (lambda m: m.update(sequence=2**64), "sequence is not a whole number"),
        (lambda m: m.update(effort=True), "effort is not a whole number"),
        (lambda m: m.update(valid_until=m["valid_from"]), "not after"),
    ],
)
def test_a_wrong_field_is_named(change, words):
    with pytest.raises(FormError, match=words):
        open_descriptor(resigned(change))


@pytest.mark.parametrize(
    "data",
    [
        b"\x9f\xff",
        b"\x18\x01",
        b"\xa2aa\x01aa\x02",
        b"\xa2ab\x01aa\x02",
        b"\xd8\x1c\x80",
        b"\xc2A\x01",
        b"\x81" * 5000,
        b"\x5b" + b"\x7f" * 8,
    ],
)
def test_what_is_not_deterministic_is_refused(data):
    with pytest.raises(FormError):
        cbor.decode(data)


SMALL_ORDER = [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]
UNREDUCED = b"\xff" * 1184


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("link_x25519", point) for point in SMALL_ORDER),
        *(("onion", [[point, KEYS.public.onion_ek]]) for point in SMALL_ORDER),
        ("link_ek", UNREDUCED),
        ("onion", [[KEYS.public.onion_x25519, UNREDUCED]]),
    ],
)
def test_a_key_that_no_handshake_can_use_is_refused(name, value):
    """Otherwise whoever chose that relay would meet the error in the middle of a handshake."""
    with pytest.raises(FormError, match="a key is none"):
        open_descriptor(resigned(lambda body: body.update({name: value})))


def test_a_signature_has_one_purpose():
    signature = cbor.sign(KEYS.identity_seed, b"one", b"body")
    assert cbor.signed_by(KEYS.public.identity, b"one", b"body", signature)
    assert not cbor.signed_by(KEYS.public.identity, b"two", b"body", signature)
    assert not cbor.signed_by(bytes(32), b"one", b"body", signature)
