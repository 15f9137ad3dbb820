"""The supervisor replaces its own code: another image in the same process, with the same memory, descriptors and children.

    1  preflight   the new code, started as a program, checks configuration and keys, loads its kernels, and says on which memory
                   it would work (`nyxd --plan`); a difference means that running state cannot be kept
    2  replace     the supervisor writes what it holds into a memfd and executes the new code: same pid, children go on
    3  adopt       the new image maps the memory; each keeper hands its worker's descriptors over (`shards/handover.py`), and the
                   next keeper and worker are forked from the new code; the control process is started anew

While 1 and 2 last, workers of the old code carry on; in 3 each pauses for one restart. Source: Linux execve(2), memfd_create(2).
"""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from nyx import __version__
from nyx.columns import Column
from nyx.config import Config
from nyx.errors import NyxError
from shards.holdings import layout_digests, memory_layouts
from shards.process import WATCHED, default_signals, die_with, fork, package_environment

VARIABLE: Final = "NYX_UPGRADE"  # number of the memfd that the image before left
PLAN_MAX: Final = 1 << 20  # bytes of a preflight's output that are read
_WHY_MAX: Final = 2000  # characters of a failed preflight's messages that are told


def describe(config: Config, workers: int, own: Sequence[Column]) -> dict[str, Any]:
    """What this code and configuration would hold: two images that say the same can follow each other."""
    node = config.node
    return {
        "release": __version__,
        "memory": layout_digests(memory_layouts(workers, config, own)),
        "kept": {
            "node.address": node.address, "node.port": node.port, "node.role": node.role,
            "node.state_dir": str(node.state_dir), "node.run_dir": str(node.run_dir),
            "sdk.enabled": config.sdk.enabled, "workers.count": workers,
            "proxy.listen": list(config.proxy.listen) if config.proxy.listen else None,
        },
    }  # fmt: skip


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Why the state of the one cannot be used by the other, as sentences; empty: it can."""
    kept, wanted = now["kept"], then["kept"]
    found = [f"{key} changes from {value} to {wanted.get(key)}" for key, value in kept.items() if value != wanted.get(key)]
    if not found and now["memory"] != then["memory"]:
        names = [name for name, digest in then["memory"].items() if now["memory"].get(name) != digest]
        found.append(f"version {then['release']} lays its memory out differently ({', '.join(sorted(names))})")
    return found


@dataclass(frozen=True, slots=True)
class Preflight:
    """A running `nyxd --plan` of the new code; its output goes into memory."""

    pid: int
    output: int

    @classmethod
    def start(cls, command: Sequence[str]) -> "Preflight":
        """Start it. Raises OSError."""
        output = os.memfd_create("nyx-plan", os.MFD_CLOEXEC)
        supervisor, pid = os.getpid(), fork()
        if pid == 0:
            _try(command, output, supervisor)
        return cls(pid, output)

    def kill(self) -> None:
        """It takes too long."""
        os.kill(self.pid, signal.SIGKILL)

    def result(self, status: int) -> dict[str, Any]:
        """What it said. Raises NyxError with its messages when it failed."""
        text = os.pread(self.output, PLAN_MAX, 0).decode(errors="replace")
        os.close(self.output)
        if status == 0:
            try:
                plan: dict[str, Any] = json.loads(text.strip().rsplit("\n", 1)[-1])
            except ValueError:
                status = -1
            else:
                return plan
        why = text.strip()[-_WHY_MAX:] or "it said nothing"
        raise NyxError(f"the new version does not start here, nothing was changed: {why}")


def _try(command: Sequence[str], output: int, supervisor: int) -> NoReturn:
    """Become the new code, in a fresh child. Whoever asked is dead: so is this."""
    try:
        die_with(supervisor)
        default_signals()
        for stream in (1, 2):
            os.dup2(output, stream)
        environment = {key: value for key, value in package_environment().items() if key != VARIABLE}
        os.execve(sys.executable, list(command), environment)  # noqa: S606 (a list of arguments, no shell)
    except BaseException as error:  # noqa: BLE001 (the last frame of a forked process)
        os.write(output, f"it cannot be executed: {error}".encode())
    finally:
        os._exit(1)


def replace(command: Sequence[str], state: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Execute the new code with this state. Returns only by an OSError, with everything as it was."""
    memory = os.memfd_create("nyx-upgrade", 0)
    try:
        os.write(memory, json.dumps(state).encode())
        for fd in descriptors:
            os.set_inheritable(fd, True)  # noqa: FBT003 (the standard library's form)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, list(command), os.environ | {VARIABLE: str(memory)})  # noqa: S606 (a list of arguments, no shell)
    finally:
        os.ftruncate(memory, 0)
        os.close(memory)
        for fd in descriptors:
            os.set_inheritable(fd, False)  # noqa: FBT003


def start_over(command: Sequence[str]) -> None:
    """Execute the new code as if it were started now; everything has been let go before."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    os.execve(sys.executable, list(command), dict(os.environ))  # noqa: S606


def take_state() -> dict[str, Any] | None:
    """What the image before this one left; None for a start from nothing."""
    number = os.environ.pop(VARIABLE, "")
    if not number.isdigit():
        return None
    memory = int(number)
    size = os.fstat(memory).st_size
    state: dict[str, Any] = json.loads(os.pread(memory, size, 0))
    os.pwrite(memory, bytes(size), 0)  # it held the boot's secret
    os.close(memory)
    return state
