"""Proof of work for builds: made by clients a slice at a time, checked by hops before any public-key operation.

Place on a packet's way: before a circuit's first cell. A proof is a nonce of 8 bytes for which SHA-256(X || nonce || node id ||
directory epoch) begins with so many zero bits; it is good for one record at one hop, since X is new for each record. Making
`effort` bits takes 2^effort hashes on average, checking them one. Source: docs/protocol.md, "Proof of work".
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.kem import Entropy, x25519_public
from nyx.crypto.sodium import sha256
from nyx.kernel import Int, address, kernel
from nyx.wire.geometry import NODE_ID_SIZE, WORK_SIZE, X25519_SIZE

EFFORT_MOST: Final = 32  # bits that anybody may ask or offer: four thousand million hashes
SLICE: Final = 1024  # hashes between two looks at everything else: below a millisecond
_EPOCH: Final = 8
_DIGEST: Final = 32
_INPUT: Final = X25519_SIZE + WORK_SIZE + NODE_ID_SIZE + _EPOCH


@dataclass(frozen=True, slots=True, repr=False)
class Proof:
    """The secret x of a record, and the nonce that was found for its X."""

    x: bytes
    work: bytes


def bits_of(x: bytes, work: bytes, node: bytes, epoch: int) -> int:
    """How many zero bits this proof has for a directory epoch."""
    digest = hashlib.sha256(x + work + node + epoch.to_bytes(_EPOCH, "big")).digest()
    return 8 * _DIGEST - int.from_bytes(digest, "big").bit_length()


@kernel("i8", "u1[]", "i8", "i8", "i8", "u1[]")
def search(block: Any, first: Int, tries: Int, effort: Int, digest: Any) -> Any:
    """Try the nonces first, first + 1, ... in block[32:40]; the number of tries after which one fits, or 0.

    `block`: X, nonce, node id, epoch. `digest`: 32 bytes of scratch.
    """
    for tried in range(tries):
        nonce = np.int64(first) + tried
        for k in range(WORK_SIZE):
            block[X25519_SIZE + k] = (nonce >> (56 - 8 * k)) & 255
        sha256(address(digest), address(block), _INPUT)
        left = np.int64(effort)
        for k in range(_DIGEST):
            byte = np.int64(digest[k])
            if left < 8:
                if byte >> (8 - left) == 0:
                    return np.int64(tried + 1)
                break
            if byte != 0:
                break
            left -= 8
    return np.int64(0)


class Work:
    """The proofs for one build: call `advance` until it is `done`. `efforts` are those of the hops, 0 for none."""

    def __init__(self, nodes: Sequence[bytes], efforts: Sequence[int], epoch: int, entropy: Entropy) -> None:
        self._todo = list(zip(nodes, efforts, strict=True))
        self._epoch = epoch
        self._entropy = entropy
        self._digest: NDArray[np.uint8] = np.zeros(_DIGEST, np.uint8)
        self._block: NDArray[np.uint8] | None = None
        self._x = b""
        self._nonce = 0
        self.proofs: list[Proof] = []

    def __repr__(self) -> str:
        return f"Work(done={len(self.proofs)}, left={len(self._todo)})"

    @property
    def done(self) -> bool:
        """Whether `proofs` has one for each hop."""
        return not self._todo

    def advance(self) -> None:
        """Spend at most SLICE hashes."""
        left = SLICE
        while self._todo and left > 0:
            (node, effort), used = self._todo[0], 0
            if effort == 0:
                self._next(Proof(self._entropy(X25519_SIZE), self._entropy(WORK_SIZE)))
                continue
            block = self._begin(node) if self._block is None else self._block
            used = int(search(block, self._nonce, left, effort, self._digest))
            if used:
                self._next(Proof(self._x, block[X25519_SIZE : X25519_SIZE + WORK_SIZE].tobytes()))
            self._nonce += left
            left -= used or left

    def _begin(self, node: bytes) -> NDArray[np.uint8]:
        self._x = self._entropy(X25519_SIZE)
        whole = x25519_public(self._x) + bytes(WORK_SIZE) + node + self._epoch.to_bytes(_EPOCH, "big")
        self._block = np.frombuffer(whole, np.uint8).copy()
        self._nonce = int.from_bytes(self._entropy(WORK_SIZE), "big") >> 2  # from a random one on: nobody tells how long it took
        return self._block

    def _next(self, proof: Proof) -> None:
        self.proofs.append(proof)
        del self._todo[0]
        self._block = None
