"""Versions of the configuration, from the supervisor's side and a worker's: staged, prepared, committed, or nothing at all."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nyx import config
from nyx.columns import allocate
from nyx.committed import Committed, committed_columns
from nyx.crypto.keys import StaticKeys
from nyx.errors import InternalError, NyxError
from nyx.files import write_whole
from nyx.history import History
from nyx.path import cbor
from nyx.path.descriptor import Descriptor
from nyx.path.directory import FileDirectory, build_snapshot, verify
from shards.settings import Settings
from shards.versions import Versions

AUTHORITY = bytes(range(32))
NOW = 1_000_000
FOREVER = 4_000_000_000


def directory(sequence=3, authority=AUTHORITY):
    return build_snapshot([], [authority], network="test", sequence=sequence, valid_from=NOW - 100, valid_until=FOREVER)


class Node:
    """A supervisor's versions over memory of their own, with the files of a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "network"
        self.file.write_bytes(directory())
        self.woken = 0
        self.columns = allocate(committed_columns())
        self.start()

    def config(self, **changed: Any) -> config.Config:
        values = {"node.state_dir": str(self.folder), "node.role": "exit", "directory.file": str(self.file)}
        signer = {"directory.signers": [cbor.identity_of(AUTHORITY).hex()]}
        return config.from_settings(values | signer | {key.replace("__", "."): value for key, value in changed.items()})

    def start(self, **changed: Any) -> str:
        """A start from nothing, or of other code over the same memory."""
        self.versions = Versions(self.columns, self.folder, self.wake)
        data = self.file.read_bytes()
        found = self.config(**changed)
        self.snapshot = verify(data, found.directory.signers, 1, NOW)
        return self.versions.begin(found, self.snapshot, data, NOW)

    def wake(self) -> None:
        self.woken += 1

    def stage(self, **changed: Any) -> dict[str, Any]:
        wanted = self.config(**changed)
        return self.versions.stage({"settings": config.settings(wanted), "origins": {}, "origin": "reload"})

    def commit(self, number: int) -> dict[str, Any]:
        return self.versions.commit({"version": number})

    @property
    def committed(self) -> Committed:
        return Committed(self.columns)

    def worker(self) -> Settings:
        """A worker that was forked from a process with the objects of the start."""
        context = SimpleNamespace(config=self.config(), snapshot=self.snapshot, shared=self.columns)
        found = Settings(cast("Any", context))
        found.begin()
        return found


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def room():
    """The rooms of a worker that a version reaches."""
    edge = SimpleNamespace(
        client=SimpleNamespace(max_clients=0), sdk=SimpleNamespace(max_streams=0), exit=SimpleNamespace(policy=None)
    )
    return SimpleNamespace(available=[1, 2], links=SimpleNamespace(suites=[]), edge=edge, desk=SimpleNamespace(clients=None))


def prepare(worker, number):
    """Prepare to the end; what was wrong, or None."""
    told: list[str | None] = []
    worker.answer = lambda _number, error: told.append(error)
    worker.prepare(number)
    while worker.busy:
        worker.work()
    return told[0]


def context(worker):
    return worker._context


def test_a_start_is_version_1_and_the_same_start_again_is_the_same_version(node):
    assert node.committed.word == 1
    node.columns = allocate(committed_columns())
    assert node.start() == ""
    assert node.committed.word == 1
    node.columns = allocate(committed_columns())
    node.start(path__hops=4)
    assert node.committed.word == 2
    newest = History(node.folder).newest()
    assert newest is not None
    assert (newest.origin, [c.key for c in newest.changes]) == ("start", ["path.hops"])


def test_other_code_over_the_same_memory_keeps_the_version_or_makes_the_next(node):
    node.start()
    assert node.committed.word == 1
    node.start(path__hops=5)
    assert node.committed.word == 2
    assert node.committed.current()[0].settings["path.hops"] == 5


def test_a_version_reaches_workers_with_the_commit_and_not_before(node):
    worker, rooms = node.worker(), room()
    assert node.stage(path__hops=4, proxy__max_clients=5, exit__policy=["reject *:*"]) == {"version": 2, "new": True}
    prepare(worker, 2)
    assert not worker.due
    assert context(worker).config.path.hops == 3
    assert node.commit(2) == {"version": 2}
    assert node.woken == 1
    assert worker.due
    worker.take(cast("Any", rooms))
    assert not worker.due
    assert worker.number == 2
    assert context(worker).config.path.hops == 4
    assert rooms.edge.client.max_clients == 5
    assert not rooms.edge.exit.policy.may_allow(443)


def test_a_life_that_begins_between_prepare_and_commit_ends_on_the_committed_version(node):
    node.stage(path__hops=4)
    prepare(node.worker(), 2)
    reborn = node.worker()
    assert (reborn.number, context(reborn).config.path.hops) == (1, 3)
    node.commit(2)
    reborn.take(cast("Any", room()))
    assert (reborn.number, context(reborn).config.path.hops) == (2, 4)
    later = node.worker()
    assert (later.number, context(later).config.path.hops) == (2, 4)


def test_a_worker_that_prepared_what_was_given_up_takes_what_was_committed_under_the_number(node):
    worker = node.worker()
    node.stage(path__hops=4)
    prepare(worker, 2)
    node.stage(path__hops=6)
    node.commit(2)
    worker.take(cast("Any", room()))
    assert context(worker).config.path.hops == 6


