"""What this process holds of the machine's memory, and how pages of shared memory are given back.

Place on a packet's way: none. The kernel's own counts are the account: they cannot drift from what is really held, and a new
life has them at once. Shared memory is committed page by page when it is first written; `give_back` undoes that, and the pages
read as zeros afterwards. Source: Linux proc(5) "statm", "smaps_rollup"; madvise(2).
"""

import ctypes
import functools
import mmap
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.kernel import address_of

PAGE: Final = mmap.PAGESIZE
_REMOVE: Final = 9  # MADV_REMOVE
_POPULATE_READ: Final = 22  # Linux 5.14
_STATM: Final = "/proc/self/statm"

_libc = ctypes.CDLL(None, use_errno=True)


class Footprint:
    """This process's memory. Raises OSError where /proc does not tell."""

    def __init__(self) -> None:
        self._statm = os.open(_STATM, os.O_RDONLY | os.O_CLOEXEC)
        self._files = _kib("/proc/self/status", "RssFile") << 10  # programs and libraries: they hardly change

    def shared(self) -> int:
        """Bytes of shared memory that this process has in hand."""
        return int(os.pread(self._statm, 256, 0).split()[2]) * PAGE - self._files

    def private(self) -> int:
        """Bytes of everything else, what it shares with its parent counted by its part. Takes a millisecond."""
        return sum(_kib("/proc/self/smaps_rollup", name) for name in ("Pss_Anon", "Pss_File")) << 10

    def close(self) -> None:
        """Let the descriptor go."""
        os.close(self._statm)


def _kib(file: str, name: str) -> int:
    for line in Path(file).read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{file} has no {name}")


def give_back(part: NDArray[Any]) -> bool:
    """Give back the whole pages of a part of a shared column. False, and nothing done, where this is memory of another kind."""
    start = address_of(part)
    first, last = -(-start // PAGE) * PAGE, (start + part.nbytes) // PAGE * PAGE
    if first >= last:
        return True
    return int(_libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _REMOVE)) == 0


def clear(part: NDArray[Any]) -> None:
    """Make it zeros, without committing what was not: give back what is whole pages of shared memory, write over the rest."""
    if address_of(part) % PAGE or part.nbytes % PAGE or not give_back(part):
        part[:] = 0


def give_back_rows(column: NDArray[Any], width: int, rows: NDArray[np.bool_]) -> None:
    """Give back every row marked, `width` elements each."""
    for first, last in runs(rows):
        give_back(column[first * width : last * width])


def take_in(part: NDArray[Any]) -> None:
    """Let pages that are there already count as this process's; where the kernel cannot, they do when they are touched."""
    start = address_of(part) // PAGE * PAGE
    size = address_of(part) + part.nbytes - start
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _POPULATE_READ)


def runs(marks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where marks stand in a row: first, and behind the last."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marks, [False]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@functools.cache
def machine_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
