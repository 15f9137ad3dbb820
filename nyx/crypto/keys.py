"""A node's long-lived keys, and the file form they are kept in.

Place on a packet's way: before it; handshakes and builds read them. The identity signs and names the node; the link pair
authenticates links, the onion pair opens build records. Private parts are never in a repr or an exception.

Source: docs/protocol.md, "Keys". The file: 4 bytes "NYXK", version u8, identity seed 32, link pair 96, onion pair 96, then
the first 8 bytes of the SHA-256 of everything before: 237 bytes.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from blake3 import blake3
from nacl.bindings import crypto_sign_seed_keypair

from nyx.crypto.kem import KEM_SEED_SIZE, Entropy, HybridKey
from nyx.errors import ConfigError
from nyx.wire.geometry import NODE_ID_SIZE, X25519_SIZE

IDENTITY_SEED_SIZE: Final = 32
PAIR_SIZE: Final = X25519_SIZE + KEM_SEED_SIZE
KEY_FILE_MAGIC: Final = b"NYXK"
KEY_FILE_VERSION: Final = 1
CHECKSUM_SIZE: Final = 8
KEY_FILE_SIZE: Final = len(KEY_FILE_MAGIC) + 1 + IDENTITY_SEED_SIZE + 2 * PAIR_SIZE + CHECKSUM_SIZE


def node_id(identity: bytes) -> bytes:
    """The name of a node: BLAKE3-256 of its identity key, 32 bytes."""
    return blake3(identity).digest(length=NODE_ID_SIZE)


@dataclass(frozen=True)
class PublicKeys:
    """What a node's descriptor says of its keys; sizes 32, 32, 1184, 32, 1184 bytes."""

    identity: bytes
    link_x25519: bytes
    link_ek: bytes
    onion_x25519: bytes
    onion_ek: bytes

    def __repr__(self) -> str:
        return f"PublicKeys(node={self.node_id[:8].hex()})"

    @cached_property
    def node_id(self) -> bytes:
        """The node's name, 32 bytes."""
        return node_id(self.identity)


class StaticKeys:
    """Identity (Ed25519 seed), link pair and onion pair of one node."""

    __slots__ = ("_seed", "link", "onion", "public")

    def __init__(self, seed: bytes, link: HybridKey, onion: HybridKey) -> None:
        self._seed = bytes(seed)
        identity, _ = crypto_sign_seed_keypair(self._seed)
        self.link: Final = link
        self.onion: Final = onion
        self.public: Final = PublicKeys(identity, link.public, link.ek, onion.public, onion.ek)

    def __repr__(self) -> str:
        return f"StaticKeys(node={self.public.node_id[:8].hex()})"

    @property
    def identity_seed(self) -> bytes:
        """The Ed25519 seed, 32 bytes; secret. Whoever signs descriptors needs it."""
        return self._seed

    @classmethod
    def generate(cls, entropy: Entropy) -> "StaticKeys":
        """New keys from 224 bytes of entropy."""
        return cls(entropy(IDENTITY_SEED_SIZE), HybridKey.generate(entropy), HybridKey.generate(entropy))

    def to_bytes(self) -> bytes:
        """The key file's bytes; secret."""
        body = KEY_FILE_MAGIC + bytes((KEY_FILE_VERSION,)) + self._seed + self.link.to_bytes() + self.onion.to_bytes()
        return body + hashlib.sha256(body).digest()[:CHECKSUM_SIZE]

    @classmethod
    def from_bytes(cls, data: bytes) -> "StaticKeys":
        """The keys of a key file. Raises ConfigError that says what is wrong with the file, never what is in it."""
        if len(data) != KEY_FILE_SIZE or not data.startswith(KEY_FILE_MAGIC):
            raise ConfigError(["this is not a Nyx key file"])
        if data[len(KEY_FILE_MAGIC)] != KEY_FILE_VERSION:
            raise ConfigError([f"key file version {data[len(KEY_FILE_MAGIC)]} is unknown; this program reads {KEY_FILE_VERSION}"])
        body = data[:-CHECKSUM_SIZE]
        if hashlib.sha256(body).digest()[:CHECKSUM_SIZE] != data[-CHECKSUM_SIZE:]:
            raise ConfigError(["the key file is damaged: its checksum does not match"])
        at = len(KEY_FILE_MAGIC) + 1
        seed, pairs = body[at : at + IDENTITY_SEED_SIZE], body[at + IDENTITY_SEED_SIZE :]
        return cls(seed, HybridKey.from_bytes(pairs[:PAIR_SIZE]), HybridKey.from_bytes(pairs[PAIR_SIZE:]))
