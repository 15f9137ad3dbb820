"""The command: every mistake is told at once, with exit 78 and nothing started."""

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from nyx.crypto.keyfile import save_keys
from nyx.crypto.keys import StaticKeys
from nyx.path import cbor
from nyx.path.directory import build_snapshot
from shards import nyxd
from tests.shards.test_supervisor import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
AUTHORITY = b"\x07" * 32
# nyxd with the worker's double in the place of the worker
DOUBLED = (
    "-c",
    """
import sys, types
from shards.nyxd import main
from tests.shards import node_double

sys.modules["shards.worker"] = types.SimpleNamespace(worker_main=node_double.worker, worker_columns=node_double.columns)
sys.exit(main())
""",
)


class Home:
    """A folder with a node's files, right until a test spoils one."""

    def __init__(self, folder: Path, role: str = "relay") -> None:
        folder.chmod(0o700)
        self.folder, self.file, self.directory = folder, folder / "nyx.toml", folder / "directory"
        self.text = (
            f'[node]\nalias = "test"\nrole = "{role}"\naddress = "127.0.0.1"\nport = {free_port()}\n'
            f'state_dir = "."\nrun_dir = "."\n[workers]\ncount = 1\npin = false\n[path]\nallow_loopback = true\n'
            f'[directory]\nfile = "directory"\nsigners = ["{cbor.identity_of(AUTHORITY).hex()}"]\n'
        )
        self.file.write_text(self.text)
        save_keys(folder / "keys", StaticKeys.generate(os.urandom))
        self.publish(int(time.time()) - 60, int(time.time()) + 3600)

    def publish(self, valid_from: int, valid_until: int) -> None:
        snapshot = build_snapshot([], [AUTHORITY], network="test", sequence=3, valid_from=valid_from, valid_until=valid_until)
        self.directory.write_bytes(snapshot)

    def nyxd(self, program: Sequence[str] = ("-m", "shards.nyxd")) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *program, "--config", str(self.file)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def run(home: Home, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, Sequence[str]]:
    code = nyxd.main(["--config", str(home.file), *arguments])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


@pytest.mark.parametrize("role", ["relay", "client", "exit"])
def test_a_right_node_passes_the_check_and_nothing_is_written(
    tmp_path: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path, role)
    if role == "client":
        (tmp_path / "keys").unlink()
    before = sorted(tmp_path.iterdir())
    code, out, err = run(home, "--check", capsys=capsys)
    assert (code, err) == (0, [])
    assert out == f"{home.file}: right; node test, 0 nodes known\n"
    assert sorted(tmp_path.iterdir()) == before


def test_flags_win_over_the_environment_and_the_file(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NYX_NODE_ALIAS", "from-environment")
    assert "node from-environment," in run(home, "--check", capsys=capsys)[1]
    assert "node from-flag," in run(home, "--check", "--set", "node.alias=from-flag", capsys=capsys)[1]


def test_all_mistakes_of_the_file_are_told(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.file.write_text(home.text.replace('alias = "test"', 'alais = "test"').replace("count = 1", "count = 9"))
    code, out, err = run(home, capsys=capsys)
    assert (code, out, len(err)) == (78, "", 2)
    assert err[0].startswith(f"{home.file}:2")
    assert 'did you mean "alias"?' in err[0]
    assert "above the range 1 to 4" in err[1]


def test_mistakes_of_keys_and_directory_are_told_together(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    (home.folder / "keys").unlink()
    home.directory.unlink()
    code, _, err = run(home, capsys=capsys)
    assert code == 78
    assert len(err) == 2
    assert "there are no keys" in err[0]
    assert "directory missing" in err[1]


def test_a_mistake_in_the_exit_policy_is_told_with_its_line(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.file.write_text(home.text + '[exit]\npolicy = ["accept nowhere:80"]\n')
    code, _, err = run(home, capsys=capsys)
    assert code == 78
    assert "exit.policy" in err[0]
    assert "nowhere" in err[0]


@pytest.mark.parametrize("fault", ["expired", "not yet valid", "altered", "malformed"])
def test_a_directory_that_cannot_be_believed_is_refused_by_name(home: Home, fault: str) -> None:
    now = int(time.time())
    if fault == "expired":
        home.publish(now - 7200, now - 3600)
    elif fault == "not yet valid":
        home.publish(now + 3600, now + 7200)
    elif fault == "altered":
        data = bytearray(home.directory.read_bytes())
        data[data.index(b"test")] ^= 1
        home.directory.write_bytes(data)
    else:
        home.directory.write_bytes(b"no snapshot")
    done = home.nyxd()
    assert (done.returncode, done.stdout) == (78, "")
    assert f"directory {fault}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home.folder / "control.sock").exists()


def test_files_open_to_others_are_refused(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    (home.folder / "keys").chmod(0o644)
    code, _, err = run(home, "--check", capsys=capsys)
    assert code == 78
    assert "others can read it" in err[0]
    (home.folder / "keys").chmod(0o600)
    home.folder.chmod(0o755)
    code, _, err = run(home, capsys=capsys)
    assert code == 78
    assert "others can enter" in err[0]


def test_a_full_disk_is_exit_1_and_names_the_file_that_was_not_written(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nyx.path.directory.write_whole", full)
    code, out, err = run(home, capsys=capsys)
    assert (code, out, len(err)) == (1, "", 1)
    assert "directory.pin: cannot be written: No space left on device; make room" in err[0]


def test_a_taken_port_is_exit_1(home: Home) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        port = int(home.text.partition("port = ")[2].partition("\n")[0])
        other.bind(("127.0.0.1", port))
        done = home.nyxd(program=DOUBLED)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"nyxd: UDP 127.0.0.1 port {port}: Address already in use\n")


@pytest.mark.parametrize("arguments", [["--set", "alias"], ["--no-such-flag"]])
def test_wrong_use_is_exit_2(home: Home, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(home, *arguments, capsys=capsys)
    assert caught.value.code == 2


def test_no_file_at_all_is_a_configuration_problem(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert nyxd.main(["--config", str(tmp_path / "none.toml")]) == 78
    assert "cannot be read" in capsys.readouterr().err
