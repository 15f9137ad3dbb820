"""Up, status and down of a test network.

The record in its folder is written before the first process starts and after each: an interrupted `up` can be taken down.
An `up` holds a lock on the folder, so that two at one time do not take each other's files for a dead network's.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from control.client import ClientError, ask
from control.places import RECORD, load_record, program
from control.schemas import Testnet, TestnetNode
from control.testnet import processes
from control.testnet.plan import HOST, Member, Plan, node_folder, write_files
from control.testnet.processes import Identity
from nyx.errors import NyxError
from nyx.files import private_folder, write_whole

READY_TIMEOUT: Final = 300.0  # seconds; a first start compiles every kernel
STOP_GRACE: Final = 10.0
_POLL: Final = 0.05
_SLOW: Final = 4.0  # seconds after which the first node is likely to compile
_LOG_LINES: Final = 12
_FILES: Final = ("network", "web.log")  # beside the nodes' folders and the record
_KEPT: Final = ("NYX_CACHE_DIR", "NYX_KERNELS", "NYX_NODE_INSPECT")  # variables of ours that test nodes inherit

NODE: Final = [sys.executable, "-m", "shards.nyxd"]

Say = Callable[[str], None]


class TestnetError(NyxError):
    """The test network cannot be started or stopped as asked."""

    __test__ = False


def up(plan: Plan, say: Say, timeout: float = READY_TIMEOUT) -> Testnet:
    """Start the network and wait until every node is ready; otherwise nothing is left of it. Raises TestnetError, ConfigError."""
    with _claim(plan.folder):
        _make_room(plan.folder)
        _check_ports(plan)
        return _up(plan, say, time.monotonic() + timeout)


def _up(plan: Plan, say: Say, until: float) -> Testnet:
    record: dict[str, Any] = {
        "version": 1,
        "boot": processes.boot_id(),
        "hops": plan.hops,
        "proxy": f"{HOST}:{plan.proxy_port}",
        "web": None,
        "settings": list(plan.settings),
        "nodes": [_entry(plan, member) for member in plan.members],
    }
    try:
        save_record(plan.folder, record)
        write_files(plan, os.urandom, int(time.time()), cpu_flags())
        first, *others = record["nodes"]
        children = [_start(plan.folder, record, first)]
        say(f"starting {len(record['nodes'])} local nodes")
        _await_ready(record["nodes"][:1], children, until, say)  # alone: it compiles the kernels, the others find them
        children += [_start(plan.folder, record, entry) for entry in others]
        _await_ready(record["nodes"], children, until, say)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            say("interrupted: stopping what was started")
        down(plan.folder)
        raise
    return status(plan.folder)


def down(folder: Path) -> bool:
    """Stop every recorded process, wait, and remove every file; False when there was nothing. Raises TestnetError."""
    record = load_record(folder)
    if record is None:
        return False
    if record.get("damaged"):
        raise TestnetError(_damaged(folder))
    with processes.uninterrupted():
        _clear(folder, record)
        with contextlib.suppress(OSError):
            folder.rmdir()  # somebody else's files keep it
    return True


def _clear(folder: Path, record: dict[str, Any]) -> None:
    if record.get("boot") == processes.boot_id():
        processes.stop(_identities(record), STOP_GRACE)
    for entry in record["nodes"]:
        shutil.rmtree(node_folder(folder, entry["alias"]), ignore_errors=True)
    shutil.rmtree(folder / "web", ignore_errors=True)
    for name in (*_FILES, RECORD):
        (folder / name).unlink(missing_ok=True)


def status(folder: Path) -> Testnet:
    """How the network in this folder is."""
    record = load_record(folder)
    if record is None or record.get("damaged"):
        return Testnet(str(folder), "down" if record is None else "broken", None, None, 0)
    here = record.get("boot") == processes.boot_id()
    nodes = [_node(entry, here=here) for entry in record["nodes"]]
    states = {node.state for node in nodes}
    state = "up" if states == {"ready"} else "down" if states == {"down"} else "broken" if "down" in states else "starting"
    web = record["web"]["url"] if record["web"] and here and processes.alive(_identity(record["web"])) else None
    return Testnet(str(folder), state, record["proxy"], web, record["hops"], nodes)


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace the record."""
    write_whole(folder / RECORD, json.dumps(record, indent=1).encode())


def node_environment() -> dict[str, str]:
    """The caller's environment without Nyx settings of his own, and with this very code in front."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NYX_") or k in _KEPT}
    root = str(Path(__file__).resolve().parents[2])
    given = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return kept | {"PYTHONPATH": os.pathsep.join(dict.fromkeys([root, *given]))}


def cpu_flags() -> str:
    """The processor's feature flags, as the nodes will see them."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2]
    return ""


# ---------------------------------------------------------------- steps of up


def _entry(plan: Plan, member: Member) -> dict[str, Any]:
    place = node_folder(plan.folder, member.alias)
    return {
        "alias": member.alias,
        "role": member.role,
        "port": member.port,
        "config": str(place / "nyx.toml"),
        "socket": str(place / "run" / "control.sock"),
        "log": str(place / "log"),
        "pid": None,
        "start": None,
    }


