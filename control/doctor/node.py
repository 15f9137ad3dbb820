"""Checks of a node from what it tells: readiness, processes and their sealing, first hop, configuration, directory.

Place: `nyxctl doctor`; the caller has asked the node, and each function here judges one answer.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from control.schemas import Check
from nyx.config import Config, load
from nyx.errors import ConfigError, NyxError
from nyx.sealing import EXPECTED, Seal, warnings

_OLD: Final = 0.9  # share of a snapshot's life after which the next one should be there

Document = Mapping[str, Any]


def ready(status: Document) -> Check:
    """Whether the node can do what its role is for."""
    if status["ready"]:
        return Check("ready", "ok", f"{status['alias']} ({status['role']}) is ready")
    text = f"{status['alias']} ({status['role']}) is not ready: {status['stage']}"
    return Check("ready", "fail", text, "nyxctl status --wait; if it stays so, what is found below says why")


def told(status: Document) -> Iterator[Check]:
    """What the node itself complains of; the sentences say what to do."""
    for text in status["warnings"]:
        name = "clock of the node" if "clock was set" in text else "node says"
        yield Check(name, "warn", text, "docs/operations.md tells causes and ends of each warning")


def processes(status: Document) -> Iterator[Check]:
    """Whether every process runs, and has sealed itself."""
    rows = status["processes"]
    for row in rows:
        if row["state"] != "running":
            name = row["name"]
            fix = f"nyxctl restart {name}" if name.startswith("worker") else "the supervisor starts it again; see the node's log"
            yield Check("processes", "fail", f"{name} is {row['state']}", fix)
    if all(row["state"] == "running" for row in rows):
        yield Check("processes", "ok", f"{len(rows)} run")
    lacking = warnings({row["name"]: _seal(row) for row in rows if row["name"].partition(" ")[0] in EXPECTED})
    for line in lacking:
        yield Check("sealing", "warn", line, "see seccomp, mdwe and locked memory in this list, and docs/threat-model.md")
    if not lacking:
        yield Check("sealing", "ok", f"{sum(row['sealed'] is not None for row in rows)} processes gave up what they do not need")


def _seal(row: Document) -> Seal:
    if row["sealed"] is None:
        return Seal(0)
    seal = Seal.REPORTED
    for name in row["sealed"]:
        seal |= Seal.__members__.get(name.upper(), Seal(0))
    return seal


def guard(status: Document, peers: Document) -> Check:
    """Whether a relay answers: for a client its guard, without which it has no circuit."""
    up = [row for row in peers["peers"] if row["state"] == "up"]
    if status["role"] != "client":
        return Check("peers", "ok", f"{len(up)} links are up")
    own = [row for row in up if row["initiator"]]
    if own and status["circuits_ready"]:
        return Check("guard", "ok", f"the first hop answers; {status['circuits_ready']} circuits are ready")
    text = "a relay answers, and no circuit is ready" if own else "no relay answers"
    fix = "let UDP out on ports 43300 to 43399; set the clock; see the directory in this list"
    return Check("guard", "fail", text, fix)


def difference(diff: Document) -> Check:
    """Whether the files say what the node runs with."""
    changes = diff["changes"]
    if not changes:
        return Check("config runs", "ok", f"version {diff['config']} is what {diff['file']} says")
    keys = ", ".join(change["key"] for change in changes)
    live = all(change["live"] for change in changes)
    fix = "nyxctl reload" if live else "nyxctl reload, and a restart for what config diff names"
    return Check("config runs", "warn", f"{diff['file']} says otherwise than what runs: {keys}", fix)


def valid(file: Path, environ: Mapping[str, str]) -> tuple[Check, Config | None]:
    """Whether a node could start with these files, and the configuration if so."""
    try:
        config = load(file, environ=environ)
    except ConfigError as error:
        fix = f"mend the lines, then: nyxctl config check {file}"
        return Check("config", "fail", "; ".join(error.problems), fix), None
    return Check("config", "ok", f"{file} can be used"), config


def directory(config: Config) -> Check:
    """Whether the snapshot of the network is believed, and how long it still is."""
    from nyx.path.directory import FileDirectory

    where, now = config.directory, int(time.time())
    try:
        source = FileDirectory(where.file, where.signers, where.threshold, config.pin_file)
        found = source.verified(source.read(), now)
    except (NyxError, OSError) as error:
        return Check("directory", "fail", str(error), f"a snapshot that is valid and signed, at {where.file}")
    age, left = max(0, now - found.valid_from), found.valid_until - now
    text = f"{len(found.nodes)} nodes, {age / 3600:.1f} h old, valid for {left / 3600:.1f} h"
    if age > _OLD * (found.valid_until - found.valid_from):
        return Check("directory", "warn", text, f"get a newer snapshot to {where.file}, then nyxctl reload")
    return Check("directory", "ok", text)
