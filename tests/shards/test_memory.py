"""Shared memory: what the creator writes others see; sizes and layouts are held to."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from nyx.columns import ALIGN, Column
from nyx.errors import InternalError
from shards.memory import Memory, keep_from_swap

LAYOUT = [Column("words", np.dtype(np.int64), 3), Column("bytes", np.dtype(np.uint8), 5000)]


def test_columns_start_as_zeros_and_are_shared() -> None:
    memory = Memory.create("nyx-test", LAYOUT)
    assert not memory.columns["words"].any()
    assert len(memory.columns["bytes"]) == 5000
    other = Memory.attach(memory.fd, LAYOUT)
    other.columns["words"][1] = -7
    assert memory.columns["words"].tolist() == [0, -7, 0]
    assert int(memory.columns["bytes"].ctypes.data) % ALIGN == 0


def test_memory_outlives_descriptor_and_process() -> None:
    memory = Memory.create("nyx-test", LAYOUT)
    child = os.fork()
    if child == 0:
        memory.columns["words"][0] = os.getpid()
        os._exit(0)
    os.waitpid(child, 0)
    memory.close()
    memory.close()
    assert memory.columns["words"][0] == child


def test_another_layout_is_refused() -> None:
    memory = Memory.create("nyx-test", LAYOUT)
    same_size = [Column("words", np.dtype(np.float64), 3), LAYOUT[1]]
    for layout in (same_size, LAYOUT[:1]):
        with pytest.raises(InternalError):
            Memory.attach(memory.fd, layout)


def test_the_size_is_sealed() -> None:
    memory = Memory.create("nyx-test", LAYOUT)
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)


def test_a_reader_can_be_mapped_for_reading_only() -> None:
    memory = Memory.create("nyx-test", LAYOUT)
    handle = memory.open_reader()
    with pytest.raises(PermissionError):
        Memory.attach(handle, LAYOUT)
    reader = Memory.attach(handle, LAYOUT, writable=False)
    memory.columns["words"][2] = 9
    assert reader.columns["words"][2] == 9
    with pytest.raises(ValueError, match="read-only"):
        reader.columns["words"][2] = 1


def test_it_is_not_dumped_and_what_is_touched_can_be_locked() -> None:
    memory = Memory.create("nyx-test-dump", LAYOUT)
    if keep_from_swap(memory.columns["words"]):
        memory.columns["words"][0] = 1
        locked = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck")]
        assert int(locked[0].split()[1]) > 0
    maps = Path("/proc/self/smaps").read_text().split("memfd:nyx-test-dump")[1:]
    flags = [next(line for line in entry.splitlines() if line.startswith("VmFlags")).split() for entry in maps]
    assert flags
    assert all("dd" in line for line in flags)
    assert mmap.PAGESIZE <= ALIGN
