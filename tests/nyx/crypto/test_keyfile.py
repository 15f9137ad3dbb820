"""The key file: comes back as saved, and every broken one is refused by name without showing what is in it."""

import random

import pytest

from nyx.crypto.keyfile import load_keys, save_keys
from nyx.crypto.keys import StaticKeys
from nyx.errors import ConfigError


def test_keys_come_back_as_saved(tmp_path):
    keys = StaticKeys.generate(random.Random(1).randbytes)
    save_keys(tmp_path / "keys", keys)
    assert load_keys(tmp_path / "keys").to_bytes() == keys.to_bytes()
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600


def test_missing_open_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match="there are no keys"):
        load_keys(path)
    keys = StaticKeys.generate(random.Random(1).randbytes)
    save_keys(path, keys)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644"):
        load_keys(path)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 7):
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(ConfigError) as caught:
            load_keys(path)
        assert str(caught.value).startswith(f"{path}: ")
        data[at] ^= 1
    path.write_bytes(b"")
    with pytest.raises(ConfigError):
        load_keys(path)
