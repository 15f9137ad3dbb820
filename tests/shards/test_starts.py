"""Starts of a real node where something is missing: said in one line, exit 1, nothing left; what is not needed is not missed."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from bench.chaos.seams import Shim
from bench.network import nyxctl
from nyx.kernel import PLAIN, cache_root
from tests.shards.test_nyxd import ROOT, Home
from tests.shards.test_supervisor import eventually

MIB = 1 << 20
PATIENCE = 110

pytestmark = [pytest.mark.timeout(240), pytest.mark.skipif(PLAIN, reason="nodes run compiled kernels")]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    """A full cache: a limit on a node must not be met by its compiler."""
    subprocess.run(
        [sys.executable, "-c", "from shards.kernels import prepare; prepare(print)"], cwd=ROOT, check=True, timeout=200
    )


class Start:
    """A node that was started, in a session of its own."""

    def __init__(
        self,
        home: Home,
        limits: Sequence[str] = (),
        before: Sequence[str] = (),
        log: IO[bytes] | int = subprocess.PIPE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        command = [sys.executable, "-m", "shards.nyxd", "--config", str(home.file)]
        if limits:
            command = ["prlimit", *limits, *command]
        if before:  # in a mount namespace of its own, where these commands were run first
            command = ["unshare", "--mount", "sh", "-c", "\n".join(["set -e", *before, 'exec "$@"']), "sh", *command]
        given = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )

    def refused(self) -> str:
        """The one line that says why there is no node; nothing is left of it."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, out) == (1, ""), err
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1, err
        assert not self.members()
        assert not (self.home.folder / "control.sock").exists()
        return err

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE)[0]
        line = self.process.stdout.readline()
        assert line.startswith("READY"), self.process.communicate()

    def stop(self) -> str:
        """End it; what it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        err = self.process.communicate(timeout=PATIENCE)[1]
        assert self.process.returncode == 0, err
        assert not self.members()
        return err

    def members(self) -> list[int]:
        """Who lives in its session."""
        found = []
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with contextlib.suppress(OSError):
                if (
                    os.getsid(pid) == self.process.pid
                    and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
                ):
                    found.append(pid)
        return found

    def worker(self) -> int:
        titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.members()}
        return next((pid for pid, title in titles.items() if title.startswith(b"nyxd: worker")), 0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    folder = tmp_path / "n"
    folder.mkdir()
    return Home(folder)


@pytest.mark.parametrize("descriptors", [16, 71])
def test_too_few_descriptors_are_refused_by_number(home: Home, descriptors: int) -> None:
    said = Start(home, limits=[f"--nofile={descriptors}"]).refused()
    assert f"{descriptors} open files are allowed here, this node needs 72" in said


def test_just_enough_descriptors_are_enough(home: Home) -> None:
    node = Start(home, limits=["--nofile=72"])
    node.ready()
    assert node.stop() == ""


@pytest.mark.parametrize("memory", [100, 200, 600, 3000])
def test_too_little_memory_is_said(home: Home, memory: int) -> None:
    assert "memory" in Start(home, limits=[f"--as={memory * MIB}"]).refused().lower()


def test_no_room_for_processes_is_said(home: Home, tmp_path: Path) -> None:
    shim = Shim(tmp_path)
    shim.refuse_processes(-1)
    assert (
        "no room for the process of worker 0 (Resource temporarily unavailable)"
        in Start(home, environment=shim.environment).refused()
    )


def test_a_kernel_cache_that_cannot_be_made_is_named(home: Home) -> None:
    said = Start(home, environment={"NYX_CACHE_DIR": "/proc"}).refused()
    assert "/proc/nyx" in said
    assert "NYX_CACHE_DIR" in said


def test_a_missing_folder_for_temporary_files_is_not_missed(home: Home) -> None:
    node = Start(home, environment={"TMPDIR": "/nonexistent"})
    node.ready()
    assert node.stop() == ""


def test_a_log_on_a_full_disk_costs_its_lines_only(home: Home) -> None:
    """The supervisor has something to say about a worker that was stopped, and cannot; it starts the next one all the same."""
    with Path("/dev/full").open("wb") as full:
        node = Start(home, log=full)
    node.ready()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        before = node.worker()
        os.kill(before, number)
        if number == signal.SIGSTOP:
            assert eventually(lambda: warned(home))
            os.kill(before, signal.SIGCONT)
    assert eventually(lambda: node.worker() not in (0, before))
    node.stop()


def warned(home: Home) -> bool:
    done = nyxctl("--socket", str(home.folder / "control.sock"), "status", "--json")
    return "was stopped by a signal" in done.stdout


@as_root
@pytest.mark.root
def test_a_full_kernel_cache_is_named(home: Home, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    full = f"mount -t tmpfs -o size=64k,mode=755 none {cache}"
    said = Start(home, before=[full], environment={"NYX_CACHE_DIR": str(cache)}).refused()
    assert f"{cache}/nyx/kernels: No space left on device; make room there, or name another with NYX_CACHE_DIR" in said


@as_root
@pytest.mark.root
def test_a_full_cache_that_nobody_may_write_is_enough(home: Home) -> None:
    root = cache_root()
    closed = [f"mount --bind {root} {root}", f"mount -o remount,bind,ro {root}", f"! touch {root}/x 2>/dev/null"]
    node = Start(home, before=closed)
    node.ready()
    assert node.stop() == ""


@as_root
@pytest.mark.root
def test_full_shared_memory_does_not_matter(home: Home) -> None:
    fill = "head -c 100000 /dev/zero > /dev/shm/fill 2>/dev/null || test $(stat -f -c %a /dev/shm) = 0"
    node = Start(home, before=["mount -t tmpfs -o size=4k none /dev/shm", fill])
    node.ready()
    assert node.stop() == ""


@as_root
@pytest.mark.root
def test_a_full_run_folder_is_named(home: Home, tmp_path: Path) -> None:
    run = tmp_path / "r"
    run.mkdir(0o700)
    home.file.write_text(home.text.replace('run_dir = "."', f'run_dir = "{run}"'))
    said = Start(home, before=[f"mount -t tmpfs -o nr_inodes=1,mode=700 none {run}"]).refused()
    assert f"{run}/control.sock: No space left on device" in said


@as_root
@pytest.mark.root
def test_a_state_folder_that_nobody_may_write_is_named(home: Home) -> None:
    folder = home.folder
    said = Start(home, before=[f"mount --bind {folder} {folder}", f"mount -o remount,bind,ro {folder}"]).refused()
    assert "directory.pin: cannot be written: Read-only file system; make room, or let this user write there" in said
