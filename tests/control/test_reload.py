"""A reload as the control process leads it: over a real staging in memory and channels to stand-ins of workers."""

import asyncio
import contextlib
from typing import Any, cast

import pytest

from control import reload
from control.channel import Channel, WorkerRefusedError
from control.pages import Processes, WorkerLife
from control.reload import Reloader
from control.wire import Refusal
from nyx.columns import allocate
from nyx.committed import Committed, committed_columns
from nyx.config import load
from nyx.errors import NyxError
from nyx.path import cbor
from nyx.path.directory import build_snapshot, verify
from nyx.wire.admin import Op
from nyx.wire.orders import Notice, Order
from shards.versions import Versions
from tests.control.workers import Worker, answers, status

AUTHORITY = bytes(range(32))


class Node:
    """A node of so many workers whose supervisor is this process."""

    def __init__(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder))
        self.file = folder / "nyx.toml"
        signer = cbor.identity_of(AUTHORITY).hex()
        self.file.write_text(
            f"[node]\nstate_dir = 'state'\n[path]\nhops = 3\n[directory]\nfile = 'network'\nsigners = ['{signer}']\n"
        )
        data = build_snapshot([], [AUTHORITY], network="t", sequence=1, valid_from=0, valid_until=1 << 33)
        (folder / "network").write_bytes(data)
        (folder / "state").mkdir(0o700)
        config = load(self.file)
        self.columns = allocate(committed_columns())
        self.versions = Versions(self.columns, config.node.state_dir, lambda: None)
        self.versions.begin(config, verify(data, config.directory.signers, 1, 1), data, 1)
        self.pids = [1000, 1001]
        self.orders: list[Order] = []
        self.told: list[tuple[Order, dict[str, Any]]] = []

    def hops(self, number):
        self.file.write_text(self.file.read_text().replace("hops = 3", f"hops = {number}"))

    async def order(self, order, args, _deadline):
        if order in (Order.RELOAD_BEGINS, Order.RELOAD_ENDS):
            self.told.append((order, args))
            return {}
        self.orders.append(order)
        try:
            return self.versions.stage(args) if order is Order.STAGE_CONFIG else self.versions.commit(args)
        except NyxError as error:
            raise WorkerRefusedError(str(error)) from error

    def processes(self):
        fields: dict[str, Any] = dict.fromkeys(Processes.__slots__, 0)
        return Processes(**fields | {"workers": tuple(self.life(pid) for pid in self.pids)})

    def life(self, pid):
        return WorkerLife(**dict.fromkeys(WorkerLife.__slots__, 0) | {"pid": pid})

    def run(self, told, job, deadline=0.2):
        """Run a job with a reloader whose workers answer what they are told."""

        async def all_of_it():
            with contextlib.ExitStack() as stack:
                workers = [stack.enter_context(Worker(table)) for table in told]
                channels = [Channel(i, w.far, deadline) for i, w in enumerate(workers)]
                tasks = [asyncio.create_task(channel.run()) for channel in channels]
                reloader = Reloader(self.file, Committed(self.columns), cast("Any", self), channels, cast("Any", self), "alice")
                try:
                    return await job(reloader)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        return asyncio.run(all_of_it())

    @property
    def word(self):
        return Committed(self.columns).word


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr(reload, "PREPARE_TIME", 0.5)
    monkeypatch.setattr(reload, "TAKE_TIME", 0.5)
    monkeypatch.setattr("control.logs.configure", lambda _style: None)  # the log of the tests stays theirs
    return Node(tmp_path, monkeypatch)


def ready(worker, version=2):
    return answers(worker) | {Op.PREPARE: {"version": version}, Op.STATUS: status(worker, config=version)}


def test_all_prepare_then_the_supervisor_commits_and_all_say_the_version(node):
    node.hops(4)
    said = node.run([ready(0), ready(1)], lambda r: r.reload("reload"))
    assert (said.changed, said.config, said.previous) == (True, 2, 1)
    assert [(c.key, c.old, c.new) for c in said.applied] == [("path.hops", 3, 4)]
    assert [(w.worker, w.config) for w in said.workers] == [(0, 2), (1, 2)]
    assert node.orders == [Order.STAGE_CONFIG, Order.COMMIT_CONFIG]
    assert node.word == 2


