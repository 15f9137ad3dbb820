"""Test networks through nyxctl, with stand-ins of nyxd: nothing is left, nothing foreign is touched, errors are clear."""

import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from control.cli import run
from control.client import ask
from control.places import RECORD, load_record
from control.testnet import network, plan, processes
from control.testnet.plan import Plan
from tests.control.nodes import port_block


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(network, "NODE", [sys.executable, "-m", "tests.control.stand_in"])
    monkeypatch.setattr(network, "STOP_GRACE", 2.0)
    monkeypatch.delenv("STAND_IN_FAULT", raising=False)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ctl:
    """nyxctl testnet in a folder, on ports of its own."""

    def __init__(self, folder, capsys, base):
        self.folder, self.capsys, self.base, self.proxy = folder, capsys, base, free_port()

    def __call__(self, *args, json_out=True):
        code = run(["testnet", args[0], "--dir", str(self.folder), *args[1:], *(["--json"] if json_out else [])])
        out, self.err = self.capsys.readouterr()
        return code, json.loads(out) if json_out else out

    def up(self, *args, command="up", json_out=True):
        ports = ["--base-port", str(self.base), "--proxy-port", str(self.proxy)]
        return self(command, *ports, *args, json_out=json_out)


@pytest.fixture
def base():
    with port_block() as first:
        yield first


@pytest.fixture
def short_folder():
    """A folder whose name leaves room for sockets' paths."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def ctl(short_folder, capsys, base):
    control = Ctl(short_folder / "net", capsys, base)
    yield control
    network.down(control.folder)


def recorded(folder):
    record = load_record(folder)
    assert record
    return record


def identity(pid):
    found = processes.identify(pid)
    assert found
    return found


def running(folder):
    """Processes whose command line names this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in line:
                found.append(line)
    return found


def test_up_status_and_down(ctl):
    code, found = ctl.up("--relays", "3", "--clients", "2")
    assert code == 0
    assert (found["schema"], found["version"], found["state"]) == ("nyx.testnet", 1, "up")
    assert found["proxy"] == f"127.0.0.1:{ctl.proxy}"
    assert [(n["alias"], n["role"], n["port"], n["state"]) for n in found["nodes"]] == [
        ("relay-1", "relay", ctl.base, "ready"),
        ("exit-1", "exit", ctl.base + 1, "ready"),
        ("exit-2", "exit", ctl.base + 2, "ready"),
        ("alice", "client", ctl.base + 3, "ready"),
        ("bob", "client", ctl.base + 4, "ready"),
    ]
    pids = {n["pid"] for n in found["nodes"]}
    assert len(pids) == 5
    assert all(os.getsid(pid) == pid for pid in pids)
    for node in found["nodes"]:
        assert ask(Path(node["socket"]), "status")["alias"] == node["alias"]
    assert ctl.folder.stat().st_mode & 0o777 == 0o700
    assert ctl("status")[1] == found
    assert ctl("status", "--check")[0] == 0
    code, found = ctl("down")
    assert (code, found["state"], found["nodes"]) == (0, "down", [])
    assert not ctl.folder.exists()
    assert running(ctl.folder) == []
    assert not any(processes.identify(pid) for pid in pids)
    assert ctl("down")[0] == 0
    assert ctl("status", "--check")[0] == 4


