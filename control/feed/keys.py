"""Keys of the feed by TCP: the node's own CURVE key, and whom it admits.

The secret key stands in the state folder, readable by its owner alone. Each file in the folder of readers admits one: its name is
for people, its first line a public key in Z85, 40 characters. Files count at once, no restart is needed.
Source: ZeroMQ RFC 26 (CurveZMQ), RFC 32 (Z85).
"""

import re
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from nyx.errors import ConfigError
from nyx.files import private_folder, read_bounded, read_private, write_whole

READERS_MAX: Final = 256
_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def key_file(state_dir: Path) -> Path:
    """Where the node's secret key for the feed is."""
    return state_dir / "feed.key"


def readers_folder(state_dir: Path) -> Path:
    """Where the public keys of those who may read are."""
    return state_dir / "feed-readers"


def load_or_make(state_dir: Path) -> tuple[bytes, bytes]:
    """Public and secret key of this node, in Z85; made at the first use. Raises ConfigError, OSError."""
    path = key_file(state_dir)
    try:
        secret = read_private(path, 64).strip()
    except FileNotFoundError:
        private_folder(state_dir)
        _, secret = zmq.curve_keypair()
        write_whole(path, secret + b"\n")
    if not _Z85.fullmatch(secret.decode("latin-1")):
        raise ConfigError([f"{path}: is no CURVE key of 40 characters; remove it and a new one is made"])
    return zmq.curve_public(secret), secret


def readers(state_dir: Path) -> dict[bytes, str]:
    """Name of each admitted reader by its public key of 32 bytes; files that hold no key admit nobody."""
    folder, found = readers_folder(state_dir), dict[bytes, str]()
    try:
        files = sorted(folder.iterdir())[:READERS_MAX]
    except FileNotFoundError:
        return found
    for file in files:
        try:
            text = read_bounded(file, 256).decode("ascii").split("\n", 1)[0].strip()
        except (ConfigError, OSError, UnicodeDecodeError):
            continue
        if _NAME.fullmatch(file.name) and _Z85.fullmatch(text):
            found[z85.decode(text.encode())] = file.name
    return found


def text(key: bytes) -> str:
    """A key of 32 bytes in Z85."""
    return z85.encode(key).decode()


def admit(state_dir: Path, name: str, key: str) -> Path:
    """Let the owner of a key read; the file that says so. Raises ConfigError, OSError."""
    if not _NAME.fullmatch(name):
        raise ConfigError([f"{name!r}: a name has 1 to 32 letters, digits, - and _, a letter or digit first"])
    if not _Z85.fullmatch(key):
        raise ConfigError(["a reader's public key has 40 characters of Z85, as zmq.curve_keypair() makes it"])
    folder = readers_folder(state_dir)
    private_folder(folder)
    path = folder / name
    write_whole(path, key.encode() + b"\n")
    return path
