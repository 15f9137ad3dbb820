"""Files that must survive a crash and stay private: whole or absent, never torn, never readable by others.

Writing: a new file beside the old one, fsync, rename, fsync of the folder. Reading a private file refuses a link, another
owner and any permission beyond the owner's. Problems are ConfigError, so that an operator reads what to mend.
"""

import os
import stat
from pathlib import Path
from typing import Final

from nyx.errors import ConfigError

PRIVATE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700


def write_whole(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Replace the file by one with this content, or leave it as it was. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        _fill(handle, data, mode)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_new(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Make the file with this content. Raises OSError; FileExistsError when there is one, which stays as it is.

    A crash may leave part of it. Every file system can do this; not every one has the links that would prevent it.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        _fill(handle, data, mode)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _fill(handle: int, data: bytes, mode: int) -> None:
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)  # whatever the umask says
        file.write(data)
        file.flush()
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_folder(path: Path) -> None:
    """Make the folder with its parents; an existing one must be ours and closed to others. Raises ConfigError."""
    try:
        path.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        state = path.lstat()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be made: {error.strerror}"]) from error
    if not stat.S_ISDIR(state.st_mode):
        raise ConfigError([f"{path}: is not a folder"])
    if state.st_uid != os.geteuid():
        raise ConfigError([f"{path}: belongs to user {state.st_uid}, not to {os.geteuid()} who runs this"])
    if state.st_mode & 0o077:
        raise ConfigError([f"{path}: others can enter (mode {state.st_mode & 0o777:04o}); mend with: chmod 700 {path}"])


def read_private(path: Path, most: int) -> bytes:
    """Content of a file that only its owner can read, at most `most` bytes. Raises ConfigError; FileNotFoundError as it is."""
    data, state = _read(path, most)
    if state.st_uid not in (0, os.geteuid()):
        raise ConfigError([f"{path}: belongs to user {state.st_uid}, not to {os.geteuid()} who runs this"])
    if state.st_mode & 0o177:
        raise ConfigError([f"{path}: others can read it (mode {state.st_mode & 0o777:04o}); mend with: chmod 600 {path}"])
    return data


def read_bounded(path: Path, most: int) -> bytes:
    """Content of a file of at most `most` bytes. Raises ConfigError; FileNotFoundError as it is."""
    return _read(path, most)[0]


def _read(path: Path, most: int) -> tuple[bytes, os.stat_result]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise ConfigError([f"{path}: is not a file"])
        with os.fdopen(os.dup(handle), "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    finally:
        os.close(handle)
    if len(data) > most:
        raise ConfigError([f"{path}: is longer than {most} bytes"])
    return data, state
