"""Exit policy: what is refused whatever the rules say, order of rules, texts of errors, and that text and rule agree."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.errors import ConfigError
from nyx.path.policy import AddressClass, Policy, classify, parse_rule

NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "::",
    "ff02::1",
    "::7f00:1",
    "2002:7f00:1::1",
    "2001:0:7f00:1::",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "::ffff:0.0.0.0",
    "100::1",
]
LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]
PRIVATE = [
    "10.0.0.1",
    "172.16.5.4",
    "192.168.1.1",
    "100.64.0.1",
    "fd00::1",
    "::ffff:10.1.1.1",
    "fec0::1",
    "192.0.2.7",
    "198.18.0.1",
]
LINK_LOCAL = ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]

addresses = st.one_of(
    st.ip_addresses(v=4), st.ip_addresses(v=6), st.sampled_from([ip_address(a) for a in NEVER + LOOPBACK + PRIVATE + LINK_LOCAL])
)
ports = st.integers(1, 65535)
rule_texts = st.builds(
    "{} {}:{}".format,
    st.sampled_from(["accept", "reject"]),
    st.sampled_from(
        ["*", "public", "private", "loopback", "link-local", "own", "10.0.0.0/8", "1.1.1.1/32", "[2606:4700::/32]", "[::1/128]"]
    ),
    st.sampled_from(["*", "80", "80,443", "1-1024", "22,8000-9000"]),
)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (AddressClass.NEVER, NEVER),
        (AddressClass.LOOPBACK, LOOPBACK),
        (AddressClass.PRIVATE, PRIVATE),
        (AddressClass.LINK_LOCAL, LINK_LOCAL),
        (AddressClass.PUBLIC, PUBLIC),
    ],
)
def test_classes(kind, texts):
    assert {t: classify(ip_address(t)) for t in texts} == dict.fromkeys(texts, kind)


def test_the_default_is_web_ports_of_public_addresses():
    policy = Policy.parse()
    assert all(policy.allows(ip_address(a), 443) and policy.allows(ip_address(a), 80) for a in PUBLIC)
    assert not any(policy.allows(ip_address(a), 22) for a in PUBLIC)
    assert not any(policy.allows(ip_address(a), 80) for a in NEVER + LOOPBACK + PRIVATE + LINK_LOCAL)


def test_accept_everything_is_everything_public():
    policy = Policy.parse(["accept *:*"])
    assert all(policy.allows(ip_address(a), 25) for a in PUBLIC)
    assert not any(policy.allows(ip_address(a), 80) for a in NEVER + LOOPBACK + PRIVATE + LINK_LOCAL)


def test_reject_everything_is_everything():
    policy = Policy.parse(["reject *:*", "accept loopback:*", "accept public:*", "accept 10.0.0.0/8:*"])
    assert not any(policy.allows(ip_address(a), 80) for a in NEVER + LOOPBACK + PRIVATE + LINK_LOCAL + PUBLIC)
    assert not policy.may_allow(80)


def test_the_test_network_opens_loopback_and_nothing_else():
    policy = Policy.parse(["accept loopback:*", "reject *:*"])
    assert all(policy.allows(ip_address(a), 8080) for a in LOOPBACK)
    assert not any(policy.allows(ip_address(a), 80) for a in NEVER + PRIVATE + LINK_LOCAL + PUBLIC)


def test_named_networks_and_first_match():
    policy = Policy.parse(["reject 10.0.0.0/24:*", "accept 10.0.0.0/8:22", "reject public:25", "accept public:1-100"])
    assert policy.allows(IPv4Address("10.1.0.1"), 22)
    assert policy.allows(IPv6Address("::ffff:10.1.0.1"), 22)
    assert not policy.allows(IPv4Address("10.0.0.1"), 22)
    assert not policy.allows(IPv4Address("1.1.1.1"), 25)
    assert policy.allows(IPv4Address("1.1.1.1"), 26)
    assert not policy.allows(IPv4Address("1.1.1.1"), 101)


def test_a_network_rule_cannot_open_what_is_never_accepted():
    policy = Policy.parse(["accept 0.0.0.0/0:*", "accept [::/0]:*"])
    assert not any(policy.allows(ip_address(a), 80) for a in NEVER)
    assert all(policy.allows(ip_address(a), 80) for a in LOOPBACK + PRIVATE)


def test_own_addresses_are_refused_unless_named():
    own = ["1.1.1.1", "::ffff:8.8.8.8", "10.0.0.1"]
    assert not Policy.parse(own=own).allows(IPv4Address("1.1.1.1"), 80)
    assert not Policy.parse(own=own).allows(IPv4Address("8.8.8.8"), 80)
    assert not Policy.parse(["accept private:*"], own=own).allows(IPv4Address("10.0.0.1"), 80)
    assert Policy.parse(["accept own:80"], own=own).allows(IPv6Address("::ffff:1.1.1.1"), 80)


@given(st.lists(rule_texts, max_size=6), addresses, ports)
def test_texts_survive_and_the_port_check_never_hides_an_allowed_address(texts, address, port):
    policy = Policy.parse(texts, own=["1.1.1.1"])
    assert Policy.parse(str(policy).splitlines(), own=["1.1.1.1"]) == policy
    if policy.allows(address, port):
        assert policy.may_allow(port)
        assert classify(address) is not AddressClass.NEVER


@given(st.text(max_size=40) | st.from_regex(r"(accept|reject) [*a-z0-9./\[\]:]{0,12}:[0-9,*-]{0,8}", fullmatch=True))
def test_garbage_is_a_sentence_never_another_exception(text):
    try:
        rule = parse_rule(text)
    except ValueError:
        return
    assert parse_rule(str(rule)) == rule


def test_all_problems_at_once_each_with_its_place():
    with pytest.raises(ConfigError) as caught:
        Policy.parse(
            [
                "accept publik:80",
                "allow *:*",
                "accept public:0",
                "accept public:99999",
                "accept 10.0.0.1/8:80",
                "accept ::1:80",
                "accept *:*",
            ]
        )
    problems = caught.value.problems
    assert [p.split(":")[0] for p in problems] == [f"exit.policy[{n}]" for n in range(6)]
    assert 'did you mean "public"?' in problems[0]


def test_too_many_rules():
    with pytest.raises(ConfigError, match="limit"):
        Policy.parse(["accept public:80"] * 1025)
