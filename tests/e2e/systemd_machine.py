"""A real systemd of its own, as a container has it: its processes, mounts, network and control groups; all writes go to memory.

Its root is this machine's, under an overlay; it sees no device but harmless ones, and can write nothing of /proc/sys and /sys.
"""

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.network import ROOT

GROUPS = Path("/sys/fs/cgroup")
# The interpreter and the packages that run the tests, where a service can see them: it sees no home folder.
PYTHON = "/opt/nyx-python/bin/python3"
PACKAGES = "/opt/nyx-packages"
SOURCE = "/opt/nyx-source"  # this checkout, wherever it stands; nothing is written there
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
PATIENCE = 300.0  # seconds for one command
BOOT = 60.0  # seconds

_INNER = r"""
set -eu
base=$1 packages=$2 python=$3 source=$4 root=$1/root
mount -t tmpfs tmpfs "$base"
mkdir "$base/upper" "$base/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$root"
cd "$root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
fi
for folder in run dev tmp; do mount -t tmpfs -o mode=755 tmpfs $folder; done
chmod 1777 tmp
for node in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do mknod -m 666 "dev/${node% *}" c 1 "${node#* }"; done
mkdir -p dev/pts dev/shm opt/nyx-packages opt/nyx-python opt/nyx-source old
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount --bind "$packages" opt/nyx-packages
mount --bind "$python" opt/nyx-python
mount --bind "$source" opt/nyx-source
mount -o remount,ro,bind opt/nyx-source
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ip link set lo up
rm -f etc/machine-id
echo 0123456789abcdef0123456789abcdef >etc/machine-id
printf '[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n' >etc/systemd/system/nyx-test.target
pivot_root . old
umount -l /old
exec env -i container=nyx PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=nyx-test.target --show-status=no --log-target=console
"""


class Machine:
    """One that runs."""

    def __init__(self, pid: int) -> None:
        spaces = ("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd")
        self._enter = ["nsenter", "--target", str(pid), *spaces]

    def run(self, *command: str, data: bytes = b"", check: bool = True) -> "subprocess.CompletedProcess[bytes]":
        """Run a command there."""
        done = subprocess.run(
            [*self._enter, *command], env=ENVIRONMENT, input=data, capture_output=True, check=False, timeout=PATIENCE, cwd="/"
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def show(self, name: str, unit: str = "nyx.service") -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.decode().strip()

    def write(self, path: str, data: bytes) -> None:
        """Put a file there."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat >"$1"', "sh", path, data=data)


@contextlib.contextmanager
def booted(base: Path) -> Iterator[Machine]:
    """A machine until the end of the block; skips the test where none can be made, with the reason."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not Path("/lib/systemd/systemd").exists():
        pytest.skip("systemd is not installed")
    name = f"nyx-test-{os.getpid()}"
    trees = [GROUPS] if (GROUPS / "cgroup.controllers").exists() else [GROUPS / "systemd", GROUPS / "unified"]
    groups = [tree / name for tree in trees]
    log = base / "boot.log"
    try:
        for group in groups:
            group.mkdir(exist_ok=True)
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    join = "".join(f'echo $$ >"{group}/cgroup.procs"\n' for group in groups)
    spaces = "--mount --pid --fork --kill-child --cgroup --ipc --uts --net --propagation private"
    outer = f'set -eu\n{join}exec unshare {spaces} bash -c "$INNER" inner "$@"'
    root = base / "machine"
    root.mkdir()
    with log.open("wb") as out:
        command = ["bash", "-c", outer, "outer", str(root), sysconfig.get_path("purelib"), sys.base_prefix, str(ROOT)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | {"INNER": _INNER})
    try:
        yield _wait(process, log)
    finally:
        for pid in (_child(process.pid), process.pid):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()
        _remove(groups)


def _wait(process: "subprocess.Popen[bytes]", log: Path) -> Machine:
    until = time.monotonic() + BOOT
    while process.poll() is None and time.monotonic() < until:
        if pid := _child(process.pid):
            machine = Machine(pid)
            if machine.run("systemctl", "is-active", "--quiet", "nyx-test.target", check=False).returncode == 0:
                machine.run("systemctl", "log-target", "journal")
                return machine
        time.sleep(0.2)
    pytest.skip(f"no systemd can be booted here: {log.read_text('utf-8', 'replace')[-600:]}")


def _child(pid: int) -> int:
    """The first child of `unshare`: process 1 over there."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return 0


def _remove(groups: list[Path]) -> None:
    until = time.monotonic() + 10
    while any(group.exists() for group in groups) and time.monotonic() < until:
        for group in groups:
            for folder in [*sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True), group]:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        time.sleep(0.05)
