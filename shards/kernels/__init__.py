"""What a worker does to a batch: compiles and arranges the array functions that live with their idea in nyx.

Kernels are compiled once for a machine and a version of their sources, and cached on disk. The supervisor loads all of them
before it forks, so workers share their pages and never compile: a process that has sealed itself against new code would crash.
"""

import importlib
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from nyx.kernel import PLAIN, cache_root, source_digest
from shards.process import package_environment

# Every module with kernels of its own; tests/shards/test_kernels.py compares this list with the tree.
KERNEL_MODULES: Final = (
    "nyx.link.seal",
    "nyx.onion.layer",
    "nyx.stream.commands",
    "nyx.stream.rebuild",
    "nyx.stream.receive",
    "nyx.stream.timers",
    "nyx.stream.transmit",
    "shards.kernels.cells",
    "shards.kernels.route",
    "shards.kernels.tcp",
    "shards.poller",
    "shards.pool",
    "shards.ring",
    "shards.tables",
    "shards.udp",
)


def load() -> None:
    """Import every kernel of the data plane, compiling what the cache does not have."""
    for name in KERNEL_MODULES:
        importlib.import_module(name)


def prepare(tell: Callable[[str], None]) -> None:
    """Load every kernel. A cold cache is filled by a child process: a compiler leaves 100 MiB behind that workers would inherit.

    `tell` is given one line of text when that takes a while. Raises subprocess.CalledProcessError when a kernel does not compile.
    """
    if PLAIN:
        load()
        return
    mark = cache_root() / f"complete-{source_digest(KERNEL_MODULES)}"
    if not mark.exists():
        tell("compiling kernels, once after an installation or update: about a minute")
        command = [sys.executable, "-c", "import shards.kernels; shards.kernels.load()"]
        subprocess.run(command, check=True, env=package_environment())
        mark.touch()
    load()