def test_a_version_that_is_not_staged_cannot_be_prepared_or_committed(node):
    with pytest.raises(InternalError, match="does not hold version 2"):
        prepare(node.worker(), 2)
    with pytest.raises(NyxError, match="no such version is staged"):
        node.commit(2)
    node.stage(path__hops=4)
    node.commit(2)
    with pytest.raises(NyxError, match="no such version is staged"):
        node.commit(2)


def test_what_needs_a_restart_waits_and_the_same_again_is_no_version(node):
    assert node.stage(workers__count=3, path__hops=4)["new"]
    node.commit(2)
    running = node.committed.current()[0]
    assert running.settings["workers.count"] == "auto"
    assert running.settings["path.hops"] == 4
    assert running.waiting == {"workers.count": 3}
    assert node.stage(workers__count=3, path__hops=4) == {"version": 2, "new": False}


def test_what_the_files_should_not_say_is_told_and_nothing_is_staged(node):
    said = node.versions.stage({"settings": {"path.hops": 9, "path.hop": 1}, "origins": {}, "origin": "reload"})
    assert len(said["problems"]) == 3  # its own, and the directory's required keys
    with pytest.raises(NyxError, match="no such version"):
        node.commit(2)


def test_a_newer_directory_is_a_version_and_comes_from_memory(node):
    worker = node.worker()
    node.file.write_bytes(directory(5))
    assert node.stage() == {"version": 2, "new": True}
    pin = FileDirectory(node.file, [], 1, node.config().pin_file)._pin()
    assert pin is None
    prepare(worker, 2)
    node.commit(2)
    node.file.unlink()
    worker.take(cast("Any", room()))
    assert context(worker).snapshot.sequence == 5
    assert context(node.worker()).snapshot.sequence == 5
    assert b"5 " in node.config().pin_file.read_bytes()
    newest = History(node.folder).newest()
    assert newest is not None
    assert [(c.old, c.new) for c in newest.changes] == [(3, 5)]


def test_a_directory_that_must_not_be_believed_stops_the_reload(node):
    node.file.write_bytes(directory(5, authority=bytes(32)))
    assert "unsigned" in node.stage(path__hops=4)["problems"][0]
    node.file.unlink()
    assert "there is no" in node.stage(path__hops=4)["problems"][0]
    assert node.committed.word == 1


def test_the_directory_in_force_may_end_without_stopping_reloads(node, tmp_path):
    ended = build_snapshot([], [AUTHORITY], network="test", sequence=9, valid_from=NOW - 100, valid_until=NOW + 100)
    node.file.write_bytes(ended)
    node.columns = allocate(committed_columns())
    node.start()
    assert node.stage(path__hops=4)["new"]
    node.commit(node.committed.word + 1)
    assert context(node.worker()).snapshot.sequence == 9


def test_a_history_that_takes_nothing_stops_the_commit(node, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device", "somewhere")

    node.stage(path__hops=4)
    monkeypatch.setattr("nyx.history.write_whole", full)
    with pytest.raises(NyxError, match="No space left on device; make room"):
        node.commit(2)
    assert (node.committed.word, node.woken) == (1, 0)
    monkeypatch.setattr("nyx.history.write_whole", write_whole)
    node.stage(path__hops=4)
    assert node.commit(2) == {"version": 2}


def test_the_history_remembers_who_asked_and_what_changed(node):
    for hops in (4, 5, 6):
        node.stage(path__hops=hops)
        node.commit(node.committed.word + 1)
    entries = History(node.folder).entries()
    assert [(e.version, e.origin) for e in entries] == [(1, "start"), (2, "reload"), (3, "reload"), (4, "reload")]
    assert [(c.old, c.new) for e in entries[1:] for c in e.changes] == [(3, 4), (4, 5), (5, 6)]
    assert dataclasses.asdict(entries[-1])["settings"]["path.hops"] == 6


def test_a_large_directory_is_prepared_over_many_turns_and_another_version_replaces_it(node):
    keys = [StaticKeys.generate(os.urandom) for _ in range(40)]
    records = [(describe(key).sign(key), 10) for key in keys]
    data = build_snapshot(records, [AUTHORITY], network="test", sequence=7, valid_from=NOW, valid_until=FOREVER)
    node.file.write_bytes(data)
    worker, turns = node.worker(), 0
    told: list[tuple[int, str | None]] = []
    worker.answer = lambda number, error: told.append((number, error))
    node.stage()
    worker.prepare(2)
    while worker.busy:
        assert not told
        worker.prepare(2)  # asked again meanwhile
        worker.work()
        turns += 1
    assert turns > 1
    assert told == [(2, None)]
    node.stage(path__hops=5)
    worker.prepare(2)
    worker.work()
    node.commit(2)
    worker.take(cast("Any", room()))
    assert not worker.busy
    assert (context(worker).snapshot.sequence, context(worker).config.path.hops) == (7, 5)


def test_settings_of_another_release_lack_keys_or_have_more():
    found = config.from_settings({"directory.file": "/x", "directory.signers": ["ab" * 32], "cover.rate": 7, "path.hops": 4})
    assert (found.path.hops, found.path.circuits_ahead) == (4, 2)


def describe(keys):
    return Descriptor(
        alias="relay", family="", public=keys.public, addresses=(("127.0.0.1", 43300),), flags=(), link_suites=(1, 2),
        layer_suites=(1, 2), sequence=1, valid_from=0, valid_until=FOREVER + 1,
    )  # fmt: skip
