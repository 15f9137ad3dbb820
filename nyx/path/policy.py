"""Exit policy: to which addresses and ports an exit connects.

Place on a packet's way: asked at the last hop, after a name was resolved and before connect(), about the very address that
is connected to; a second look-up can therefore not swap it (DNS rebinding).

Rules are read in order and the first that matches decides; what none matches is refused. A rule is

    accept|reject TARGET:PORTS          "accept public:80,443", "accept [2001:db8::/32]:22", "reject *:25", "accept loopback:*"

TARGET is a class of addresses (public, private, loopback, link-local, own), an IPv4 network, an IPv6 network in brackets, or
`*`. PORTS is `*` or a list of ports and ranges: 80,443,8000-8100. `*` means every address in a reject rule, but only public
ones in an accept rule: what is not public has to be named, so that `accept *:*` opens no local network. `own` are the node's
own public addresses. Unspecified, multicast, broadcast and reserved addresses are never accepted, whatever the rules say.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from nyx.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Ports = tuple[tuple[int, int], ...]

RULES_MAX: Final = 1024  # rules of one policy; every OPEN may walk all of them
DEFAULT_RULES: Final = ("accept public:80,443", "reject *:*")

_RULE: Final = re.compile(r"(?P<verb>\S+)[ \t]+(?P<target>\[[^\]\s]*\]|[^\[\]\s:]+):(?P<ports>\S+)")
_ALL_PORTS: Final[Ports] = ((1, 65535),)
_BROADCAST: Final = IPv4Address("255.255.255.255")
_NAT64: Final = IPv6Network("64:ff9b::/96")  # an IPv4 address in its last four bytes (RFC 6052)
_NEVER: Final = tuple(
    ip_network(n)
    for n in (
        "0.0.0.0/8",  # "this network": Linux connects 0.0.0.0 to itself
        "240.0.0.0/4",
        "::/96",  # IPv4-compatible, deprecated; ::1 is looked at before
        "64:ff9b:1::/48",  # local NAT64
        "100::/64",  # discard
        "2001::/32",  # Teredo: another IPv4 address inside
        "2002::/16",  # 6to4: the same
    )
)


class AddressClass(Enum):
    """What an address is good for."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    OWN = "own"
    NEVER = "never"  # cannot be named in a rule


_CLASSES: Final = {c.value: c for c in AddressClass if c is not AddressClass.NEVER}


def plain(address: Address) -> Address:
    """The address that a connection really goes to: the IPv4 address inside ::ffff:a.b.c.d."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def classify(address: Address) -> AddressClass:
    """Class of an address, without regard to who owns it."""
    address = plain(address)
    if address.is_loopback:
        return AddressClass.LOOPBACK
    if isinstance(address, IPv6Address) and address in _NAT64:
        inner = classify(IPv4Address(address.packed[12:]))
        return inner if inner is AddressClass.PUBLIC else AddressClass.NEVER
    if address.is_unspecified or address.is_multicast or address == _BROADCAST:
        return AddressClass.NEVER
    if any(address in network for network in _NEVER if network.version == address.version):
        return AddressClass.NEVER
    if address.is_link_local:
        return AddressClass.LINK_LOCAL
    if address.is_global and not address.is_reserved and not getattr(address, "is_site_local", False):
        return AddressClass.PUBLIC
    return AddressClass.PRIVATE


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy. `target` None is `*`."""

    accept: bool
    target: AddressClass | Network | None
    ports: Ports

    def matches(self, address: Address, kind: AddressClass, port: int) -> bool:
        """Whether the rule speaks of this address (`kind`: its class) at this port."""
        if not any(low <= port <= high for low, high in self.ports):
            return False
        if self.target is None:
            return not self.accept or kind is AddressClass.PUBLIC
        if isinstance(self.target, AddressClass):
            return kind is self.target
        return address.version == self.target.version and address in self.target

    def __str__(self) -> str:
        if isinstance(self.target, AddressClass):
            target = self.target.value
        elif isinstance(self.target, IPv6Network):
            target = f"[{self.target}]"
        else:
            target = str(self.target or "*")
        ports = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in self.ports)
        return f"{'accept' if self.accept else 'reject'} {target}:{'*' if self.ports == _ALL_PORTS else ports}"


def parse_rule(text: str) -> Rule:
    """A rule from its text. Raises ValueError with a sentence an operator can act on."""
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'"{text}" is no rule: write "accept TARGET:PORTS" or "reject TARGET:PORTS", IPv6 networks in brackets')
    if match["verb"] not in ("accept", "reject"):
        raise ValueError(f'"{match["verb"]}" is neither "accept" nor "reject"')
    return Rule(match["verb"] == "accept", _target(match["target"]), _ports(match["ports"]))


def _target(text: str) -> AddressClass | Network | None:
    if text == "*":
        return None
    if text in _CLASSES:
        return _CLASSES[text]
    try:
        network = ip_network(text.strip("[]"))
    except ValueError as error:
        if any(c in text for c in "./["):
            raise ValueError(f'"{text}" is no network: {error}') from error
        near = get_close_matches(text, _CLASSES, 1)
        hint = f', did you mean "{near[0]}"?' if near else f": use *, a network, or one of {', '.join(_CLASSES)}"
        raise ValueError(f'"{text}" is no class of addresses{hint}') from error
    return network


def _ports(text: str) -> Ports:
    if text == "*":
        return _ALL_PORTS
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        bounds = (low, high if dash else low)
        if not all(b.isascii() and b.isdecimal() and len(b) <= 5 for b in bounds):
            raise ValueError(f'"{part}" is no port: use 1-65535, a range like 8000-8100, or *')
        first, last = int(bounds[0]), int(bounds[1])
        if not 1 <= first <= last <= 65535:
            raise ValueError(f'"{part}" is no port or range within 1-65535')
        found.append((first, last))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one exit, and the addresses that are its own."""

    rules: tuple[Rule, ...]
    own: frozenset[Address] = frozenset()

    @classmethod
    def parse(cls, rules: Sequence[str] = DEFAULT_RULES, own: Iterable[str | Address] = ()) -> "Policy":
        """Policy from the texts of its rules. Raises ConfigError with every wrong rule as one line."""
        found: list[Rule] = []
        problems = [] if len(rules) <= RULES_MAX else [f"exit.policy: {len(rules)} rules are more than the limit {RULES_MAX}"]
        for number, text in enumerate(rules[:RULES_MAX]):
            try:
                found.append(parse_rule(text))
            except ValueError as error:
                problems.append(f"exit.policy[{number}]: {error}")
        if problems:
            raise ConfigError(problems)
        return cls(tuple(found), frozenset(plain(ip_address(a) if isinstance(a, str) else a) for a in own))

    def classify(self, address: Address) -> AddressClass:
        """Class of an address as seen from this node."""
        kind = classify(address)
        is_own = kind in (AddressClass.PUBLIC, AddressClass.PRIVATE) and plain(address) in self.own
        return AddressClass.OWN if is_own else kind

    def allows(self, address: Address, port: int) -> bool:
        """Whether this node connects to the address at the port."""
        kind = self.classify(address)
        if kind is AddressClass.NEVER:
            return False
        target = plain(address)
        return next((rule.accept for rule in self.rules if rule.matches(target, kind, port)), False)

    def may_allow(self, port: int) -> bool:
        """Whether any address at all could be allowed at the port; False spares the look-up of a name."""
        for rule in self.rules:
            if any(low <= port <= high for low, high in rule.ports):
                if rule.accept:
                    return True
                if rule.target is None:
                    return False
        return False

    def __str__(self) -> str:
        return "\n".join(map(str, self.rules))
