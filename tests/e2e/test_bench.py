"""Every benchmark runs, small, and prints one JSON document that names itself. No figure is judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.histogram import BUCKETS, buckets, percentile
from bench.network import ROOT, Network, command_environment

pytestmark = pytest.mark.timeout(300)

SMALL = {
    "bench.attacks": ["--share", "0.003", "--only", "flips,mixtures,replays,probes"],
    "bench.bus": ["--workers", "2", "--orders", "50", "--rounds", "1"],
    "bench.cap": ["--circuits", "6", "--streams", "2", "--seconds", "1"],
    "bench.cli": ["--runs", "2"],
    "bench.compare_tor": ["--circuits", "1,3", "--mib", "2", "--rounds", "1", "--only", "nyx,ssh"],
    "bench.faults": ["--seconds", "3", "--only", "client: worker"],
    "bench.hostile": ["--packets", "60000"],
    "bench.loss": ["--loss", "5", "--builds", "4", "--requests", "2", "--mib", "1", "--seconds", "10"],
    "bench.kills": ["--kills", "40", "--mib", "4", "--gap", "0.3", "--pause", "60"],
    "bench.slow": ["--sockets", "300", "--seconds", "2", "--every", "1"],
    "bench.subscribers": ["--subscribers", "12", "--spells", "1", "--seconds", "1"],
    "bench.soak": ["--minutes", "0.4", "--gap", "2", "--fill", "3", "--pause", "60"],
    "bench.recovery": ["--rounds", "1"],
    "bench.crypto": ["--rounds", "3"],
    "bench.sdk": ["--hops", "1", "--mib", "4", "--rounds", "1"],
    "bench.streams": ["--megabytes", "2", "--loss", "1"],
    "bench.udp": ["--seconds", "0.2"],
    "bench.reload": ["--reloads", "10", "--spells", "1", "--rate", "10"],
    "bench.throughput": [
        "--workers",
        "2",
        "--suites",
        "aegis128l",
        "--circuits",
        "2",
        "--packets",
        "4000",
        "--raw-seconds",
        "0.2",
    ],
    "bench.upgrades": ["--upgrades", "2", "--mib", "4", "--pause", "60"],
    "bench.stream": ["--hops", "1", "--mib", "8", "--rounds", "1"],
}


@pytest.mark.parametrize("module", sorted(SMALL))
def test_a_small_run_prints_its_document(module: str, network: Network) -> None:
    if module == "bench.loss" and os.geteuid():
        pytest.skip("a network namespace and its packet filter need root")
    arguments = SMALL[module] + (["--socket", network.nodes()[0]["socket"]] if module == "bench.cli" else [])
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--json"],
        cwd=ROOT, env=command_environment(), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    # those two say by their exit codes that they were slow
    assert run.returncode == 0 or module in {"bench.cli", "bench.sdk"}, run.stdout + run.stderr
    document = json.loads(run.stdout)
    assert document["schema"] == module.replace("bench.", "nyx.bench.")
    assert document["version"] == 1


def test_every_script_has_its_smoke() -> None:
    scripts = {f"bench.{path.stem}" for path in Path(ROOT, "bench").glob("*.py")}
    assert scripts - {"bench.network"} == set(SMALL)


@given(st.lists(st.integers(1, 1 << 39), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_at_most_one_bucket_above_the_value(values: list[int], part: float) -> None:
    counts = np.bincount(buckets(np.array(values, np.int64)), minlength=BUCKETS)
    exact = sorted(values)[max(1, int(np.ceil(part * len(values)))) - 1]
    assert exact <= percentile(counts, part) <= exact * (1 + 1 / 16)
