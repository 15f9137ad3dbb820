"""Coverage-guided fuzzing of one target, or of all one after the other: `python -m tests.fuzz.run TARGET --seconds 60`.

libFuzzer (through Atheris) begins with the kept corpus and writes what reaches new code to .fuzz/TARGET; an input that breaks a
target is written to .fuzz/crashes-TARGET and the run ends with an error. `--keep` runs nothing: it adds to the kept corpus what
.fuzz/TARGET reaches beyond it. `--input FILE` gives one file to a target, without Atheris. Kernels run as plain Python here.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

os.environ["NYX_KERNELS"] = "plain"  # before nyx: coverage must see the kernels' lines

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS, load

FOUND: Final = Path(".fuzz")
LONGEST: Final = 16384  # bytes of an input
SLOWEST: Final = 10  # seconds for one input; more is a finding
MEMORY: Final = 2048  # MiB of the whole process; more is a finding


def fuzz(target: str, seconds: int, *, keep: bool) -> None:
    """Run libFuzzer in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=["nyx", "shards", "control"]):
        function = load(target)
    kept, found = corpus.folder(target), FOUND / target
    crashes = FOUND / f"crashes-{target}"
    for folder in (kept, found, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    folders = [kept, found] if keep else [found, kept]
    options = ["-merge=1"] if keep else [f"-max_total_time={seconds}", "-print_final_stats=1"]
    limits = [f"-max_len={LONGEST}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={crashes}/"]
    atheris.Setup([sys.argv[0], *map(str, folders), *options, *limits], lambda data: function(data) and None)
    atheris.Fuzz()


def fuzz_all(seconds: int, *, keep: bool) -> int:
    """Each target in a process of its own; how many were broken."""
    broken = []
    for target in TARGETS:
        command = [sys.executable, "-m", "tests.fuzz.run", target, "--seconds", str(seconds), *(["--keep"] if keep else [])]
        ran = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        figures = [text for text in ran.stdout.decode("utf-8", "replace").splitlines() if " cov: " in text][-1:]
        print(f"{target}: {'ok' if ran.returncode == 0 else 'BROKEN'} {' '.join(figures)}", flush=True)
        if ran.returncode:
            broken.append(target)
            print(ran.stdout.decode("utf-8", "replace")[-4000:], flush=True)
    if broken:
        print(f"broken: {', '.join(broken)}; the inputs are in {FOUND}/crashes-TARGET", flush=True)
    return len(broken)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description="Coverage-guided fuzzing of Nyx.")
    parser.add_argument("target", choices=["all", *TARGETS], metavar="TARGET", help=f"all, or one of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="how long each target runs (60)")
    parser.add_argument("--keep", action="store_true", help="run nothing; add what was found to the kept corpus")
    parser.add_argument("--input", type=Path, help="give this one file to the target")
    wanted = parser.parse_args()
    if wanted.target == "all":
        return min(1, fuzz_all(wanted.seconds, keep=wanted.keep))
    if wanted.input:
        print("taken" if load(wanted.target)(wanted.input.read_bytes()) else "refused")
        return 0
    fuzz(wanted.target, wanted.seconds, keep=wanted.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
