"""Every kernel is loaded before the supervisor forks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nyx.kernel import PLAIN, source_digest
from shards import kernels

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_list_is_the_tree() -> None:
    found = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for room in ("nyx", "shards")
        for file in (ROOT / room).rglob("*.py")
        if re.search(r"^@kernel\(", file.read_text("utf-8"), re.MULTILINE)
    }
    assert set(kernels.KERNEL_MODULES) == found


def test_the_state_of_the_sources_has_a_name() -> None:
    one, both = source_digest(kernels.KERNEL_MODULES[:1]), source_digest(kernels.KERNEL_MODULES[:2])
    assert one != both
    assert one == source_digest(kernels.KERNEL_MODULES[:1])


def test_a_cold_cache_is_filled_in_a_child_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    told: list[str] = []
    monkeypatch.setattr(kernels, "PLAIN", False)
    monkeypatch.setattr(kernels, "load", lambda: None)
    monkeypatch.setattr(kernels, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command))
    kernels.prepare(told.append)
    kernels.prepare(told.append)
    assert [command[0] for command in calls] == [sys.executable]
    assert len(told) == 1


@pytest.mark.skipif(not PLAIN, reason="the other tests of a compiled run load what they use")
def test_plain_kernels_need_no_compiler() -> None:
    code = "import sys, shards.kernels; shards.kernels.prepare(print); assert 'numba' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
