"""The complete signed snapshot of the network, and what it takes to believe one.

Encoding: deterministic CBOR `[body, [[signer, signature], ...]]`; body is the encoding of a map with every node's signed
descriptor and its measured weight, in the order of node ids, and with the SHA-256 of the snapshot before it. A reader checks,
in this order: size, form, signatures of the configured signers, only then the body; validity; the pinned sequence; last every
descriptor. A refusal names its reason. Source: docs/protocol.md, "Directory".
"""

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from nyx.crypto.keys import PublicKeys
from nyx.errors import ConfigError, NyxError
from nyx.files import read_bounded, write_whole
from nyx.path import cbor
from nyx.path.cbor import FormError
from nyx.path.descriptor import SIZE_MAX as DESCRIPTOR_MAX
from nyx.path.descriptor import Address, Descriptor, open_descriptor

T = TypeVar("T")

VERSION: Final = 1
PURPOSE: Final = b"nyx-snapshot-1"
NODES_MAX: Final = 16384  # Tor has about 8,000 relays
SIZE_MAX: Final = NODES_MAX * DESCRIPTOR_MAX  # bytes
SIGNATURES_MAX: Final = 32
WEIGHT_MAX: Final = 1 << 32
CLOCK_SKEW: Final = 120  # seconds that a reader's clock may be behind the signers'
_NAMES: Final = ("version", "network", "epoch", "sequence", "previous", "valid_from", "valid_until", "nodes")


class Reason(StrEnum):
    """Why a snapshot is refused."""

    MALFORMED = "malformed"
    UNSIGNED = "unsigned"
    ALTERED = "altered"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    ROLLED_BACK = "rolled back"
    FORKED = "forked"
    MISSING = "missing"


class DirectoryError(NyxError):
    """A snapshot that must not be used; `reason` names why."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(f"directory {reason.value}: {text}")
        self.reason = reason


@dataclass(frozen=True)
class Node:
    """One node of the network: what it says of itself, and what the signers measured."""

    descriptor: Descriptor
    weight: int

    @property
    def id(self) -> bytes:
        """Node id, 32 bytes."""
        return self.descriptor.id

    @property
    def alias(self) -> str:
        """The name it gives itself; not unique."""
        return self.descriptor.alias

    @property
    def public(self) -> PublicKeys:
        """Its keys."""
        return self.descriptor.public

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it is reached, best first."""
        return self.descriptor.addresses

    @property
    def exit(self) -> bool:
        """Whether it opens connections to targets."""
        return self.descriptor.exit


@dataclass(frozen=True)
class Pin:
    """The newest snapshot that this node has believed: nothing older is believed again."""

    sequence: int
    digest: bytes

    def to_bytes(self) -> bytes:
        """One line of text."""
        return f"{self.sequence} {self.digest.hex()}\n".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Pin":
        """The pin of that line. Raises ValueError."""
        sequence, digest = data.decode("ascii").split()
        if not sequence.isdecimal() or len(digest) != 64:
            raise ValueError("not a sequence and a digest")
        return cls(int(sequence), bytes.fromhex(digest))


@dataclass(frozen=True)
class Snapshot:
    """Everybody, at one time. Times are Unix seconds."""

    network: str
    epoch: int
    sequence: int
    previous: bytes
    valid_from: int
    valid_until: int
    nodes: tuple[Node, ...]
    digest: bytes
    _ids: Mapping[bytes, Node] = field(init=False, repr=False, compare=False)
    _links: Mapping[bytes, Node] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {node.id: node for node in self.nodes})
        object.__setattr__(self, "_links", {node.public.link_x25519: node for node in self.nodes})

    @property
    def pin(self) -> Pin:
        """What to remember of it."""
        return Pin(self.sequence, self.digest)

    def by_id(self, node_id: bytes) -> Node | None:
        """The node of this id."""
        return self._ids.get(node_id)

    def by_link_key(self, link_x25519: bytes) -> Node | None:
        """The node whose static link key this is."""
        return self._links.get(link_x25519)


