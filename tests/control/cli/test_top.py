"""nyxctl top: figures between two looks, one picture without a terminal, and a live one that q ends."""

import copy
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from pydantic import TypeAdapter

from control.cli.top import Look, summary
from control.schemas import Top
from tests.control.nodes import node
from tests.control.workers import answers, status

CODE = "import sys; sys.argv[0] = 'nyxctl'; from control.cli import main; main()"


def test_without_a_terminal_there_is_one_picture(ctl, tmp_path):
    told = answers(0) | {"status": status(0, warnings=["the clock is 40 s slow"])}
    with node(tmp_path, [told, answers(1)]) as running:
        code, out, err = ctl("--socket", running.socket, "top", "--interval", 0.2)
        assert (code, err) == (0, "")
        assert out.splitlines()[0].split()[:2] == ["alice", "client"]
        assert "! the clock is 40 s slow" in out
        lines = [line.split() for line in out.splitlines()]
        assert [line[-1] for line in lines if line[:2] == ["worker", "1"]] == ["running"]
        assert ["packets_in", "0.0"] in lines
        code, out, _ = ctl("--socket", running.socket, "top", "--once", "--interval", 0.2, "--json")
    value = json.loads(out)
    assert (value.pop("schema"), value.pop("version"), code) == ("nyx.top", 1, 0)
    found = TypeAdapter(Top).validate_python(value)
    assert found.seconds >= 0.2
    assert {load.name for load in found.processes} >= {"supervisor", "control", "worker 0", "worker 1"}


def test_no_node_is_code_3(ctl, tmp_path):
    assert ctl("--socket", tmp_path / "none", "top", "--once")[0] == 3


def test_rates_and_processor_time_are_those_between_two_looks(ctl, tmp_path):
    with node(tmp_path) as running:
        from control.cli.state import State
        from control.cli.top import look

        first = look(State(socket=str(running.socket)))
        running.count(0, "packets_in", 500)
        second = look(State(socket=str(running.socket)))
    second.time = first.time + 2.0
    pid = os.getpid()  # the stand-in's supervisor
    second.cpu[pid] = first.cpu[pid] + 1.0
    found = summary(first, second)
    assert found.rates["packets_in"] == pytest.approx(250)
    assert next(load for load in found.processes if load.pid == pid).cpu == pytest.approx(0.5)
    young = Look(first.time, copy.deepcopy(first.documents))  # processes of which nothing was known before
    assert next(load for load in summary(young, second).processes if load.pid == pid).cpu is None
    assert all(rate >= 0 for rate in summary(second, first).rates.values())  # a node that was started meanwhile


def test_a_terminal_sees_it_live_until_q(tmp_path):
    with node(tmp_path) as running:
        ours, theirs = pty.openpty()
        environ = os.environ | {"TERM": "xterm"}
        command = [sys.executable, "-c", CODE, "--socket", str(running.socket), "top", "--interval", "0.2"]
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
        os.close(theirs)
        try:
            seen, until = b"", time.monotonic() + 30
            while seen.count(b"packets_in") < 3:  # pictures
                assert time.monotonic() < until, seen
                if select.select([ours], [], [], 1)[0]:
                    seen += os.read(ours, 65536)
            assert b"\x1b[?1049h" in seen  # a screen of its own
            os.write(ours, b"q")
            assert process.wait(20) == 0
            assert b"\x1b[?1049l" in os.read(ours, 65536)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
