"""nyxctl events: the feed's events as lines and documents, chosen by kind; no feed is an error with its way out."""

import contextlib
import json
import re
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import zmq

from control.feed.message import Numbering
from control.schemas import Event

EVENTS = [Event("ready", text="ready"), Event("links_opened", count=2), Event("worker_restarted", worker=1, count=1)]


@pytest.fixture
def folder():
    """A folder whose name leaves room for a socket's."""
    path = Path(tempfile.mkdtemp(prefix="nyx-"))
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def feed(folder):
    """A publisher that tells who subscribes all EVENTS."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(f"ipc://{folder}/feed.sock")

        def serve():
            if socket.poll(20_000) and socket.recv() == b"\x01nyx.events/1":
                numbering = Numbering("alice", "life", lambda: 1_700_000_000.0)
                for event in EVENTS:
                    topic, body = numbering.make(event)
                    socket.send_multipart([topic.encode(), body])

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_events_for_programs_have_their_number(ctl, folder):
    with feed(folder):
        code, out, err = ctl("--socket", folder / "control.sock", "events", "--count", 3, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [(event["schema"], event["kind"], event["seq"]) for event in found] == [
        ("nyx.events", "ready", 1),
        ("nyx.events", "links_opened", 2),
        ("nyx.events", "worker_restarted", 3),
    ]


def test_events_for_people_chosen_by_kind(ctl, folder):
    with feed(folder):
        out = ctl("--socket", folder / "control.sock", "events", "--kind", "worker_restarted", "--kind", "ready")[1]
    lines = out.splitlines()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  ready  ready", lines[0])
    assert [line.split("  ")[1:] for line in lines[1:]] == [["worker_restarted", "worker 1", "1"]]


def test_no_feed_is_code_3_and_says_what_it_needs(ctl, folder):
    code, out, err = ctl("--socket", folder / "control.sock", "events")
    assert (code, out) == (3, "")
    assert "monitor.feed = true" in err
