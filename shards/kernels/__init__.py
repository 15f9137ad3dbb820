"""What a worker does to a batch: compiles and arranges the array functions that live with their idea in nyx.

Kernels are compiled once for a machine and a version of their sources, and cached on disk. The supervisor loads all of them
before it forks, so workers share their pages and never compile: a process that has sealed itself against new code would crash.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nyx.errors import NyxError
from nyx.kernel import PLAIN, cache_root, source_digest
from shards.process import package_environment

# Every module with kernels of its own; tests/shards/test_kernels.py compares this list with the tree.
KERNEL_MODULES: Final = (
    "nyx.crypto.entropy",
    "nyx.link.initiations",
    "nyx.link.seal",
    "nyx.onion.layer",
    "nyx.onion.work",
    "nyx.stream.commands",
    "nyx.stream.rebuild",
    "nyx.stream.receive",
    "nyx.stream.timers",
    "nyx.stream.transmit",
    "shards.kernels.cells",
    "shards.kernels.challenge",
    "shards.kernels.epochs",
    "shards.kernels.route",
    "shards.kernels.slots",
    "shards.kernels.strangers",
    "shards.kernels.tcp",
    "shards.kernels.turn",
    "shards.poller",
    "shards.pool",
    "shards.quotas",
    "shards.ring",
    "shards.tables",
    "shards.udp",
)

ROOM: Final = 40 << 20  # bytes that the cache of all kernels takes, at most


class CacheError(NyxError):
    """The folder of compiled kernels takes nothing."""


def load() -> None:
    """Import every kernel of the data plane, compiling what the cache does not have."""
    for name in KERNEL_MODULES:
        importlib.import_module(name)


def prepare(tell: Callable[[str], None]) -> None:
    """Load every kernel. A cold cache is filled by a child process: a compiler leaves 100 MiB behind that workers would inherit.

    `tell` is given one line of text when that takes a while. Raises subprocess.CalledProcessError when a kernel does not compile,
    CacheError when the cache cannot be written.
    """
    if PLAIN:
        load()
        return
    root: Path | None = None
    try:
        root = cache_root()
        mark = root / f"complete-{source_digest(KERNEL_MODULES)}"
        if not mark.exists():
            _fill(root, tell)
            mark.touch()
    except OSError as error:
        place, why = root or error.filename, error.strerror or error
        raise CacheError(f"{place}: {why}; make room there, or name another with NYX_CACHE_DIR") from error
    load()


def _fill(root: Path, tell: Callable[[str], None]) -> None:
    probe = root / f"probe-{os.getpid()}"
    try:
        probe.write_bytes(bytes(ROOM))  # said at once and in words: the compiler would end in a traceback after a minute
    finally:
        probe.unlink(missing_ok=True)
    tell("compiling kernels, once after an installation or update: about a minute")
    command = [sys.executable, "-c", "import shards.kernels; shards.kernels.load()"]
    subprocess.run(command, check=True, env=package_environment())
