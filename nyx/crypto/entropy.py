"""Randomness of one process: a ChaCha20 stream keyed from the operating system, keyed again every second.

Place on a packet's way: none; nonces of cookies, CIDs, circuit ids, slots, padding, ephemeral keys. Each stretch of the stream
begins with the key of the next, and what was handed out is overwritten: who reads this memory learns nothing of the past. A new
seed is added to the key, so that whoever read it is behind again a second later, and a bad seed takes nothing away.

Source: docs/protocol.md, "Primitives"; Bernstein, "Fast-key-erasure random-number generators" (2017).
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.kem import Entropy
from nyx.crypto.sodium import CHACHA_KEY, CHACHA_NONCE, chacha20_xor
from nyx.kernel import address, kernel

STRETCH: Final = 2048  # bytes handed out under one key


@kernel("i8", "u1[]", "u1[]")
def _next_stretch(state: Any, nonce: Any) -> Any:
    """Fill the state, a key and its stream, with the stream of that key: it begins with another key. A key serves once."""
    size = state.size
    for k in range(CHACHA_KEY, size):
        state[k] = 0
    stream = address(state) + CHACHA_KEY
    chacha20_xor(stream, stream, size - CHACHA_KEY, address(nonce), address(state))
    for k in range(CHACHA_KEY):
        state[k] = state[CHACHA_KEY + k]
        state[CHACHA_KEY + k] = 0
    return 0


class RandomStream:
    """`stream(n)` gives n random bytes. Not to be used across a fork: make one in the child."""

    def __init__(self, source: Entropy) -> None:
        self._source = source
        self._state: NDArray[np.uint8] = np.zeros(CHACHA_KEY + CHACHA_KEY + STRETCH, np.uint8)
        self._nonce: NDArray[np.uint8] = np.zeros(CHACHA_NONCE, np.uint8)
        self._at = 0
        self.renew()

    def __repr__(self) -> str:
        return "RandomStream()"

    def renew(self) -> None:
        """Add a new seed of the source to the key."""
        self._state[:CHACHA_KEY] ^= np.frombuffer(self._source(CHACHA_KEY), np.uint8)
        self._turn()

    def _turn(self) -> None:
        _next_stretch(self._state, self._nonce)
        self._at = 2 * CHACHA_KEY

    def __call__(self, n: int) -> bytes:
        """So many random bytes."""
        left, parts = n, []
        while left:
            if self._at == len(self._state):
                self._turn()
            part = self._state[self._at : self._at + left]
            parts.append(part.tobytes())
            self._at += len(part)
            left -= len(part)
            part[:] = 0
        return b"".join(parts)
