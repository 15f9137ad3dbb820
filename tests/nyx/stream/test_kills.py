"""Nothing is lost, doubled or leaked when workers are killed between any two lines of any kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("run", [0, 1, 2])
def test_killed_between_any_two_lines(run: int, seed: int) -> None:
    environment = {**os.environ, "NYX_KERNELS": "plain", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.nyx.stream.kills", str(seed + run)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    kills, places, delivered = map(int, done.stdout.split())
    assert kills == 30
    assert places > 10
    assert delivered == 720_000
