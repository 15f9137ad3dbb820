"""The control process, real: what it serves, to whom, and how it ends."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from control import process, wire
from control.schemas import DOCUMENTS
from nyx.errors import ConfigError
from nyx.stats import COUNTERS
from nyx.wire import admin
from tests.control import nodes
from tests.control.nodes import node, process_table
from tests.control.workers import answers, status, stream


def exchange(path, *lines, user=None):
    """Documents and refusals of some requests over one connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        found = []
        with connection.makefile("rwb") as file:
            for line in lines:
                file.write(line)
                file.flush()
                found.append(file.readline())
        return [json.loads(line) for line in found]


def document(path, op, **args):
    (answer,) = exchange(path, wire.request(op, args))
    assert answer["ok"], answer
    value = answer["document"]
    fields = {k: v for k, v in value.items() if k not in {"schema", "version"}}
    TypeAdapter(DOCUMENTS[value["schema"]]).validate_python(fields)
    return value


def test_every_operation_answers_its_document(tmp_path):
    with node(tmp_path, [answers(0, 2), answers(1, 3)]) as running:
        found = document(running.socket, "status")
        assert (found["ready"], found["stage"], found["progress"], found["alias"]) == (True, "ready", 100, "alice")
        assert (found["circuits"], found["circuits_ready"], found["links"], found["started"]) == (6, 4, 2, 1234)
        assert [(p["name"], p["restarts"], p["state"]) for p in found["processes"]] == [
            ("supervisor", 0, "running"),
            ("control", 1, "running"),
            ("worker 0", 0, "running"),
            ("worker 1", 1, "running"),
        ]
        assert found["proxy"] == "127.0.0.1:9750"
        found = document(running.socket, "circuits")
        assert [(c["worker"], c["id"]) for c in found["circuits"]] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
        assert found["circuits"][0]["hops"][1] == {"node": "01" * 32, "alias": "relay-1"}
        assert len(document(running.socket, "peers")["peers"]) == 5
        found = document(running.socket, "stats")
        assert found["total"] == {name: 2 * i + 1 for i, name in enumerate(COUNTERS)}
        assert found["workers"][1]["counters"][COUNTERS[3]] == 4
        assert document(running.socket, "close_circuit", worker=1, circuit=2)["circuit"] == 2
        assert [r.args for r in running.workers[1].asked if r.op == admin.Op.CLOSE_CIRCUIT] == [{"circuit": 2}]


def test_targets_are_told_on_demand_only_even_by_a_worker_that_tells_always(tmp_path):
    with node(tmp_path) as running:
        assert document(running.socket, "streams")["streams"][0]["target"] is None
        assert document(running.socket, "streams", show_targets=True)["streams"][0]["target"] == "secret.example:80"
        assert [r.args for r in running.workers[0].asked if r.op == admin.Op.STREAMS] == [
            {"show_targets": False},
            {"show_targets": True},
        ]


def test_a_mute_worker_is_named_and_the_rest_told(tmp_path):
    with node(tmp_path, [answers(0), {}]) as running:
        found = document(running.socket, "status")
        assert (found["ready"], found["stage"], found["warnings"]) == (False, "starting", ["worker 1 does not answer"])
        assert [(p["name"], p["pid"], p["state"]) for p in found["processes"]][-1] == ("worker 1", 1001, "unreachable")
        assert document(running.socket, "circuits")["unreachable"] == [1]


def test_the_worker_that_is_furthest_behind_decides(tmp_path):
    told = [answers(0), answers(1) | {admin.Op.STATUS: status(1, "links", warnings=["w"])}]
    with node(tmp_path, told) as running:
        found = document(running.socket, "status")
    assert (found["ready"], found["stage"], found["progress"], found["warnings"]) == (False, "links", 40, ["w"])


def test_over_memory_of_other_code_it_serves_on_without_figures(tmp_path, monkeypatch):
    """Other code was installed, and the control process died before the upgrade: the new one must be there to be told."""

    def of_other_code(workers, supervisor):
        fd = process_table(workers, supervisor)
        os.pwrite(fd, b"0" * 8, len(b"nyx memory 1\n"))
        return fd

    monkeypatch.setattr(nodes, "process_table", of_other_code)
    with node(tmp_path, [answers(0)]) as running:
        found = document(running.socket, "status")
        assert found["ready"]
        assert document(running.socket, "peers")["peers"]