def build_snapshot(
    nodes: Iterable[tuple[bytes, int]],
    signers: Sequence[bytes],
    *,
    network: str,
    sequence: int,
    valid_from: int,
    valid_until: int,
    epoch: int = 0,
    previous: bytes = bytes(32),
) -> bytes:
    """A signed snapshot of (signed descriptor, weight) pairs; `signers` are Ed25519 seeds. Raises FormError."""
    entries = [[record, weight] for record, weight in sorted(nodes, key=lambda pair: open_descriptor(pair[0]).id)]
    values = (VERSION, network, epoch, sequence, previous, valid_from, valid_until, entries)
    body = cbor.encode(dict(zip(_NAMES, values, strict=True)))
    return cbor.encode([body, sorted([cbor.identity_of(seed), cbor.sign(seed, PURPOSE, body)] for seed in signers)])


def verify(data: bytes, signers: Sequence[bytes], threshold: int, wall: int, pin: Pin | None = None) -> Snapshot:
    """The snapshot in `data`, believed only if `threshold` of `signers` signed it. Raises DirectoryError."""
    return finish(verify_in_steps(data, signers, threshold, wall, pin))


def finish(steps: Generator[None, None, T]) -> T:
    """What a job that is done in steps comes to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def verify_in_steps(
    data: bytes, signers: Sequence[bytes], threshold: int, wall: int, pin: Pin | None = None
) -> Generator[None, None, Snapshot]:
    """The same, a node a step: thousands take seconds, and a worker has packets to serve meanwhile. Raises DirectoryError."""
    try:
        body, signatures = _open(data)
        _check_signatures(body, signatures, signers, threshold)
        digest = hashlib.sha256(body).digest()
        version, network, epoch, sequence, previous, valid_from, valid_until, entries = cbor.fields(cbor.decode(body), *_NAMES)
        if type(version) is not int or version != VERSION:  # true and 1.0 are equal to it
            raise FormError(f"version {str(version)[:20]} is unknown")
        cbor.integer(sequence, "sequence")
        _check_time(cbor.integer(valid_from, "valid_from"), cbor.integer(valid_until, "valid_until"), wall)
        _check_pin(sequence, cbor.octets(previous, "previous", 32), digest, pin)
        return Snapshot(
            network=cbor.text(network, "network", 64),
            epoch=cbor.integer(epoch, "epoch"),
            sequence=sequence,
            previous=previous,
            valid_from=valid_from,
            valid_until=valid_until,
            nodes=(yield from _nodes(entries, valid_from, valid_until)),
            digest=digest,
        )
    except FormError as error:
        raise DirectoryError(Reason.MALFORMED, str(error)) from error


def _open(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    if len(data) > SIZE_MAX:
        raise FormError(f"longer than {SIZE_MAX} bytes")
    envelope = cbor.items(cbor.decode(data), "the snapshot", 2)
    if len(envelope) != 2 or not isinstance(envelope[0], bytes):
        raise FormError("not a signed snapshot")
    pairs = cbor.items(envelope[1], "signatures", SIGNATURES_MAX)
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise FormError("a signature is not a pair of signer and signature")
    return envelope[0], [(cbor.octets(s, "signer", 32), cbor.octets(g, "signature", 64)) for s, g in pairs]


def _check_signatures(body: bytes, signatures: list[tuple[bytes, bytes]], signers: Sequence[bytes], threshold: int) -> None:
    claimed = {signer: signature for signer, signature in signatures if signer in signers}
    good = [signer for signer, signature in claimed.items() if cbor.signed_by(signer, PURPOSE, body, signature)]
    needed = max(threshold, 1)
    if len(good) >= needed:
        return
    if len(claimed) >= needed:
        bad = next(signer for signer in claimed if signer not in good)
        raise DirectoryError(Reason.ALTERED, f"the signature of {bad.hex()[:16]} is not of this content")
    raise DirectoryError(Reason.UNSIGNED, f"{len(claimed)} of the configured signers signed it, {needed} must")


def _check_time(valid_from: int, valid_until: int, wall: int) -> None:
    if wall >= valid_until:
        raise DirectoryError(Reason.EXPIRED, f"it ended {wall - valid_until} seconds ago")
    if wall < valid_from - CLOCK_SKEW:
        raise DirectoryError(Reason.NOT_YET_VALID, f"it begins in {valid_from - wall} seconds; is this machine's clock right?")


def _check_pin(sequence: int, previous: bytes, digest: bytes, pin: Pin | None) -> None:
    if pin is None:
        return
    if sequence < pin.sequence:
        raise DirectoryError(Reason.ROLLED_BACK, f"sequence {sequence} is older than {pin.sequence}, which was seen here before")
    if sequence == pin.sequence and digest != pin.digest:
        raise DirectoryError(Reason.FORKED, f"another snapshot of sequence {sequence} was seen here before")
    if sequence == pin.sequence + 1 and previous != pin.digest:
        raise DirectoryError(Reason.FORKED, f"sequence {sequence} does not follow the {pin.sequence} that was seen here before")


def _nodes(entries: Any, valid_from: int, valid_until: int) -> Generator[None, None, tuple[Node, ...]]:
    found: list[Node] = []
    for entry in cbor.items(entries, "nodes", NODES_MAX):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], bytes):
            raise FormError("a node is not a descriptor and a weight")
        try:
            descriptor = open_descriptor(entry[0])
        except FormError as error:
            raise FormError(f"node {len(found)}: {error}") from error
        if descriptor.valid_from > valid_from or descriptor.valid_until < valid_until:
            raise FormError(f"node {len(found)}: its descriptor is not valid for the whole time of the snapshot")
        found.append(Node(descriptor, cbor.integer(entry[1], "weight", WEIGHT_MAX)))
        yield
    ids = [node.id for node in found]
    if ids != sorted(ids) or len(set(ids)) != len(ids):
        raise FormError("nodes are not in the order of their ids, each once")
    if len({node.public.link_x25519 for node in found}) != len(found):
        raise FormError("two nodes have one link key")
    return tuple(found)


# ---------------------------------------------------------------- where snapshots come from


class Directory(Protocol):
    """A source of snapshots. Path choice reads a whole one and never asks for a single node."""

    def snapshot(self, wall: int) -> Snapshot:
        """The newest snapshot that can be believed at this time. Raises DirectoryError."""

    def source(self) -> str:
        """Where it comes from, for people."""


class FileDirectory:
    """Snapshots from a file, with the newest sequence pinned in another."""

    def __init__(self, file: Path, signers: Sequence[bytes], threshold: int, pin_file: Path | None) -> None:
        self._file = file
        self._signers = tuple(signers)
        self._threshold = threshold
        self._pin_file = pin_file

    def source(self) -> str:
        """The file's path."""
        return str(self._file)

    def snapshot(self, wall: int) -> Snapshot:
        """Read, verify, and pin what is newer than the pin. Raises DirectoryError, OSError when the pin cannot be written."""
        found = self.verified(self.read(), wall)
        self.pin(found)
        return found

    def read(self) -> bytes:
        """What the file holds. Raises DirectoryError."""
        try:
            return read_bounded(self._file, SIZE_MAX)
        except FileNotFoundError as error:
            raise DirectoryError(Reason.MISSING, f"there is no {self._file}") from error
        except ConfigError as error:
            raise DirectoryError(Reason.MALFORMED, "; ".join(error.problems)) from error

    def verified(self, data: bytes, wall: int) -> Snapshot:
        """The snapshot in these bytes, which nothing is pinned of yet. Raises DirectoryError."""
        return verify(data, self._signers, self._threshold, wall, self._pin())

    def pin(self, found: Snapshot) -> None:
        """Remember a snapshot that is newer than the pin, so that none before it is believed again. Raises OSError."""
        pin = self._pin()
        if self._pin_file and (pin is None or found.sequence > pin.sequence):
            write_whole(self._pin_file, found.pin.to_bytes())

    def _pin(self) -> Pin | None:
        if self._pin_file is None:
            return None
        try:
            return Pin.from_bytes(read_bounded(self._pin_file, 256))
        except FileNotFoundError:
            return None
        except (ConfigError, ValueError) as error:
            raise DirectoryError(
                Reason.MALFORMED, f"{self._pin_file} is damaged, so a rollback could not be seen: {error}"
            ) from error
