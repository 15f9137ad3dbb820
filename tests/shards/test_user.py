"""A node that root starts becomes its user: folders, rights, and what it keeps for a moment."""

import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nyx.errors import ConfigError
from shards import seal, user

NOBODY = 65534
REFUSED, ALLOWED, RAISED = 10, 11, 77
pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")]


def ended(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        except BaseException as error:  # noqa: BLE001
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(RAISED)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def account() -> pwd.struct_passwd:
    return pwd.getpwuid(NOBODY)


def test_folders_are_made_and_handed_over_but_no_link_is_followed(tmp_path: Path, account: pwd.struct_passwd) -> None:
    made, found, secret = tmp_path / "made", tmp_path / "found", tmp_path / "secret"
    found.mkdir(0o700)
    (found / "keys").write_text("keys")
    secret.write_text("of root")
    (found / "soft").symlink_to(secret)
    os.link(secret, found / "hard")

    def work() -> int:
        user.become(account, [made, found])
        assert os.getresuid() == (NOBODY,) * 3
        assert os.getresgid() == (account.pw_gid,) * 3
        assert 0 not in os.getgroups()
        return ALLOWED

    assert ended(work) == ALLOWED
    assert [path.stat().st_uid for path in (made, found, found / "keys", secret)] == [NOBODY, NOBODY, NOBODY, 0]
    assert made.stat().st_mode & 0o777 == 0o700
    assert (found / "soft").lstat().st_uid == 0
    (found / "later").write_text("root's")  # the folder is the user's by then: what root finds in it may be a trap
    assert ended(work) == ALLOWED
    assert (found / "later").stat().st_uid == 0


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, account: pwd.struct_passwd) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(0o700)
    os.chown(folder, 4242, 4242)
    with pytest.raises(ConfigError, match="belongs to user 4242"):
        user.become(account, [folder])
    assert os.geteuid() == 0


def test_ports_below_1024_are_bound_first_and_then_no_more(account: pwd.struct_passwd) -> None:
    if os.access("/proc/sys/net/ipv4/ip_unprivileged_port_start", os.R_OK):
        first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        if first <= 700:
            pytest.skip("every user may bind every port here")

    def work() -> int:
        user.become(account, ())
        for port in range(700, 720):
            with socket.socket() as sock:
                try:
                    sock.bind(("127.0.0.1", port))
                except PermissionError:
                    return REFUSED
                except OSError:
                    continue
                break
        seal.seal_supervisor(seal.NO_FILTERS, inspect=False, tell=lambda _text: None)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", 721))
            except PermissionError:
                return ALLOWED
        return REFUSED

    assert ended(work) == ALLOWED


def test_only_root_becomes_another_and_the_user_must_exist(account: pwd.struct_passwd) -> None:
    with pytest.raises(ConfigError, match="no user 'nyx-nobody-has-this-name'"):
        user.other_user("nyx-nobody-has-this-name")
    assert user.other_user("root") is None

    def work() -> int:
        user.become(account, ())
        assert user.other_user(account.pw_name) is None
        try:
            user.other_user("root")
        except ConfigError as error:
            return REFUSED if "only root can become 'root'" in str(error) else ALLOWED
        return ALLOWED

    assert ended(work) == REFUSED


def test_the_environment_is_the_users(account: pwd.struct_passwd) -> None:
    environ = {"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/0", "PATH": "/bin"}
    user.adopt_environment(account, environ)
    assert environ == {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name, "PATH": "/bin"}
