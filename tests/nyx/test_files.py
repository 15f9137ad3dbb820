"""Private files and folders: whole or absent, and refused where others could read them."""

import os
from pathlib import Path

import pytest

from nyx import files
from nyx.errors import ConfigError


def test_a_file_is_replaced_whole_with_its_mode_whatever_the_umask(tmp_path):
    path = tmp_path / "a"
    before = os.umask(0)
    try:
        files.write_whole(path, b"one")
        files.write_whole(path, b"two")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert files.read_private(path, 3) == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a"
    files.write_whole(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail) if failing == "fsync" else monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_leftover_of_a_crash_is_no_obstacle(tmp_path):
    (tmp_path / "a.new").write_bytes(b"torn")
    files.write_whole(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o700, 0o602])
def test_a_file_open_to_others_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "keys"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        files.read_private(path, 10)


def test_no_link_no_folder_no_pipe_and_nothing_longer_than_allowed(tmp_path):
    target = tmp_path / "target"
    files.write_whole(target, b"12345")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, words in (("link", "cannot be read"), ("pipe", "is not a file"), (".", "is not a file")):
        with pytest.raises(ConfigError, match=words):
            files.read_private(tmp_path / name, 10)
    with pytest.raises(ConfigError, match="longer than 4 bytes"):
        files.read_private(target, 4)
    with pytest.raises(FileNotFoundError):
        files.read_private(tmp_path / "none", 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_or_folder_of_another_user_is_refused(tmp_path):
    path = tmp_path / "keys"
    files.write_whole(path, b"x")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        files.read_private(path, 10)
    files.private_folder(tmp_path / "state")
    os.chown(tmp_path / "state", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        files.private_folder(tmp_path / "state")


def test_a_private_folder_is_made_or_checked(tmp_path):
    folder = tmp_path / "a" / "b"
    files.private_folder(folder)
    files.private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match=r"mode 0750.*chmod 700"):
        files.private_folder(folder)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file"):
        with pytest.raises(ConfigError):
            files.private_folder(tmp_path / name)


def test_a_file_that_fails_while_it_is_read_is_named():
    with pytest.raises(ConfigError, match="/proc/self/mem: cannot be read: Input/output error"):
        files.read_bounded(Path("/proc/self/mem"), 10)