@contextlib.contextmanager
def _claim(folder: Path) -> Iterator[None]:
    """The folder, ours alone while this lasts; it goes again where nothing came into it. Raises TestnetError, ConfigError."""
    if folder.exists() and not folder.is_dir():
        raise TestnetError(f"{folder} is no folder; choose another with --dir")
    if load_record(folder) is None and folder.exists() and any(folder.iterdir()):
        raise TestnetError(f"{folder} is not empty and holds no test network; choose another with --dir")
    private_folder(folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(handle, folder)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), folder.stat()):
            return
    except (BlockingIOError, FileNotFoundError):
        pass
    raise TestnetError(f"a test network is being started in {folder} just now; wait until it is up")


def _make_room(folder: Path) -> None:
    """Refuse where a network runs; remove what a dead one left."""
    record = load_record(folder)
    if record is None:
        return
    if record.get("damaged"):
        raise TestnetError(_damaged(folder))
    here = record.get("boot") == processes.boot_id()
    if here and any(processes.session(identity) for identity in _identities(record)):
        raise TestnetError(
            f"a test network runs in {folder} already; stop it with: {program()} testnet down{_dir_option(folder)}"
        )
    _clear(folder, record)


def _damaged(folder: Path) -> str:
    return f"{folder / RECORD} is damaged: it does not say what to stop; end the nyxd processes yourself, then remove {folder}"


def _check_ports(plan: Plan) -> None:
    wanted = [(socket.SOCK_DGRAM, "UDP", member.port, "--base-port") for member in plan.members]
    wanted += [(socket.SOCK_STREAM, "TCP", member.proxy, "--proxy-port") for member in plan.members if member.proxy]
    taken = [
        f"{kind} port {port} of {HOST} is taken (see {option})" for family, kind, port, option in wanted if _taken(family, port)
    ]
    if taken:
        advice = "does another test network run, another user's perhaps? stop it, or choose other ports:"
        raise TestnetError("\n".join([*taken, f"{advice} {program()} testnet demo --base-port 43320 --proxy-port 9755"]))


def _taken(kind: socket.SocketKind, port: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind is socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False


def _start(folder: Path, record: dict[str, Any], entry: dict[str, Any]) -> processes.Child:
    settings = [part for text in record["settings"] for part in ("--set", text)]
    command = [*NODE, "--config", entry["config"], *settings]
    with processes.uninterrupted():
        child = processes.start(command, Path(entry["log"]), node_environment())
        entry["pid"], entry["start"] = child.identity
        save_record(folder, record)
    return child


def _await_ready(entries: list[dict[str, Any]], children: list[processes.Child], until: float, say: Say) -> None:
    slow = time.monotonic() + _SLOW
    waiting = list(zip(entries, children, strict=True))
    while waiting:
        for entry, child in list(waiting):
            if (code := child.poll()) is not None:
                raise TestnetError(f"{entry['alias']} ended with exit code {code}:\n{_tail(entry)}")
            if _stage(entry) == "ready":
                waiting.remove((entry, child))
        if waiting and time.monotonic() > until:
            stages = ", ".join(f"{entry['alias']}: {_stage(entry)}" for entry, _ in waiting)
            raise TestnetError(f"not ready in time ({stages}):\n{_tail(waiting[0][0])}")
        if waiting and slow and time.monotonic() > slow:
            slow = 0.0
            say("still starting; a first start compiles the packet kernels, which takes a minute or so")
        if waiting:
            time.sleep(_POLL)


def _stage(entry: dict[str, Any]) -> str:
    try:
        return str(ask(Path(entry["socket"]), "status", timeout=5.0)["stage"])
    except ClientError as error:
        return error.code


def _tail(entry: dict[str, Any]) -> str:
    try:
        lines = Path(entry["log"]).read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    return "\n".join(f"    {line}" for line in lines[-_LOG_LINES:] or ["its log is empty"])


# ---------------------------------------------------------------- reading the record


def _identity(entry: dict[str, Any]) -> Identity:
    return Identity(entry["pid"] or 0, entry["start"] or 0)


def _identities(record: dict[str, Any]) -> list[Identity]:
    def entries() -> Iterator[dict[str, Any]]:
        yield from record["nodes"]
        if record["web"]:
            yield record["web"]

    return [_identity(entry) for entry in entries() if entry["pid"]]


def _node(entry: dict[str, Any], *, here: bool) -> TestnetNode:
    runs = here and entry["pid"] is not None and processes.alive(_identity(entry))
    state = _stage(entry) if runs else "down"
    names = ("alias", "role", "port", "socket", "config")
    return TestnetNode(**{name: entry[name] for name in names}, pid=entry["pid"] if runs else None, state=state)


def _dir_option(folder: Path) -> str:
    from control.places import testnet_dir

    return "" if folder == testnet_dir(os.environ) else f" --dir {folder}"
