"""Proofs of work that builds have shown: each serves once, whether or not its build opens.

Place on a packet's way: with the check of a build's work, before its public-key operations. The set of opened builds
(`nyx/onion/seen.py`) knows a record's X only once its seal opened; one proof in front of any number of junk seals would be as
many favoured builds. Two generations of fixed size: an entry lives until so many others with work have come, and those cost
their sender the work. It is this life's own: a flooder gains one use of a proof by each death of a worker.
Source: docs/protocol.md, "Proof of work".
"""

from typing import Final

GENERATION: Final = 1 << 14  # proofs; at 10 bits each they cost 16 million hashes
_KEY: Final = 16  # bytes of X that are kept


class Proofs:
    """What was shown lately, by X."""

    def __init__(self, size: int = GENERATION) -> None:
        self._size = size
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()

    def first(self, x: bytes) -> bool:
        """Whether this X was not shown before; remembers it."""
        key = x[:_KEY]
        if key in self._new or key in self._old:
            return False
        if len(self._new) >= self._size:
            self._old, self._new = self._new, set()
        self._new.add(key)
        return True
