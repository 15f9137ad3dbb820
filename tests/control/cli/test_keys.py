"""Backup and restore of keys by nyxctl: nothing is replaced unasked, nothing secret is printed, errors name what is wrong."""

import os

import pytest

from nyx.crypto import backup
from nyx.crypto.keyfile import load_keys

WORDS = "correct horse battery"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Stretching without its cost."""
    monkeypatch.setattr(backup, "MEMORY", 1 << 13)
    monkeypatch.setattr(backup, "PASSES", 1)


@pytest.fixture
def spoken(ctl):
    """Call nyxctl with a passphrase in a pipe."""

    def call(*args, words=WORDS):
        reader, writer = os.pipe()
        try:
            os.write(writer, words.encode() + b"\n")
            os.close(writer)
            return ctl(*args, "--passphrase-fd", reader)
        finally:
            os.close(reader)

    return call


@pytest.fixture
def files(ctl, tmp_path):
    keys = tmp_path / "node" / "keys"
    assert ctl("keys", "new", keys)[0] == 0
    return keys, tmp_path / "backup"


def test_a_backup_brings_the_same_node_back(ctl, spoken, files):
    keys, saved = files
    code, out, err = spoken("keys", "backup", keys, saved)
    assert (code, err) == (0, "")
    assert out == f"{saved}  node {load_keys(keys).public.node_id.hex()}\n"
    assert saved.stat().st_mode & 0o777 == 0o600
    before = keys.read_bytes()
    assert load_keys(keys).identity_seed not in saved.read_bytes()
    keys.unlink()
    code, out, err = spoken("keys", "restore", saved, keys)
    assert (code, err) == (0, "")
    assert keys.read_bytes() == before
    assert keys.stat().st_mode & 0o777 == 0o600
    assert out == ctl("keys", "show", keys)[1]


def test_nothing_is_replaced_unasked(ctl, spoken, files):
    keys, saved = files
    saved.write_bytes(b"mine")
    code, _, err = spoken("keys", "backup", keys, saved)
    assert (code, saved.read_bytes()) == (1, b"mine")
    assert "never replaced" in err
    saved.unlink()
    assert spoken("keys", "backup", keys, saved)[0] == 0
    original = keys.read_bytes()
    keys.unlink()
    ctl("keys", "new", keys)
    other = keys.read_bytes()
    code, _, err = spoken("keys", "restore", saved, keys)
    assert (code, keys.read_bytes()) == (1, other)
    assert "--force" in err
    assert spoken("keys", "restore", saved, keys, "--force")[0] == 0
    assert keys.read_bytes() == original
    assert [p.name for p in keys.parent.iterdir()] == ["keys"]


def test_a_link_in_a_backups_place_is_not_followed(spoken, files, tmp_path):
    keys, saved = files
    saved.symlink_to(tmp_path / "elsewhere")
    assert spoken("keys", "backup", keys, saved)[0] == 1
    assert not (tmp_path / "elsewhere").exists()


def test_wrong_passphrases_and_files_are_named(ctl, spoken, files, tmp_path):
    keys, saved = files
    target = tmp_path / "new"
    assert "shorter than 8" in spoken("keys", "backup", keys, saved, words="short")[2]
    assert not saved.exists()
    spoken("keys", "backup", keys, saved)
    code, out, err = spoken("keys", "restore", saved, target, words="something else")
    assert (code, out) == (78, "")
    assert f"{saved}: the passphrase is wrong, or the backup is damaged" in err
    data = saved.read_bytes()
    version = b"NYXB\2" + data[5:]
    for wrong, said in ((data[:-1], "damaged"), (data + b"x", "longer than"), (version, "version 2"), (b"", "not a backup")):
        saved.write_bytes(wrong)
        code, _, err = spoken("keys", "restore", saved, target)
        assert code == 78
        assert said in err
    assert "no such file" in spoken("keys", "restore", tmp_path / "absent", target)[2]
    assert not target.exists()


def test_without_a_terminal_a_descriptor_is_asked_for(ctl, files, monkeypatch):
    keys, saved = files
    monkeypatch.setattr(os, "isatty", lambda _: False)
    code, _, err = ctl("keys", "backup", keys, saved)
    assert code == 2
    assert "--passphrase-fd" in err
    code, _, err = ctl("keys", "backup", keys, saved, "--passphrase-fd", 1000)
    assert code == 2
    assert "descriptor 1000" in err


def test_a_backup_that_cannot_be_written_says_why(spoken, files, tmp_path):
    keys, _ = files
    code, _, err = spoken("keys", "backup", keys, tmp_path / "absent" / "backup")
    assert code == 1
    assert "No such file" in err
