"""nyxctl doctor: each thing that is wrong is found, told with a fix, and decides the exit code."""

import contextlib
import json
import os
import socket
import threading
import time

import pytest
from pydantic import TypeAdapter

from control.doctor import machine, proxy
from control.doctor import node as node_checks
from control.schemas import Doctor
from nyx.config import load
from tests.control.nodes import CONFIG, node
from tests.control.workers import answers, status


def document(text):
    value = json.loads(text)
    assert (value.pop("schema"), value.pop("version")) == ("nyx.doctor", 1)
    return TypeAdapter(Doctor).validate_python(value)


def by_name(found):
    return {check.name: check for check in found}


@contextlib.contextmanager
def socks(answer, reply=None):
    """A server that greets with `answer`, reads a request and replies; its address and what it was asked."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    client = server.accept()[0]
                    with client:
                        client.recv(3)
                        client.sendall(answer)
                        if reply is not None and (request := client.recv(300)):
                            asked.append(request)
                            client.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)


def test_without_a_node_the_machine_is_looked_at_and_the_code_is_1(ctl, tmp_path):
    code, out, err = ctl("--socket", tmp_path / "none", "doctor", "--json")
    found = document(out)
    assert (code, err, found.alias) == (1, "", None)
    checks = by_name(found.checks)
    assert (checks["node"].state, checks["node"].fix) == ("fail", "start nyxd")
    assert {"clock", "udp buffers", "udp offload", "seccomp", "open files", "locked memory", "old kernels"} <= checks.keys()
    assert found.failures == sum(check.state == "fail" for check in found.checks) >= 1
    assert all(check.fix for check in found.checks if check.state != "ok")


def test_what_a_node_tells_is_judged(ctl, tmp_path):
    sick = answers() | {"status": status(0, stage="links", warnings=["this machine's clock was set back by 90 s"])}
    with node(tmp_path, [sick, {}]) as running:
        code, out, _ = ctl("--socket", running.socket, "doctor", "--json")
        people = ctl("--socket", running.socket, "doctor")[1]
    checks = by_name(document(out).checks)
    assert code == 1
    assert checks["ready"].state == "fail"
    assert "links" in checks["ready"].text or "starting" in checks["ready"].text
    assert checks["clock of the node"].text.endswith("by 90 s")
    assert (checks["processes"].state, checks["processes"].fix) == ("fail", "nyxctl restart worker 1")
    assert "-> nyxctl restart worker 1" in people
    assert people.splitlines()[-1].split()[1].startswith("failure")


def test_a_bad_configuration_is_told_with_its_place(ctl, tmp_path):
    file = tmp_path / "nyx.toml"
    file.write_text(CONFIG + "[path]\n")
    checks = by_name(document(ctl("--config", file, "--socket", tmp_path / "none", "doctor", "--json")[1]).checks)
    assert checks["config"].state == "fail"
    assert "nyx.toml" in checks["config"].text
    file.write_text(CONFIG)
    checks = by_name(document(ctl("--config", file, "--socket", tmp_path / "none", "doctor", "--json")[1]).checks)
    assert checks["config"].state == "ok"
    assert (checks["directory"].state, "missing" in checks["directory"].text) == ("fail", True)


def test_open_folders_fail_and_closed_ones_do_not(tmp_path):
    (tmp_path / "nyx.toml").write_text(CONFIG)
    config = load(tmp_path / "nyx.toml")
    config.node.state_dir.mkdir(mode=0o700)
    config.key_file.touch(0o600)
    config.node.run_dir.mkdir(mode=0o711)
    assert {check.state for check in machine.folders(config)} == {"ok"}
    config.node.state_dir.chmod(0o750)
    config.key_file.chmod(0o644)
    config.node.run_dir.chmod(0o777)
    found = list(machine.folders(config))
    assert [check.state for check in found] == ["fail"] * 3
    assert found[0].fix == f"chmod 700 {config.node.state_dir}"


@pytest.mark.parametrize(("code", "state"), [(0, "warn"), (1, "ok"), (4, "ok"), (8, "fail")])
def test_a_name_that_nobody_has_goes_to_the_exit(code, state):
    with socks(b"\x05\x00", bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])) as (address, asked):
        assert proxy.greeting(address).state == "ok"
        assert proxy.names(address).state == state
    assert asked[0][:4] == b"\x05\x01\x00\x03"
    assert asked[0].endswith(b".invalid\x00\x50")


def test_a_proxy_that_is_none_fails():
    with socks(b"HT") as (address, _):
        assert proxy.greeting(address).fix.startswith("another program")
    assert proxy.greeting(address).state == "fail"  # nothing listens there any more


@pytest.mark.parametrize(
    ("url", "state"),
    [
        ("socks5://127.0.0.1:9750", "fail"),
        ("socks4://localhost:9750", "fail"),
        ("socks5h://127.0.0.1:9750", "ok"),
        ("socks5://127.0.0.1:9999", "ok"),
        ("http://127.0.0.1:9750", "ok"),
        ("socks5://127.0.0.1:port", "ok"),
    ],
)
def test_proxy_variables_that_leak_names(url, state):
    found = proxy.variables("127.0.0.1:9750", {"ALL_PROXY": url})
    assert found.state == state
    assert bool(found.fix) == (state == "fail")


def test_small_buffers_and_full_disks_are_told(tmp_path):
    assert machine.buffers(1).state == "ok"
    found = machine.buffers(1 << 40)
    assert (found.state, found.fix.startswith("sysctl -w net.core.rmem_max=1099511627776")) == ("warn", True)
    assert machine.room("room", tmp_path / "not" / "there").text.endswith(f"where {tmp_path / 'not' / 'there'} is")


def test_kernels_that_nothing_reads_are_old(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kernel").write_bytes(bytes(1 << 20))
    assert machine.kernels(tmp_path).state == "ok"
    assert machine.kernels(tmp_path / "none").state == "ok"
    month = time.time() - 31 * 86400
    os.utime(tmp_path / "a" / "kernel", (month, month))
    assert machine.kernels(tmp_path).text.startswith("1 set of compiled kernels, 1 MiB")


def test_a_difference_names_the_way_to_end_it():
    change = {"key": "path.hops", "live": True}
    diff = {"config": 3, "file": "nyx.toml", "changes": [change]}
    assert node_checks.difference(diff).fix == "nyxctl reload"
    assert "restart" in node_checks.difference(diff | {"changes": [change | {"live": False}]}).fix
    assert node_checks.difference(diff | {"changes": []}).state == "ok"
