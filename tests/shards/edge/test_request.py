"""Hosts and isolation keys."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.edge.reasons import Reason, reason_of_reply
from shards.edge.request import FORM_IPV4, FORM_IPV6, FORM_NAME, Host, isolation_key, parse_host


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (b"example.com", Host(FORM_NAME, b"example.com")),
        (b"Example.COM.", Host(FORM_NAME, b"example.com.")),
        (b"_dmarc.a-b.xn--nxasmq6b", Host(FORM_NAME, b"_dmarc.a-b.xn--nxasmq6b")),
        (b"localhost", Host(FORM_NAME, b"localhost")),
        (b"127.0.0.1", Host(FORM_IPV4, bytes((127, 0, 0, 1)))),
        (b"::1", Host(FORM_IPV6, IPv6Address("::1").packed)),
        (b"[2001:db8::5]", Host(FORM_IPV6, IPv6Address("2001:db8::5").packed)),
    ],
)
def test_hosts(text, host):
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b".",
        b"a..b",
        b"-a.com",
        b"a-.com",
        b"a b",
        b"a\0b",
        b"a\nb",
        "ü.de".encode(),
        b"a" * 64 + b".de",
        b"a." * 130 + b"de",
        b"127.1",
        b"0x7f.1",
        b"2130706433",
        b"1.2.3.4.",
        b"256.1.1.1",
        b"[127.0.0.1]",
        b"fe80::1%eth0",
        b"[::1",
        b":::",
        b"a.b:80",
        b"0x",
    ],
)
def test_what_is_no_host(text):
    assert parse_host(text) is None


@given(st.binary(max_size=300))
def test_any_bytes(text):
    host = parse_host(text)
    if host is not None:
        assert len(host.address) <= 254
        assert parse_host(str(host).encode()) == host


@given(st.ip_addresses())
def test_addresses_survive_their_text(address):
    host = parse_host(str(address).encode())
    assert host == Host(FORM_IPV4 if isinstance(address, IPv4Address) else FORM_IPV6, address.packed)


@given(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), st.tuples(st.binary(max_size=20), st.binary(max_size=20)))
def test_isolation_keys_tell_credentials_apart(a, b):
    assert (isolation_key(*a) == isolation_key(*b)) == (a == b)
    assert isolation_key(*a)


def test_every_reason_has_all_its_faces():
    for reason in Reason:
        assert 0 <= reason.facts.reply <= 8
        assert (reason.facts.reply == 0) == (reason is Reason.NONE) == (not reason.text)
    assert [reason_of_reply(n).facts.reply for n in range(9)] == list(range(9))
    assert reason_of_reply(200) is Reason.EXIT_FAILED
