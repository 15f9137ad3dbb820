"""Memory that outlives the process working on it: a sealed memfd of columns.

Roles: the supervisor creates it and never lets go; workers are forked with the mapping; another program attaches by descriptor.
Layout: one page of header (magic, layout digest), then the columns as `nyx.columns` lays them out, all zero at first.
Who attaches with other columns is refused, so two versions never read each other's words wrongly. The size is sealed: nobody can
truncate it under a reader. Who shall only read is given a descriptor of `open_reader`, of which no writable mapping can be made
(a seal against future writing would bind the supervisor too, which maps the memory anew when it replaces itself). It is kept
out of core dumps.
Source: Linux memfd_create(2), fcntl(2) "File sealing", madvise(2).
"""

import ctypes
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from typing import Any, Final, Self

from numpy.typing import NDArray

from nyx.columns import ALIGN, Column, Columns, layout_digest, offsets, view
from nyx.errors import InternalError

_MAGIC: Final = b"nyx memory 1\n"
_MADV_DONTDUMP: Final = 16
_MLOCK_ONFAULT: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Memory:
    """A memfd and its columns as vectors. A program that inherits a descriptor calls `attach`."""

    def __init__(self, fd: int, pages: mmap.mmap, columns: Sequence[Column]) -> None:
        self.fd = fd
        self.layout = list(columns)
        self.columns: Columns = view(self.layout, memoryview(pages)[ALIGN:])
        self._pages = pages

    @classmethod
    def create(cls, name: str, columns: Sequence[Column]) -> Self:
        """Zeroed memory for these columns; `name` shows in /proc/PID/maps and names no node or peer."""
        size = ALIGN + offsets(columns)[1]
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        pages = mmap.mmap(fd, size)
        pages[: len(_header(columns))] = _header(columns)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        os.fchmod(fd, stat.S_IRUSR)  # whoever opens it by its name in /proc gets a reader
        pages.madvise(_MADV_DONTDUMP)
        return cls(fd, pages, columns)

    @classmethod
    def attach(cls, fd: int, columns: Sequence[Column], *, writable: bool = True) -> Self:
        """The columns of a memfd that somebody else created. Raises InternalError when it holds another layout."""
        size = ALIGN + offsets(columns)[1]
        if os.fstat(fd).st_size != size:
            raise InternalError(f"memory has {os.fstat(fd).st_size} bytes, these columns need {size}")
        pages = mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
        if pages[: len(_header(columns))] != _header(columns):
            raise InternalError("memory holds another layout of columns")
        pages.madvise(_MADV_DONTDUMP)
        return cls(fd, pages, columns)

    def open_reader(self) -> int:
        """A descriptor that can be mapped for reading alone."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def inherit(self, *, wanted: bool) -> None:
        """Whether what is forked from here on has the mapping too."""
        self._pages.madvise(mmap.MADV_DOFORK if wanted else mmap.MADV_DONTFORK)

    def close(self) -> None:
        """Let the descriptor go; the mapping lives as long as some vector over it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def keep_from_swap(column: NDArray[Any]) -> bool:
    """Lock what this process touches of the column into memory; False where the limit (often 8 MiB) forbids it.

    A lock is this process's own: a worker's next life asks again.
    """
    at, size = ctypes.c_void_p(column.ctypes.data), ctypes.c_size_t(column.nbytes)
    return int(_libc.mlock2(at, size, _MLOCK_ONFAULT)) == 0


def _header(columns: Sequence[Column]) -> bytes:
    return _MAGIC + layout_digest(columns).encode()
