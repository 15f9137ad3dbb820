"""What an application asks of the proxy: a target and an isolation key, whatever language it asked in.

Names stay names: nothing here, and nothing else at the client, resolves one. Credentials leave the parsers only as a digest.
"""

import hashlib
import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, NamedTuple

from shards.edge.reasons import Reason

FORM_NAME: Final = 1  # forms of an address in OPEN and OPEN_RESULT (docs/protocol.md, "Frames")
FORM_IPV4: Final = 4
FORM_IPV6: Final = 6
NAME_MAX: Final = 253  # bytes of a host name (RFC 1035 3.1, in text)

_LABEL: Final = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(_LABEL + rb"(?:\." + _LABEL + rb")*\.?")
_NUMBER: Final = re.compile(rb"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)")  # "127.1", "0x7f.1": resolvers read addresses into these


class Host(NamedTuple):
    """A target's host: a name, or an address in network order."""

    form: int
    address: bytes

    def __str__(self) -> str:
        if self.form == FORM_IPV4:
            return str(IPv4Address(self.address))
        if self.form == FORM_IPV6:
            return f"[{IPv6Address(self.address)}]"
        return self.address.decode("ascii")


class Request(NamedTuple):
    """A complete request. `rest` is what the application sent after it: the first bytes of its stream."""

    protocol: str  # "socks5" or "http"
    host: Host
    port: int
    isolation: bytes  # requests with different keys never share a circuit; b"" without credentials
    rest: bytes


class Refusal(NamedTuple):
    """The client broke a rule: what to send it before its connection is closed (nothing, when it speaks neither language)."""

    reason: Reason
    reply: bytes


class Refused(NamedTuple):
    """Answer of `open_circuit`: this request will never get a circuit."""

    reason: Reason


def parse_host(text: bytes) -> Host | None:
    """Host from what a client wrote as a name: a literal address becomes numeric. None when it is neither."""
    try:
        inner = text[1:-1] if text.startswith(b"[") and text.endswith(b"]") else text
        if b":" in inner:
            return Host(FORM_IPV6, IPv6Address(inner.decode("ascii")).packed) if b"%" not in inner else None
        if inner is not text:
            return None
        return Host(FORM_IPV4, IPv4Address(text.decode("ascii")).packed)
    except (AddressValueError, UnicodeDecodeError):
        pass
    if len(text.removesuffix(b".")) > NAME_MAX or not _NAME.fullmatch(text) or _NUMBER.fullmatch(text.removesuffix(b".")):
        return None
    return Host(FORM_NAME, text.lower())


def isolation_key(user: bytes, password: bytes) -> bytes:
    """Key of one pair of credentials, the same for SOCKS and HTTP; the digest hides them from the tables it is kept in."""
    return hashlib.sha256(b"nyx isolation" + len(user).to_bytes(4, "big") + user + password).digest()
