"""The channel to a worker: pages are joined, silence ends, foreign and late messages change nothing."""

import asyncio
import contextlib

import pytest

from control.channel import Channel, WorkerRefusedError, WorkerSilentError
from nyx.wire import admin
from tests.control.workers import Worker, answers


def ask(worker, *ops, deadline=5.0):
    async def run():
        channel = Channel(0, worker.far, deadline)
        reading = asyncio.create_task(channel.run())
        try:
            return [await channel.ask(op) for op in ops]
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    return asyncio.run(run())


def test_pages_of_a_list_are_joined():
    with Worker(answers(count=2000)) as worker:
        (data,) = ask(worker, admin.Op.CIRCUITS)
    assert [row["id"] for row in data["circuits"]] == list(range(2000))


def test_questions_follow_each_other_with_ids_of_their_own():
    with Worker(answers()) as worker:
        ask(worker, admin.Op.PING, admin.Op.STATUS, admin.Op.PEERS)
    assert [r.op for r in worker.asked] == [admin.Op.PING, admin.Op.STATUS, admin.Op.PEERS]
    assert len({r.id for r in worker.asked}) == 3


def test_a_refusal_is_an_error_of_its_own():
    with Worker({admin.Op.CLOSE_CIRCUIT: "no circuit 12"}) as worker, pytest.raises(WorkerRefusedError, match="no circuit 12"):
        ask(worker, admin.Op.CLOSE_CIRCUIT)


def test_a_mute_worker_ends_at_the_deadline():
    with Worker({}) as worker, pytest.raises(WorkerSilentError, match="worker 0 does not answer"):
        ask(worker, admin.Op.STATUS, deadline=0.05)


def test_junk_and_answers_to_other_questions_change_nothing():
    def before(request):
        return [b"junk", b"{}", admin.Answer(request.id + 1000, {"pid": 1}).encode(), b"[" * 5000]

    with Worker(answers(), before) as worker:
        (data,) = ask(worker, admin.Op.PING)
    assert data["worker"] == 0


def test_endless_pages_are_given_up(monkeypatch):
    monkeypatch.setattr("control.channel.PAGES_MAX", 5)

    def before(request):
        return [admin.Answer(request.id, {"circuits": []}, more=True).encode()] * 6

    with Worker(answers(), before) as worker, pytest.raises(WorkerRefusedError, match="too long"):
        ask(worker, admin.Op.CIRCUITS)


def test_a_closed_channel_is_silence_at_once():
    async def run(worker):
        channel = Channel(3, worker.far)
        worker.close()
        with pytest.raises(WorkerSilentError):
            await channel.ask(admin.Op.PING)

    worker = Worker(answers())
    asyncio.run(run(worker))


def test_the_end_of_the_channel_ends_its_reader():
    async def run(worker):
        channel = Channel(3, worker.far)
        worker.near.shutdown(2)
        await asyncio.wait_for(channel.run(), 5)
        with pytest.raises(WorkerSilentError, match="worker 3 is gone"):
            await channel.ask(admin.Op.PING)

    with Worker(answers()) as worker:
        asyncio.run(run(worker))
