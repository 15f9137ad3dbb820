"""What the directory is made of, under valid signatures where there are any; the pin; the rules of an exit."""

import contextlib
import ipaddress
from typing import Final

from nyx.errors import ConfigError
from nyx.path import cbor as form
from nyx.path import descriptor as records
from nyx.path import directory as snapshots
from nyx.path.cbor import FormError
from nyx.path.directory import DirectoryError, Pin, verify
from nyx.path.policy import AddressClass, Policy, parse_rule
from tests.fuzz.script import Script

NOW: Final = 1_500_000
SEED: Final = b"\x07" * 32  # of the node and of the signer of every snapshot in the corpus
SIGNER: Final = form.identity_of(SEED)


def cbor(data: bytes) -> bool:
    """One value has one encoding."""
    try:
        found = form.decode(data)
    except FormError:
        return False
    assert form.encode(found) == data
    for check in (
        form.integer,
        lambda v, n: form.octets(v, n, 4),
        lambda v, n: form.text(v, n, 9),
        lambda v, n: form.items(v, n, 3),
    ):
        with contextlib.suppress(FormError):
            check(found, "value")
    with contextlib.suppress(FormError):
        form.fields(found, "a", "b")
    return True


def descriptor(data: bytes) -> bool:
    """A record: as it is where the first byte is 0, else a body that its own identity signed."""
    script = Script(data)
    if script.number() == 0:
        with contextlib.suppress(FormError):
            records.open_descriptor(script.rest())
        return False
    body = script.rest()
    record = form.encode([body, form.sign(SEED, records.PURPOSE, body)])
    try:
        found = records.open_descriptor(record)
    except FormError:
        return False
    assert found.public.identity == SIGNER
    assert 1 <= len(found.addresses) <= records.ADDRESSES_MAX
    assert found.valid_from < found.valid_until
    one_pair = form.encode([[found.public.onion_x25519, found.public.onion_ek]])
    if one_pair in body:
        assert form.encode(found._map()) == body
    return True


def snapshot(data: bytes) -> bool:
    """The same of a snapshot; a refusal has a reason."""
    script = Script(data)
    raw = script.number() == 0
    body = script.rest()
    whole = body if raw else form.encode([body, [[SIGNER, form.sign(SEED, snapshots.PURPOSE, body)]]])
    try:
        found = verify(whole, [SIGNER], 1, NOW, Pin(3, bytes(32)))
    except DirectoryError as error:
        assert str(error).startswith(f"directory {error.reason.value}: ")
        return False
    assert not raw, "nobody signed it"
    assert found.sequence >= 3
    assert all(found.by_id(node.id) is node and found.by_link_key(node.public.link_x25519) is node for node in found.nodes)
    return True


def pin(data: bytes) -> bool:
    """The line that remembers a snapshot."""
    try:
        found = Pin.from_bytes(data)
    except ValueError:
        return False
    assert len(found.digest) == 32
    assert Pin.from_bytes(found.to_bytes()) == found
    return True


def exit_policy(data: bytes) -> bool:
    """Rules, a line each; the first 18 bytes are an address and a port to ask about."""
    script = Script(data)
    packed, port = script.take(16), script.number(2)
    lines = script.rest().decode("utf-8", "surrogateescape").split("\n")
    try:
        policy = Policy.parse(lines)
    except ConfigError as error:
        assert len(error.problems) >= 1
        return False
    for line in lines:
        assert parse_rule(str(parse_rule(line))) == parse_rule(line)
    for address in (ipaddress.IPv6Address(packed), ipaddress.IPv4Address(packed[:4])):
        allowed = policy.allows(address, port)
        assert not allowed or policy.may_allow(port)
        assert not allowed or policy.classify(address) is not AddressClass.NEVER
        assert not allowed or not (address.is_multicast or address.is_unspecified)
    return True