def test_the_demo_fetches_a_page_and_stays_up(ctl, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    code, found = ctl.up("--relays", "3", command="demo")
    assert code == 0, ctl.err
    assert found["text"] == "hello from the far end of Nyx"
    assert [hop["alias"] for hop in found["hops"]] == [None, "relay-1", "relay-2"]
    assert 0 < found["seconds"] < 30
    web = recorded(ctl.folder)["web"]
    assert ctl("status")[1]["web"] == found["url"] == web["url"]
    code, text = ctl.up("--relays", "3", command="demo", json_out=False)
    assert code == 0
    assert text.startswith('alice -> 00000000 -> relay-1 -> relay-2 -> web server   "hello from')
    assert f"curl --proxy socks5h://127.0.0.1:{ctl.proxy} --noproxy '' {found['url']}" in text
    assert recorded(ctl.folder)["web"] == web
    assert ctl("down")[0] == 0
    assert running(ctl.folder) == []
    assert processes.identify(web["pid"]) is None


def test_the_demo_needs_no_curl(ctl, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    code, found = ctl.up("--relays", "3", command="demo")
    assert code == 0, ctl.err
    assert found["text"] == "hello from the far end of Nyx"


def test_two_networks_stand_side_by_side_but_not_on_the_same_ports(ctl, short_folder, capsys):
    assert ctl.up("--relays", "3")[0] == 0
    other = Ctl(short_folder / "other", capsys, ctl.base + 2)
    code, found = other.up("--relays", "3")
    assert (code, found["schema"]) == (1, "nyx.error")
    assert f"UDP port {ctl.base + 2} of 127.0.0.1 is taken" in found["message"]
    assert f"UDP port {ctl.base + 3} of 127.0.0.1 is taken" in found["message"]
    assert not other.folder.exists()
    other.base, proxy = ctl.base + 5, other.proxy
    other.proxy = ctl.proxy
    assert f"TCP port {ctl.proxy} of 127.0.0.1 is taken" in other.up("--relays", "3")[1]["message"]
    other.proxy = proxy
    try:
        assert other.up("--relays", "3")[0] == 0
        assert ctl("status")[1]["state"] == other("status")[1]["state"] == "up"
    finally:
        assert other("down")[0] == 0
    assert ctl("status")[1]["state"] == "up"


def test_a_second_up_in_the_same_folder_is_refused(ctl):
    assert ctl.up("--relays", "3")[0] == 0
    code, found = ctl.up("--relays", "3")
    assert code == 1
    assert "runs in" in found["message"]
    assert ctl("status")[1]["state"] == "up"


def test_a_node_that_does_not_start_shows_its_log_and_nothing_is_left(ctl, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "exit-2:exit")
    code, found = ctl.up("--relays", "3")
    assert code == 1
    assert "exit-2 ended with exit code 1" in found["message"]
    assert "this node has a fault" in found["message"]
    assert not ctl.folder.exists()
    assert running(ctl.folder) == []


def test_a_node_that_is_never_ready_ends_the_attempt_in_time(ctl, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "exit-1:never")
    assert (
        run(
            [
                "--timeout",
                "3",
                "testnet",
                "up",
                "--dir",
                str(ctl.folder),
                "--base-port",
                str(ctl.base),
                "--proxy-port",
                str(ctl.proxy),
            ]
        )
        == 1
    )
    assert "exit-1: links" in ctl.capsys.readouterr().err
    assert not ctl.folder.exists()


def test_stubborn_processes_are_killed(ctl, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "alice:stubborn")
    monkeypatch.setattr(network, "STOP_GRACE", 0.3)
    assert ctl.up("--relays", "3")[0] == 0
    alice = next(n for n in ctl("status")[1]["nodes"] if n["alias"] == "alice")
    members = processes.session(identity(alice["pid"]))
    assert len(members) == 3
    assert ctl("down")[0] == 0
    assert not any(map(processes.alive, members))


def test_a_dead_node_is_told_and_a_dead_network_replaced(ctl):
    assert ctl.up("--relays", "3")[0] == 0
    before = ctl("status")[1]["nodes"]
    processes.stop([identity(before[0]["pid"])], 5)
    found = ctl("status")[1]
    assert (found["state"], found["nodes"][0]["state"], found["nodes"][0]["pid"]) == ("broken", "down", None)
    assert ctl.up("--relays", "3")[0] == 1
    for node in before[1:]:
        processes.stop([identity(node["pid"])], 5)
    assert ctl("status")[1]["state"] == "down"
    assert ctl.up("--relays", "3")[0] == 0


def test_a_record_of_another_boot_stops_nobody(ctl):
    assert ctl.up("--relays", "3")[0] == 0
    record = recorded(ctl.folder)
    network.save_record(ctl.folder, record | {"boot": "another"})
    assert ctl("status")[1]["state"] == "down"
    network.save_record(ctl.folder, record)
    assert ctl("status")[1]["state"] == "up"


def test_foreign_files_are_neither_taken_over_nor_removed(ctl):
    ctl.folder.mkdir(0o700)
    (ctl.folder / "mine").write_text("x")
    code, found = ctl.up("--relays", "3")
    assert (code, "is not empty" in found["message"]) == (1, True)
    (ctl.folder / "mine").unlink()
    assert ctl.up("--relays", "3")[0] == 0
    (ctl.folder / "mine").write_text("x")
    assert ctl("down")[0] == 0
    assert [p.name for p in ctl.folder.iterdir()] == ["mine"]


def test_a_damaged_record_is_an_error_that_says_what_to_do(ctl):
    ctl.folder.mkdir(0o700)
    (ctl.folder / RECORD).write_text("{")
    code, found = ctl("down")
    assert code == 1
    assert "is damaged" in found["message"]
    assert ctl("status")[1]["state"] == "broken"
    assert ctl.up()[0] == 1
    assert (ctl.folder / RECORD).read_text() == "{"
    (ctl.folder / RECORD).unlink()


def test_a_file_is_no_folder_for_a_network(ctl):
    ctl.folder.write_text("mine")
    code, found = ctl.up()
    assert (code, found["message"]) == (1, f"{ctl.folder} is no folder; choose another with --dir")
    assert ctl.folder.read_text() == "mine"
    ctl.folder.unlink()


def test_wrong_numbers_are_wrong_use(ctl):
    code, found = ctl.up("--relays", "2", "--workers", "9")
    assert (code, found["code"]) == (2, "usage")
    assert found["message"].count("\n") == 1
    assert not ctl.folder.exists()


def test_interrupted_again_and_again_it_leaves_nothing(ctl, monkeypatch):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    def stop(*args):
        signal.raise_signal(signal.SIGINT)
        ended(*args)

    ended = processes.stop
    monkeypatch.setattr(network, "_await_ready", interrupt)
    monkeypatch.setattr(processes, "stop", stop)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        network.up(Plan(ctl.folder, base_port=ctl.base, proxy_port=ctl.proxy), said.append)
    assert said[-1] == "interrupted: stopping what was started"
    assert not ctl.folder.exists()
    assert running(ctl.folder) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_starts_is_recorded_before_an_interrupt(ctl, monkeypatch):
    def start(*args):
        signal.raise_signal(signal.SIGINT)
        return begin(*args)

    begin = processes.start
    monkeypatch.setattr(processes, "start", start)
    with pytest.raises(KeyboardInterrupt):
        network.up(Plan(ctl.folder, base_port=ctl.base, proxy_port=ctl.proxy), print)
    assert not ctl.folder.exists()
    assert running(ctl.folder) == []


def test_an_up_beside_an_up_in_the_same_folder_is_refused(ctl, monkeypatch):
    codes = []

    def write(*args):
        codes.append(ctl.up("--relays", "3"))
        written(*args)

    written = plan.write_files
    monkeypatch.setattr(network, "write_files", write)
    code, found = ctl.up("--relays", "3")
    assert (code, found["state"]) == (0, "up")
    assert [code for code, _ in codes] == [1]
    assert "just now" in codes[0][1]["message"]


def test_interrupted_it_leaves_nothing(ctl, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "_await_ready", interrupt)
    with pytest.raises(KeyboardInterrupt):
        network.up(Plan(ctl.folder, base_port=ctl.base, proxy_port=ctl.proxy), print)
    assert not ctl.folder.exists()
    assert running(ctl.folder) == []


def test_the_users_own_network_is_found_without_options(base, short_folder, capsys, monkeypatch):
    for name in ("XDG_RUNTIME_DIR", "NYX_SOCKET", "NYX_CONFIG", "NYX_NODE_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(short_folder))
    proxy = free_port()
    try:
        assert run(["testnet", "demo", "--relays", "3", "--base-port", str(base), "--proxy-port", str(proxy)]) == 0
        assert f"next: curl --proxy socks5h://127.0.0.1:{proxy} http" in capsys.readouterr().out
        for options, alias in (([], "alice"), (["--node", "exit-1"], "exit-1")):
            assert run([*options, "status", "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["alias"] == alias
        assert run(["--node", "bob", "status"]) == 3
        assert "(relay-1, exit-1, exit-2, alice)" in capsys.readouterr().err
    finally:
        assert run(["testnet", "down"]) == 0
    assert run(["status"]) == 3


def test_lines_to_copy_name_the_command_as_it_was_called(monkeypatch):
    from control.places import program

    for called, shown in (
        ("nyxctl", "nyxctl"),
        (".venv/bin/nyxctl", ".venv/bin/nyxctl"),
        ("-c", "nyxctl"),
        ("/x/pytest", "nyxctl"),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        assert program() == shown


def test_settings_of_the_callers_shell_do_not_reach_the_nodes(monkeypatch):
    monkeypatch.setenv("NYX_PATH_HOPS", "7")
    monkeypatch.setenv("NYX_CACHE_DIR", "/c")
    monkeypatch.setenv("PYTHONPATH", "some:where")
    found = network.node_environment()
    assert "NYX_PATH_HOPS" not in found
    assert found["NYX_CACHE_DIR"] == "/c"
    assert all(Path(part).is_absolute() for part in found["PYTHONPATH"].split(":"))