def test_bad_requests_are_refused_by_name_and_the_connection_goes_on(tmp_path):
    broken = answers(1) | {admin.Op.STREAMS: ("streams", [{"id": 1}]), admin.Op.CLOSE_CIRCUIT: "no circuit 7"}
    with node(tmp_path, [answers(0) | {admin.Op.CLOSE_CIRCUIT: None}, broken]) as running:
        found = exchange(
            running.socket,
            b"nonsense\n",
            wire.request("explode"),
            wire.request("streams", {"show_targets": 1}),
            wire.request("streams"),
            wire.request("close_circuit"),
            wire.request("close_circuit", {"worker": 2, "circuit": 1}),
            wire.request("close_circuit", {"worker": 1, "circuit": 7}),
            wire.request("close_circuit", {"worker": 0, "circuit": 7}),
            wire.request("peers"),
        )
        codes = [line.get("code", "ok") for line in found]
        assert codes == [
            "bad_request", "unknown_operation", "bad_request", "internal", "bad_request", "not_found", "not_found", "timeout",
            "ok",
        ]  # fmt: skip
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(running.socket))
            connection.sendall(b"x" * (wire.LINE_MAX + 10))
            assert json.loads(connection.recv(1 << 16))["code"] == "bad_request"
        assert document(running.socket, "peers")


def test_it_binds_its_own_socket_closed_to_others_and_takes_it_along(tmp_path):
    (tmp_path / "run").mkdir(0o700)
    (tmp_path / "run" / "control.sock").touch()  # left by a dead process
    with node(tmp_path, own_socket=True) as running:
        process_ready(running)
        assert running.socket.stat().st_mode & 0o777 == 0o600
        assert running.socket.parent.stat().st_mode & 0o777 == 0o700
        assert document(running.socket, "peers")
    assert not running.socket.exists()


def process_ready(running):
    import time

    until = time.monotonic() + 20
    while not running.socket.is_socket() and time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_denied_though_the_folder_is_open(tmp_path):
    import tempfile

    code = "import socket,sys,os\nos.setgroups([]);os.setgid(65534);os.setuid(65534)\n"
    code += "s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);s.sendall(sys.argv[2].encode());print(s.recv(9999).decode())"
    with tempfile.TemporaryDirectory() as short, node(tmp_path) as running:
        assert document(running.socket, "peers")
        Path(short).chmod(0o755)
        open_path = Path(short, "s")
        running.socket.chmod(0o666)
        os.link(running.socket, open_path)
        line = wire.request("streams").decode()
        result = subprocess.run(
            [sys.executable, "-c", code, str(open_path), line], check=False, capture_output=True, text=True, timeout=30
        )
        assert json.loads(result.stdout)["code"] == "denied", result.stderr
        open_path.unlink()


def test_more_connections_than_allowed_are_told_so(tmp_path):
    from control.server import CONNECTIONS_MAX

    with node(tmp_path) as running:
        assert document(running.socket, "peers")
        held = [socket.socket(socket.AF_UNIX) for _ in range(CONNECTIONS_MAX)]
        for connection in held:
            connection.settimeout(20)
            connection.connect(str(running.socket))
        assert exchange(running.socket, wire.request("peers"))[0]["code"] == "busy"
        for connection in held:
            connection.close()
        answer = exchange(running.socket, wire.request("peers"))[0]
        assert answer["ok"] or answer["code"] == "busy"


def test_many_streams_arrive_whole(tmp_path):
    told = answers() | {admin.Op.STREAMS: ("streams", [stream(i) for i in range(5000)])}
    with node(tmp_path, [told]) as running:
        assert len(document(running.socket, "streams")["streams"]) == 5000


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"config": "x"}', '{"config": "x", "workers": ["1"]}', '{"config": "x", "workers": [-1]}']
)
def test_descriptors_of_another_form_are_refused(text):
    with pytest.raises(ConfigError):
        process.parse(text)


def test_a_bad_configuration_ends_it_with_78(tmp_path):
    (tmp_path / "nyx.toml").write_text("[node]\nport = 1\n")
    given = json.dumps({"config": str(tmp_path / "nyx.toml"), "workers": []})
    environ = os.environ | {"NYX_CONTROL_FDS": given}
    result = subprocess.run(
        [sys.executable, "-m", "control.process"], check=False, env=environ, capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 78
    assert "node.port: 1 is below the range" in result.stderr
    assert result.stdout == ""
