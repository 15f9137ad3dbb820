"""The kernels do the same, byte for byte, as plain Python and compiled: each mode runs in its own process."""

import os
import subprocess
import sys
from pathlib import Path

from nyx.kernel import PLAIN
from tests.reference.transcript import transcript

ROOT = Path(__file__).parents[2]


def test_plain_and_compiled_make_the_same_bytes(seed: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "NYX_KERNELS"}
    if not PLAIN:
        environment["NYX_KERNELS"] = "plain"
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "tests.reference.transcript", str(seed)]
    other = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=110)
    mode, *lines = other.stdout.splitlines()
    assert mode == ("compiled" if PLAIN else "plain")
    assert lines == transcript(seed)
    assert len(lines) == 36
    assert len(set(lines)) == len(lines)
