"""A node's signed public record: its keys, where it is reached, what it does.

Encoding: deterministic CBOR `[body, signature]`; body is the encoding of a map, the signature is Ed25519 by the identity key
in it. Source: docs/protocol.md, "Directory".
"""

import ipaddress
from dataclasses import dataclass
from typing import Any, Final

from nyx.crypto.kem import check_ek, check_x25519
from nyx.crypto.keys import PublicKeys, StaticKeys, node_id
from nyx.errors import RemoteProtocolError
from nyx.path import cbor
from nyx.path.cbor import FormError
from nyx.wire.geometry import MLKEM_EK_SIZE, NODE_ID_SIZE, X25519_SIZE

VERSION: Final = 1
PURPOSE: Final = b"nyx-descriptor-1"
SIZE_MAX: Final = 8192  # bytes, signature included; two onion keys and four addresses make about 4,000
ADDRESSES_MAX: Final = 4
EFFORT_MAX: Final = 64  # leading zero bits of a build's proof of work
EXIT_FLAG: Final = "exit"
_NAMES: Final = (
    "version", "alias", "family", "node_id", "identity", "link_x25519", "link_ek", "onion", "addresses", "flags",
    "link_suites", "layer_suites", "boot_epoch", "sequence", "valid_from", "valid_until", "effort",
)  # fmt: skip

Address = tuple[str, int]  # numeric address, port


@dataclass(frozen=True)
class Descriptor:
    """What a node says of itself. Times are Unix seconds; `family` is the operator's name, shared by his nodes, or empty."""

    alias: str
    family: str
    public: PublicKeys
    addresses: tuple[Address, ...]
    flags: tuple[str, ...]
    link_suites: tuple[int, ...]
    layer_suites: tuple[int, ...]
    sequence: int
    valid_from: int
    valid_until: int
    boot_epoch: int = 0
    effort: int = 0

    @property
    def id(self) -> bytes:
        """Node id, 32 bytes."""
        return self.public.node_id

    @property
    def exit(self) -> bool:
        """Whether it opens connections to targets."""
        return EXIT_FLAG in self.flags

    def sign(self, keys: StaticKeys) -> bytes:
        """The record, signed by its own identity."""
        if keys.public != self.public:
            raise ValueError("a descriptor is signed by the node that it describes")
        body = cbor.encode(self._map())
        return cbor.encode([body, cbor.sign(keys.identity_seed, PURPOSE, body)])

    def _map(self) -> dict[str, Any]:
        public = self.public
        values = (
            VERSION, self.alias, self.family, public.node_id, public.identity, public.link_x25519, public.link_ek,
            [[public.onion_x25519, public.onion_ek]], [[ipaddress.ip_address(a).packed, port] for a, port in self.addresses],
            sorted(self.flags), sorted(self.link_suites), sorted(self.layer_suites), self.boot_epoch, self.sequence,
            self.valid_from, self.valid_until, self.effort,
        )  # fmt: skip
        return dict(zip(_NAMES, values, strict=True))


def open_descriptor(data: bytes) -> Descriptor:
    """The descriptor of a signed record. Raises FormError that says what is wrong with it."""
    if len(data) > SIZE_MAX:
        raise FormError(f"longer than {SIZE_MAX} bytes")
    envelope = cbor.items(cbor.decode(data), "the record", 2)
    if len(envelope) != 2 or not isinstance(envelope[0], bytes):
        raise FormError("not a signed record")
    signature = cbor.octets(envelope[1], "signature", 64)
    descriptor = _read(cbor.decode(envelope[0]))
    if not cbor.signed_by(descriptor.public.identity, PURPOSE, envelope[0], signature):
        raise FormError("bad signature")
    return descriptor


def _read(value: Any) -> Descriptor:
    (
        version, alias, family, name, identity, link_x25519, link_ek, onion, addresses, flags,
        link_suites, layer_suites, boot_epoch, sequence, valid_from, valid_until, effort,
    ) = cbor.fields(value, *_NAMES)  # fmt: skip
    if type(version) is not int or version != VERSION:  # true and 1.0 are equal to it, and have other encodings
        raise FormError(f"version {str(version)[:20]} is unknown")
    public = _public(identity, link_x25519, link_ek, onion)
    if cbor.octets(name, "node_id", NODE_ID_SIZE) != node_id(public.identity):
        raise FormError("node_id is not the hash of the identity key")
    found = Descriptor(
        alias=cbor.text(alias, "alias", 32),
        family=cbor.text(family, "family", 64),
        public=public,
        addresses=tuple(_address(item) for item in cbor.items(addresses, "addresses", ADDRESSES_MAX)),
        flags=tuple(cbor.text(item, "flags", 16) for item in cbor.items(flags, "flags", 16)),
        link_suites=_suites(link_suites, "link_suites"),
        layer_suites=_suites(layer_suites, "layer_suites"),
        sequence=cbor.integer(sequence, "sequence"),
        valid_from=cbor.integer(valid_from, "valid_from"),
        valid_until=cbor.integer(valid_until, "valid_until"),
        boot_epoch=cbor.integer(boot_epoch, "boot_epoch"),
        effort=cbor.integer(effort, "effort", EFFORT_MAX),
    )
    if not found.addresses:
        raise FormError("addresses is empty")
    if found.valid_until <= found.valid_from:
        raise FormError("valid_until is not after valid_from")
    if list(found.flags) != sorted(set(found.flags)):
        raise FormError("flags are not sorted, each once")
    return found


def _public(identity: Any, link_x25519: Any, link_ek: Any, onion: Any) -> PublicKeys:
    pairs = cbor.items(onion, "onion", 2)  # the newest, then the one before it
    if not pairs or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise FormError("onion is not one or two pairs of keys")
    newest, *_ = [(cbor.octets(b, "onion x25519", X25519_SIZE), cbor.octets(ek, "onion ek", MLKEM_EK_SIZE)) for b, ek in pairs]
    public = PublicKeys(
        cbor.octets(identity, "identity", 32),
        cbor.octets(link_x25519, "link_x25519", X25519_SIZE),
        cbor.octets(link_ek, "link_ek", MLKEM_EK_SIZE),
        *newest,
    )
    _check_usable(public)
    return public


def _check_usable(public: PublicKeys) -> None:
    """Keys that no handshake can use: whoever met them later would fail in the middle of one."""
    try:
        for point in (public.link_x25519, public.onion_x25519):
            check_x25519(point)
        for ek in (public.link_ek, public.onion_ek):
            check_ek(ek)
    except RemoteProtocolError as error:
        raise FormError(f"a key is none: {error}") from None


def _address(value: Any) -> Address:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], bytes) or len(value[0]) not in (4, 16):
        raise FormError("an address is not 4 or 16 bytes and a port")
    address = ipaddress.ip_address(value[0])
    if address.is_unspecified or address.is_multicast or address.is_link_local or getattr(address, "ipv4_mapped", None):
        raise FormError(f"{address} is no address of a node")
    if cbor.integer(value[1], "port", 65535) == 0:
        raise FormError("port is 0")
    return str(address), value[1]


def _suites(value: Any, name: str) -> tuple[int, ...]:
    found = [cbor.integer(item, name, 255) for item in cbor.items(value, name, 16)]
    if not found or found != sorted(set(found)):
        raise FormError(f"{name} is not a sorted list of suites, each once")
    return tuple(found)
