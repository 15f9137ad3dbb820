"""The units under a real systemd: installed by make, started, reloaded, upgraded, watched, stopped, removed."""

import json
import time

import pytest

from nyx.path import cbor
from nyx.path.directory import build_snapshot
from tests.e2e.systemd_machine import PACKAGES, PYTHON, SOURCE, booted
from tests.shards.test_nyxd import AUTHORITY

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(400)]

CONFIG = f"""
[node]
alias = "test"
role = "relay"
address = "127.0.0.1"
[workers]
count = 1
[path]
allow_loopback = true
[directory]
file = "directory"
signers = ["{cbor.identity_of(AUTHORITY).hex()}"]
""".encode()
FILE = "/etc/nyx/nyx.toml"


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with booted(tmp_path_factory.mktemp("systemd")) as found:
        found.run("make", "-C", SOURCE, "install", f"PYTHON={PYTHON}", f"PACKAGES={PACKAGES}")
        now = int(time.time())
        snapshot = build_snapshot([], [AUTHORITY], network="test", sequence=3, valid_from=now - 60, valid_until=now + 3600)
        found.write("/etc/nyx/directory", snapshot)
        found.write(FILE, CONFIG)
        found.run("runuser", "-u", "nyx", "--", "nyxctl", "keys", "new", "/var/lib/nyx/keys")
        yield found


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


def test_it_starts_and_every_process_is_sealed(machine):
    machine.run("systemctl", "start", "nyx")
    assert machine.show("ActiveState") == "active"
    status = json.loads(machine.run("nyxctl", "status", "--wait", "--json").stdout)
    assert status["ready"]
    assert not [text for text in status["warnings"] if "net.core.rmem_max" not in text]
    until(lambda: machine.show("StatusText").startswith("ready"))
    names = {process["name"] for process in status["processes"]}
    assert names == {"supervisor", "control", "worker 0", "keeper 0"}
    assert all("system_calls" in process["sealed"] for process in status["processes"])
    assert all("no_new_code" in p["sealed"] for p in status["processes"] if p["name"] != "supervisor")
    assert machine.show("NRestarts") == "0"


def test_its_folders_are_its_own(machine):
    for folder, mode in (("/var/lib/nyx", "700"), ("/run/nyx", "700"), ("/var/cache/nyx", "755")):
        assert machine.run("stat", "--format", "%a %U", folder).stdout.decode().strip() == f"{mode} nyx"
    assert machine.run("runuser", "-u", "nobody", "--", "nyxctl", "status", check=False).returncode != 0


def test_a_reload_is_done_or_fails_with_the_reasons(machine):
    machine.write(FILE, CONFIG + b'[log]\nlevel = "debug"\n')
    machine.run("systemctl", "reload", "nyx")
    assert machine.run("nyxctl", "config", "get", "--running", "log.level").stdout.strip() == b"debug"
    machine.write(FILE, CONFIG + b"[nonsense]\n")
    assert machine.run("systemctl", "reload", "nyx", check=False).returncode != 0
    assert machine.show("ActiveState") == "active"
    until(lambda: "the last reload was refused" in machine.show("StatusText"))
    assert "nonsense" in machine.run("journalctl", "--no-pager", "-u", "nyx").stdout.decode()
    machine.write(FILE, CONFIG)
    machine.run("systemctl", "reload", "nyx")
    until(lambda: "refused" not in machine.show("StatusText"))


def test_an_upgrade_after_an_installation_keeps_the_main_process(machine):
    before = machine.show("MainPID")
    machine.run("make", "-C", SOURCE, "install", f"PYTHON={PYTHON}", f"PACKAGES={PACKAGES}")
    assert machine.run("cat", FILE).stdout == CONFIG
    machine.run("nyxctl", "upgrade")
    assert (machine.show("MainPID"), machine.show("NRestarts"), machine.show("ActiveState")) == (before, "0", "active")


def test_a_supervisor_that_hangs_is_ended_and_the_node_started_anew(machine):
    machine.write("/run/systemd/system/nyx.service.d/watchdog.conf", b"[Service]\nWatchdogSec=8\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "nyx")
    before = machine.show("MainPID")
    machine.run("kill", "-STOP", before)
    until(lambda: machine.show("NRestarts") == "1" and machine.show("ActiveState") == "active")
    assert machine.show("MainPID") not in (before, "0")
    assert "Watchdog timeout" in machine.run("journalctl", "--no-pager", "-u", "nyx").stdout.decode()


def test_a_wrong_configuration_is_not_started_again_and_again(machine):
    machine.write(FILE, CONFIG + b"[nonsense]\n")
    assert machine.run("systemctl", "restart", "nyx", check=False).returncode != 0
    assert (machine.show("ActiveState"), machine.show("ExecMainStatus"), machine.show("NRestarts")) == ("failed", "78", "0")
    machine.write(FILE, CONFIG)


def test_a_stop_leaves_nothing_running_and_uninstall_leaves_configuration_and_state(machine):
    machine.run("systemctl", "start", "nyx")
    machine.run("systemctl", "stop", "nyx")
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")
    assert machine.run("pgrep", "-u", "nyx", check=False).stdout == b""
    assert machine.run("test", "-e", "/run/nyx", check=False).returncode == 1
    machine.run("make", "-C", SOURCE, "uninstall")
    assert machine.show("LoadState") == "not-found"
    machine.run("test", "-s", "/var/lib/nyx/keys")
    machine.run("test", "-s", FILE)
    assert machine.run("test", "-e", "/usr/local/lib/nyx", check=False).returncode == 1
