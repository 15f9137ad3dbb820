"""Claim: nyxctl answers at once: --help within 150 ms, status of a running node within 300 ms, medians of cold starts.

    python bench/cli.py [--runs 15] [--socket PATH] [--json]

Each run is a process of its own, timed from its start to its end. Beside it stands what Python alone takes, in the same rounds.
Without --socket it starts a small test network of its own for the time of the measurement.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.network import ROOT, command_environment, running_network

LIMITS: Final = {"nyxctl --help": 150.0, "nyxctl status": 300.0}  # ms
_NYXCTL: Final = "import sys; sys.argv[0] = 'nyxctl'; from control.cli import main; main()"


def timed(command: list[str]) -> float:
    """Milliseconds from the start to the end of a process. Raises CalledProcessError."""
    began = time.perf_counter()
    subprocess.run(command, env=command_environment(), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000


@contextlib.contextmanager
def node(path: str | None) -> Iterator[str]:
    """Socket of the node to ask: the given one, or one of a network of our own."""
    if path:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, running_network(Path(folder, "net"), nodes=4) as network:
        yield next(n["socket"] for n in network.nodes() if n["role"] == "client")


def measure(runs: int, path: str) -> dict[str, list[float]]:
    """Times of each command, the commands taking turns."""
    nyxctl = [sys.executable, "-c", _NYXCTL]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "nyxctl --help": [*nyxctl, "--help"],
        "nyxctl status": [*nyxctl, "--socket", path, "status"],
        "nyxctl status --json": [*nyxctl, "--socket", path, "status", "--json"],
        "nyxctl circuits --json": [*nyxctl, "--socket", path, "circuits", "--json"],
    }
    for command in commands.values():
        timed(command)  # bytecode and page cache
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            found[name].append(timed(command))
    return found


def main() -> int:
    """Measure, print, and end with 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--socket", help="control socket of a running node")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with node(options.socket) as path:
        found = measure(options.runs, path)
    medians = {name: statistics.median(times) for name, times in found.items()}
    if options.json:
        rows = [
            {"command": n, "median": medians[n], "min": min(t), "max": max(t), "limit": LIMITS.get(n)} for n, t in found.items()
        ]
        print(json.dumps({"schema": "nyx.bench.cli", "version": 1, "unit": "ms", "runs": options.runs, "rows": rows}))
    else:
        print(f"{'command':24}{'median':>9}{'min':>9}{'max':>9}{'limit':>9}   ms, {options.runs} runs")
        for name, times in found.items():
            limit = f"{LIMITS[name]:9.0f}" if name in LIMITS else ""
            print(f"{name:24}{medians[name]:9.0f}{min(times):9.0f}{max(times):9.0f}{limit}")
    return int(any(medians[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
