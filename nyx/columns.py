"""Columns: state as named vectors in one piece of memory that outlives the process that works on it.

A room with state names its columns; whoever owns the memory (the supervisor: a memfd; a test: an ordinary array) lays them
out and hands back one view per name. All columns start as zero bytes, so zero must mean "free" or "nothing yet".
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGN: Final = 4096  # a column starts on its own page: pages are committed, dropped and protected one by one

Columns = dict[str, NDArray[Any]]


class Column(NamedTuple):
    """One vector: its name, unique in the whole node, its element type and how many elements it has."""

    name: str
    dtype: "np.dtype[Any]"
    length: int


def offsets(columns: Sequence[Column]) -> tuple[list[int], int]:
    """Byte offset of every column, and the size of the whole, in bytes."""
    found: list[int] = []
    at = 0
    for column in columns:
        found.append(at)
        at += -(-column.dtype.itemsize * column.length // ALIGN) * ALIGN
    return found, at


def view(columns: Sequence[Column], memory: Any) -> Columns:
    """The columns as vectors over `memory`, any writable buffer of at least the size that `offsets` gives."""
    found, size = offsets(columns)
    if len(memory) < size:
        raise ValueError(f"columns need {size} bytes, the memory has {len(memory)}")
    return {c.name: np.frombuffer(memory, c.dtype, c.length, at) for c, at in zip(columns, found, strict=True)}


def allocate(columns: Sequence[Column]) -> Columns:
    """The columns over fresh zeroed memory of this process (tests, tools)."""
    return {c.name: np.zeros(c.length, c.dtype) for c in columns}


def layout_digest(columns: Iterable[Column]) -> str:
    """Names the layout: two processes may share the memory only if they agree on it."""
    state = hashlib.sha256()
    for column in columns:
        state.update(f"{column.name} {column.dtype.descr} {column.dtype.itemsize} {column.length}\n".encode())
    return state.hexdigest()
