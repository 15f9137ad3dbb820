"""What an operator or a disk can damage: configuration, key file, committed versions, history."""

import hashlib
import json
from pathlib import Path
from typing import Final

from control.config_file import Edit
from nyx.committed import Version
from nyx.config import KEYS, Config, from_settings, load, settings
from nyx.crypto.keys import CHECKSUM_SIZE, KEY_FILE_SIZE, StaticKeys
from nyx.errors import ConfigError
from nyx.history import Entry
from tests.fuzz.script import Script

_ENVIRON: Final = {"HOME": "/home/a", "XDG_RUNTIME_DIR": "/run/user/1"}
_FILE: Final = Path("/etc/nyx/nowhere/nyx.toml")
_BASE: Final = '[directory]\nfile = "d"\nsigners = ["' + "a" * 64 + '"]\n[node]\naddress = "192.0.2.1"\n'


def _load(text: str, flags: dict[str, str] | None = None) -> Config | None:
    try:
        found = load(_FILE, environ=_ENVIRON, flags=flags, instead={_FILE: text})
    except ConfigError as error:
        assert error.problems
        assert all(problem.strip() for problem in error.problems)
        return None
    told = settings(found)
    json.dumps(told).encode()
    assert settings(from_settings(told)) == told
    return found


def config(data: bytes) -> bool:
    """A configuration file."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return _load(text) is not None


def config_value(data: bytes) -> bool:
    """One key from the environment or a flag: the first byte chooses it, the rest is its text."""
    script = Script(data)
    key = KEYS[script.number() % len(KEYS)].name
    found = _load(_BASE, {key: script.rest().decode("utf-8", "surrogateescape")})
    return found is not None


def config_edit(data: bytes) -> bool:
    """`nyxctl config set` in any file: what it writes is a configuration in which that key has changed and no other."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    edit = Edit(_FILE, _ENVIRON, before={_FILE: text})
    try:
        edit.set("path.hops", 6)
        edit.check()
    except ConfigError as error:
        assert error.problems
        return False
    found = settings(load(_FILE, environ=_ENVIRON, instead=edit.texts))
    assert found["path.hops"] == 6
    old = _load(text)
    assert old is None or {**settings(old), "path.hops": 6} == found
    return True


def key_file(data: bytes) -> bool:
    """As it is, and with the checksum made right."""
    taken = False
    body = data[: KEY_FILE_SIZE - CHECKSUM_SIZE]
    for whole in (data, body + hashlib.sha256(body).digest()[:CHECKSUM_SIZE]):
        try:
            found = StaticKeys.from_bytes(whole)
        except ConfigError as error:
            assert not any(part.hex() in str(error) for part in (data[5:13], data[37:45]) if len(part) == 8)
            continue
        assert found.to_bytes() == whole
        taken = True
    return taken


def committed(data: bytes) -> bool:
    """The text of a committed version."""
    try:
        found = Version.from_bytes(data)
    except (ValueError, KeyError, TypeError):
        return False
    try:
        assert Version.from_bytes(found.to_bytes()) == found
    except ConfigError:
        return False
    return True


def history(data: bytes) -> bool:
    """A version that was in force, in its file."""
    try:
        found = Entry.from_bytes(data)
    except (ValueError, KeyError, TypeError):
        return False
    assert Entry.from_bytes(found.to_bytes()) == found
    return True