def test_a_worker_that_cannot_prepare_stops_all(node):
    node.hops(4)
    told = [ready(0), ready(1) | {Op.PREPARE: "worker 1 cannot take it: no room"}]
    with pytest.raises(Refusal, match=r"worker 1 cannot take it: no room\nnothing was changed; version 1 still runs"):
        node.run(told, lambda r: r.reload("reload"))
    assert node.orders == [Order.STAGE_CONFIG]
    assert node.word == 1


def test_a_worker_that_runs_and_does_not_answer_stops_all(node):
    node.hops(4)
    with pytest.raises(Refusal, match="worker 1 does not answer"):
        node.run([ready(0), {}], lambda r: r.reload("reload"))
    assert node.word == 1


def test_a_worker_that_does_not_run_stops_nobody(node):
    node.hops(4)
    node.pids[1] = 0
    said = node.run([ready(0), {}], lambda r: r.reload("reload"))
    assert node.word == said.config == 2
    assert [(w.worker, w.config) for w in said.workers] == [(0, 2), (1, 0)]


def test_a_request_that_died_with_its_worker_is_asked_again(node):
    node.hops(4)
    table = ready(1)
    late = table.pop(Op.PREPARE)

    async def job(reloader):
        asyncio.get_running_loop().call_later(0.25, lambda: table.update({Op.PREPARE: late}))
        return await reloader.reload("reload")

    assert node.run([ready(0), table], job).config == 2


def test_two_reloads_at_once_are_two_versions_or_one_and_nothing(node):
    node.hops(4)

    async def job(reloader):
        return await asyncio.gather(reloader.reload("reload"), reloader.reload("set"))

    first, second = node.run([ready(0), ready(1)], job)
    assert (first.changed, second.changed) == (True, False)
    assert second.config == node.word == 2


def test_a_bad_file_reaches_neither_supervisor_nor_workers(node):
    node.file.write_text(node.file.read_text() + "[limits]\nstreams = 0\n")
    with pytest.raises(Refusal, match=r"nyx\.toml:\d+  limits\.streams: 0 is below .*\nnothing was changed") as caught:
        node.run([ready(0)], lambda r: r.reload("reload"))
    assert caught.value.code == "config"
    assert node.orders == []


def test_a_bad_directory_is_told_like_a_bad_file(node):
    (node.file.parent / "network").write_bytes(b"none")
    with pytest.raises(Refusal, match=r"directory malformed.*\nnothing was changed; version 1 still runs") as caught:
        node.run([ready(0)], lambda r: r.reload("reload"))
    assert caught.value.code == "config"
    assert node.word == 1


def test_a_hangup_is_a_reload_with_the_log_for_an_answer(node, caplog):
    node.hops(4)

    async def job(reloader):
        reloader.on_notice(Notice.RELOAD)
        while node.word == 1:  # noqa: ASYNC110 (another task's memory)
            await asyncio.sleep(0.01)
        await asyncio.gather(*reloader._tasks)
        node.file.write_text("")
        reloader.on_notice(Notice.RELOAD)
        await asyncio.gather(*reloader._tasks)
        return await reloader.operations["config_history"]({})

    with caplog.at_level("INFO"):
        history = node.run([ready(0)], job)
    assert [(v.config, v.origin) for v in history.versions] == [(2, "SIGHUP"), (1, "start")]
    assert "version 2 of the configuration runs (SIGHUP)" in caplog.text
    assert "reload: nothing was changed; version 2 still runs" in caplog.text


def test_what_is_asked_of_it_is_checked(node):
    with pytest.raises(Refusal, match="origin must be one of"):
        node.run([ready(0)], lambda r: r.operations["reload"]({"origin": "me"}))
    node.hops(5)
    shown = node.run([ready(0)], lambda r: r.operations["config"]({}))
    assert {s.key: s.value for s in shown.settings}["path.hops"] == 3
    kept = node.run([ready(0)], lambda r: r.operations["config_kept"]({"version": 1}))
    assert (kept.config, kept.settings["path.hops"]) == (1, 3)
    for wrong in ({"version": 2}, {"version": "1"}):
        with pytest.raises(Refusal, match=r"is not kept|must be a number"):
            node.run([ready(0)], lambda r, wrong=wrong: r.operations["config_kept"](wrong))
    differs = node.run([ready(0)], lambda r: r.operations["config_diff"]({}))
    assert [(c.key, c.old, c.new, c.live) for c in differs.changes] == [("path.hops", 3, 5, True)]
