"""Every benchmark runs, small, and prints one JSON document that names itself. No figure is judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.network import ROOT, Network, command_environment

pytestmark = pytest.mark.timeout(300)

SMALL = {
    "bench.attacks": ["--share", "0.003", "--only", "flips,mixtures,replays,probes"],
    "bench.cap": ["--circuits", "6", "--streams", "2", "--seconds", "1"],
    "bench.cli": ["--runs", "2"],
    "bench.compare_tor": ["--circuits", "1,3", "--mib", "2", "--rounds", "1", "--only", "nyx,ssh"],
    "bench.faults": ["--seconds", "3", "--only", "client: worker"],
    "bench.hostile": ["--packets", "60000"],
    "bench.loss": ["--builds", "4", "--requests", "2", "--mib", "1", "--seconds", "10"],
    "bench.kills": ["--kills", "40", "--mib", "4", "--gap", "0.3", "--pause", "60"],
    "bench.slow": ["--sockets", "300", "--seconds", "2", "--every", "1"],
    "bench.soak": ["--minutes", "0.4", "--gap", "2", "--fill", "3", "--pause", "60"],
    "bench.recovery": ["--rounds", "1"],
    "bench.crypto": ["--rounds", "3"],
    "bench.sdk": ["--hops", "1", "--mib", "4", "--rounds", "1"],
    "bench.streams": ["--megabytes", "2", "--loss", "1"],
    "bench.udp": ["--seconds", "0.2"],
    "bench.reload": ["--reloads", "10", "--spells", "1", "--rate", "10"],
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
