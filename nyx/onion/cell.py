"""The opened cell: 8 bytes of sequence, 8 zero bytes, frames; the zeros are what authenticates it.

Place on a packet's way: "end-to-end open", after the last layer is off and before any frame byte is looked at. The layer is
a strong permutation, so a cell that anybody changed opens to random bytes: zeros and sequence are right with probability
2^-107. Source: docs/protocol.md, "Opened cell".
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.replay import Words, window_accept
from nyx.crypto.sodium import is_zero
from nyx.kernel import Int, address, inline, load_acquire
from nyx.wire.codes import Drop
from nyx.wire.geometry import CELL_SEQUENCE, CELL_ZEROS, WINDOW_BITS, ZEROS_SIZE
from nyx.wire.packet import read_u64, write_u64

SEQUENCE_LIMIT: Final = 1 << 62  # sequences stay below it
_SEQUENCE_TOP: Final = 0xC0  # bits of the first byte that say "at or above the limit"
_TOO_FAR: Final = int(Drop.TOO_FAR)

Bytes = NDArray[np.uint8]


@inline
def cell_sequence(pool: Bytes, at: Int) -> Int:
    """Sequence of the opened cell at pool[at:], or -1 when its zero bytes are not zero or the sequence is impossible.

    -1 proves that a hop or a link changed the cell. Both tests always run, in constant time.
    """
    zeros = np.int64(is_zero(address(pool) + at + CELL_ZEROS, ZEROS_SIZE))
    small = np.int64(np.int64(pool[at + CELL_SEQUENCE]) & _SEQUENCE_TOP == 0)
    if zeros & small == 1:
        return read_u64(pool, at + CELL_SEQUENCE)
    return np.int64(-1)


@inline
def write_cell_head(pool: Bytes, at: Int, sequence: Int) -> None:
    """Write sequence and zero bytes of a cell to send."""
    write_u64(pool, at + CELL_SEQUENCE, sequence)
    write_u64(pool, at + CELL_ZEROS, 0)


@inline
def cell_accept(words: Words, base_word: Int, commit: Int, sequence: Int) -> Int:
    """Check a sequence against the circuit's window and mark it: OK, REPLAYED, TOO_OLD or TOO_FAR; see `window_accept`."""
    if sequence >= load_acquire(commit) + WINDOW_BITS:
        return _TOO_FAR
    return window_accept(words, base_word, commit, sequence)
