"""The file of a node's secret keys: 0600 or refused, replaced whole or not at all.

What the bytes are is `StaticKeys`' business; this module knows where and how they lie.
"""

from pathlib import Path
from typing import Final

from nyx.crypto.keys import StaticKeys
from nyx.errors import ConfigError
from nyx.files import read_private, write_new, write_whole

KEY_FILE_MOST: Final = 65536  # bytes; a longer file is not ours


def load_keys(path: Path) -> StaticKeys:
    """The keys in the file. Raises ConfigError: missing, open to others, damaged."""
    try:
        data = read_private(path, KEY_FILE_MOST)
    except FileNotFoundError as error:
        raise ConfigError([f"{path}: there are no keys; make them with: nyxctl keys new"]) from error
    try:
        return StaticKeys.from_bytes(data)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error


def save_keys(path: Path, keys: StaticKeys, *, replace: bool = True) -> None:
    """Write the keys, durable and private. Raises OSError; FileExistsError when nothing shall be replaced and there is a file."""
    (write_whole if replace else write_new)(path, keys.to_bytes())
