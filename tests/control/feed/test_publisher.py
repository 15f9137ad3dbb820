"""The feed of a real control process, as programs that watch it meet it."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq
from pydantic import TypeAdapter

from bench.network import free_port
from control.cli import run
from control.feed.events import Look, between
from control.feed.message import MESSAGE_MAX, TOPICS, Numbering
from control.schemas import Event, Status
from nyx.wire import admin
from tests.control.nodes import CONFIG, node
from tests.control.test_process import document
from tests.control.workers import answers, status

DOCS = Path(__file__).parents[3] / "docs" / "monitoring.md"
CANARY = "canary.example"


@contextlib.contextmanager
def publishing(folder, told=None, interval=3600, more=""):
    with node(folder, told, config=CONFIG + f"[monitor]\nfeed = true\ninterval = {interval}\n{more}") as running:
        yield running


@contextlib.contextmanager
def listening(address, *topics, **options):
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        for name, value in options.items():
            setattr(socket, name, value)
        for topic in topics or ("",):
            socket.subscribe(topic)
        socket.connect(address)
        yield socket


def local(running):
    return f"ipc://{running.socket.parent}/feed.sock"


def receive(socket, wanted=lambda _message: True):
    while socket.poll(20_000):
        topic, body = socket.recv_multipart()
        message = json.loads(body)
        assert message["topic"] == topic.decode()
        if wanted(message):
            return message
    raise AssertionError("nothing came")


def test_who_comes_late_gets_the_last_value_of_every_topic(tmp_path):
    with publishing(tmp_path) as running:  # nothing is published again for an hour
        with listening(local(running)) as early:
            first: dict[str, Any] = {}
            while set(first) != set(TOPICS):
                found = receive(early)
                first[found["topic"]] = found
        with listening(local(running)) as late:
            again: dict[str, Any] = {}
            while set(again) != set(TOPICS):
                found = receive(late)
                again[found["topic"]] = found
        assert again == first
    for topic, message in first.items():
        assert list(message) == ["topic", "node", "life", "seq", "time", "data"]
        fields = {k: v for k, v in message["data"].items() if k not in {"schema", "version"}}
        TypeAdapter(TOPICS[topic]).validate_python(fields)
        assert f"{message['data']['schema']}/{message['data']['version']}" == topic
    assert first["nyx.events/1"]["data"]["kind"] == "control_restarted"  # the process table of these tests says so


def test_topics_are_chosen_by_their_beginning_and_numbered(tmp_path):
    with publishing(tmp_path, interval=1) as running, listening(local(running), "nyx.stats") as socket:
        found = [receive(socket) for _ in range(3)]
    assert {m["topic"] for m in found} == {"nyx.stats/1"}
    numbers = sorted({m["seq"] for m in found})
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len({m["life"] for m in found}) == 1


def test_events_tell_what_changed_and_name_nobody(tmp_path):
    told = answers()
    with publishing(tmp_path, [told], interval=1) as running, listening(local(running), "nyx.events") as socket:
        receive(socket)
        told[admin.Op.STATUS] = status(stage="links", warnings=[f"no way to {CANARY}:443"])
        running.restart(0)
        running.count(0, "links_opened", 2)
        seen: dict[str, Any] = {}
        while {"not_ready", "warning_set", "worker_restarted", "links_opened"} - set(seen):
            event = receive(socket)["data"]
            seen[event["kind"]] = event
        told[admin.Op.STATUS] = status()
        while {"ready", "warning_cleared"} - set(seen):
            event = receive(socket)["data"]
            seen[event["kind"]] = event
    assert seen["not_ready"]["text"] == "links"
    assert (seen["worker_restarted"]["worker"], seen["worker_restarted"]["count"]) == (0, 1)
    assert seen["links_opened"]["count"] == 2
    assert seen["warning_set"]["text"] == seen["warning_cleared"]["text"] == "no way to [name]"
    kinds = set(re.findall(r"\b[a-z]+_[a-z]+\b|\bready\b", DOCS.read_text("utf-8")))
    assert set(seen) <= kinds


def test_a_canary_in_a_warning_comes_through_no_topic(tmp_path):
    told = answers() | {admin.Op.STATUS: status(warnings=[f"no way to {CANARY}"])}
    with publishing(tmp_path, [told]) as running, listening(local(running)) as socket:
        found: dict[str, Any] = {}
        while set(found) != set(TOPICS):
            message = receive(socket)
            found[message["topic"]] = json.dumps(message)
    assert not any("canary" in text for text in found.values())
    assert "no way to [name]" in found["nyx.status/1"]


def test_by_tcp_only_an_admitted_key_is_served(tmp_path, capsys):
    port = free_port()
    mine = zmq.curve_keypair()
    with publishing(tmp_path, more=f'listen = "127.0.0.1:{port}"\n') as running:
        with listening(local(running)) as socket:
            receive(socket)
        config = ["--config", str(tmp_path / "nyx.toml"), "feed"]
        assert run([*config, "readers", "--json"]) == 0
        key = json.loads(capsys.readouterr().out)["key"].encode()
        options = {"curve_serverkey": key, "curve_publickey": mine[0], "curve_secretkey": mine[1]}
        with listening(f"tcp://127.0.0.1:{port}", **options) as socket, listening(f"tcp://127.0.0.1:{port}") as plain:
            assert not socket.poll(1000)
            assert not plain.poll(0)
        assert run([*config, "admit", "desk", mine[0].decode()]) == 0
        capsys.readouterr()
        with listening(f"tcp://127.0.0.1:{port}", **options) as socket:
            assert receive(socket)["node"] == "alice"
        assert run([*config, "readers"]) == 0
        assert f"desk  {mine[0].decode()}" in capsys.readouterr().out
        assert run([*config, "admit", "../x", mine[0].decode()]) == 78
        assert run([*config, "admit", "dash", "-h" + mine[0].decode()[2:]]) == 0


def test_a_port_that_is_taken_is_a_warning_and_the_node_goes_on(tmp_path):
    import socket
    import time

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with publishing(tmp_path, more=f'listen = "127.0.0.1:{port}"\n') as running:
            until = time.monotonic() + 20
            while not (found := document(running.socket, "status")["warnings"]) and time.monotonic() < until:
                time.sleep(0.05)
            assert found == [
                f"the monitoring feed cannot be opened: Address already in use (addr='tcp://127.0.0.1:{port}'); it is tried again"
            ]
            taken.close()
            with listening(local(running)) as reader:
                assert receive(reader)


def test_the_command_follows_it(tmp_path, capsys):
    with publishing(tmp_path) as running:
        with listening(local(running)) as socket:
            receive(socket)
        assert run(["--socket", str(running.socket), "feed", "follow", "--topic", "nyx.status", "--count", "1"]) == 0
        assert json.loads(capsys.readouterr().out)["data"]["alias"] == "alice"
    assert run(["--socket", str(running.socket), "feed", "follow", "--count", "1"]) == 3
    assert "monitor.feed = true" in capsys.readouterr().err


def test_the_example_of_the_documentation_works_and_has_twenty_lines(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert code.count("\n") <= 20
    told = answers()
    with (
        publishing(tmp_path, [told], interval=1) as running,
        subprocess.Popen([sys.executable, "-u", "-c", code, local(running)], stdout=subprocess.PIPE, text=True) as example,
    ):
        assert example.stdout is not None
        lines = [example.stdout.readline()]
        told[admin.Op.STATUS] = status(stage="circuits")
        while "not_ready" not in lines[-1]:
            assert lines[-1], "the example ended"
            lines.append(example.stdout.readline())
        example.kill()
    assert any(line.startswith("alice ready, ") for line in lines)
    assert "not_ready circuits" in lines[-1]


# ---------------------------------------------------------------- pieces

LOOK = Look(True, "ready", frozenset(), (0, 0), 0, (0, 0, 0))


def test_the_first_look_says_how_things_are_and_later_ones_what_is_different():
    assert [e.kind for e in between(None, LOOK)] == ["ready"]
    assert list(between(LOOK, LOOK)) == []
    worse = Look(False, "starting", frozenset({"b", "a"}), (0, 3), 1, (2, 1, 0), 4, 1)
    assert list(between(LOOK, worse)) == [
        Event("not_ready", text="starting"), Event("worker_restarted", worker=1, count=3), Event("reloaded", count=4),
        Event("upgraded", count=1), Event("links_opened", count=2),
        Event("links_closed", count=1), Event("warning_set", text="a"), Event("warning_set", text="b"),
    ]  # fmt: skip


def test_a_message_that_is_too_long_is_not_made_and_takes_no_number():
    numbering = Numbering("a", "life", lambda: 0.0)
    with pytest.raises(ValueError, match=r"nyx\.events/1 has"):
        numbering.make(Event("x", text="y" * MESSAGE_MAX))
    _, body = numbering.make(Event("x"))
    assert json.loads(body)["seq"] == 1
    assert Status.SCHEMA == "nyx.status"
