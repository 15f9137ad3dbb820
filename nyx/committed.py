"""The configuration in force, in memory that outlives every process but the supervisor: one word says which version it is.

Roles: the supervisor writes; workers and the control process read. A new version is staged in the buffers that the version in
force does not use, prepared by everybody, and then put in force by one aligned 8-byte store of its number into the word. A reader
that finds the word changed takes the new version at its next turn; a process that begins its life reads the word first, so
whatever it was forked from, it never works with another version than its neighbours.

    word        the version in force; 0: none, each process keeps what it was given at its start
    heads[2]    version, size and SHA-256 of a text; version v is in buffer v mod 2
    texts[2]    JSON of a `Version`
    snapshots[2]  bytes of a signed directory; a version names its buffer, for most versions share one

A reader copies, and looks at the word again: the buffers of version v are written again for v + 2 only, and that is staged after
v + 1 came into force, so an unchanged word proves the copy whole.
"""

import dataclasses
import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from nyx.columns import Column, Columns
from nyx.errors import ConfigError, InternalError
from nyx.path.directory import SIZE_MAX, Snapshot, verify_in_steps

TEXT_MAX: Final = 65536  # bytes of a version's text
_HEAD: Final[np.dtype[Any]] = np.dtype([("version", np.int64), ("size", np.int64), ("digest", np.uint8, (32,))], align=True)
_BUFFERS: Final = 2


@dataclass(frozen=True, slots=True)
class DirectoryRef:
    """Which snapshot belongs to a version: where its bytes are, and the time (Unix seconds) at which they were believed."""

    sequence: int
    digest: str  # SHA-256 of the signed body, hex: Snapshot.digest
    verified: int
    buffer: int
    size: int


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the configuration, as it is committed."""

    number: int
    settings: Mapping[str, Any]  # in force
    origins: Mapping[str, str]
    waiting: Mapping[str, Any]  # values that the files want and that need a restart
    directory: DirectoryRef
    origin: str  # what asked for it: start, reload, SIGHUP, set, rollback
    time: int  # Unix seconds

    def to_bytes(self) -> bytes:
        """The text of the version. Raises ConfigError when it is too long."""
        whole = json.dumps(dataclasses.asdict(self), separators=(",", ":"), ensure_ascii=False)
        text = whole.encode("utf-8", "backslashreplace")  # a path may hold half of a surrogate pair: JSON's own escape
        if len(text) > TEXT_MAX:
            raise ConfigError([f"the whole configuration has {len(text)} bytes, at most {TEXT_MAX} fit: shorten exit.policy"])
        return text

    @classmethod
    def from_bytes(cls, text: bytes) -> "Version":
        """The version of a text. Raises ValueError, KeyError, TypeError."""
        try:
            value = json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        return cls(**{**value, "directory": DirectoryRef(**value["directory"])})


def committed_columns() -> list[Column]:
    """The columns; the snapshots' take memory only as far as they are written."""
    return [
        Column("config_word", np.dtype(np.int64), 1),
        Column("config_heads", _HEAD, _BUFFERS),
        Column("config_texts", np.dtype(np.uint8), _BUFFERS * TEXT_MAX),
        Column("config_snapshots", np.dtype(np.uint8), _BUFFERS * SIZE_MAX),
    ]


class Committed:
    """The versions in this memory."""

    def __init__(self, columns: Columns) -> None:
        self._word = columns["config_word"]
        self._heads = columns["config_heads"]
        self._texts = columns["config_texts"]
        self._snapshots = columns["config_snapshots"]

    # ------------------------------------------------------------ readers

    @property
    def word(self) -> int:
        """The number of the version in force; 0: none."""
        return int(self._word[0])

    def current(self) -> tuple[Version, bytes]:
        """The version in force and the bytes of its directory. Raises InternalError."""
        for _ in range(1000):  # each failed round means that a whole reload happened during it
            number = self.word
            try:
                found = self.staged(number)
            except InternalError:
                if self.word == number:
                    raise
                continue
            if self.word == number:
                return found
        raise InternalError("the configuration in force changes faster than it can be read")

    def staged(self, number: int) -> tuple[Version, bytes]:
        """A version whose buffers hold it, in force or not yet. Raises InternalError where they hold another."""
        version = self.text_of(number)
        return version, self.snapshot_of(version)

    def text_of(self, number: int) -> Version:
        """A version without its directory's bytes. Raises InternalError."""
        at = number % _BUFFERS
        head = self._heads[at]
        text = self._texts[at * TEXT_MAX : at * TEXT_MAX + min(int(head["size"]), TEXT_MAX)].tobytes()
        whole = hashlib.sha256(text).digest() == head["digest"].tobytes()
        if not number or int(head["version"]) != number or not whole:
            raise InternalError(f"the memory does not hold version {number} of the configuration")
        return Version.from_bytes(text)

    def snapshot_of(self, version: Version) -> bytes:
        """The bytes of a version's directory."""
        start = version.directory.buffer * SIZE_MAX
        return self._snapshots[start : start + version.directory.size].tobytes()

    def digest(self, number: int) -> bytes:
        """What tells this version's text from any other that is or was staged under its number."""
        return bytes(self._heads[number % _BUFFERS]["digest"].tobytes())

    # ------------------------------------------------------------ the supervisor

    def stage(self, version: Version, snapshot: bytes | None) -> Version:
        """Write the version after the one in force, with a new directory or that of the version in force; as it was written.

        Raises ConfigError.
        """
        if version.number % _BUFFERS == self.word % _BUFFERS and self.word:
            raise InternalError(f"version {version.number} cannot follow {self.word}")
        if snapshot is not None:
            taken = self.text_of(self.word).directory.buffer if self.word else 1
            place = dataclasses.replace(version.directory, buffer=1 - taken, size=len(snapshot))
            version = dataclasses.replace(version, directory=place)
        text = version.to_bytes()
        if snapshot is not None:
            start = version.directory.buffer * SIZE_MAX
            self._snapshots[start : start + len(snapshot)] = np.frombuffer(snapshot, np.uint8)
        at = version.number % _BUFFERS
        head = self._heads[at]
        head["version"] = 0
        self._texts[at * TEXT_MAX : at * TEXT_MAX + len(text)] = np.frombuffer(text, np.uint8)
        head["size"], head["digest"] = len(text), np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
        head["version"] = version.number
        return version

    def commit(self, number: int) -> None:
        """Put a staged version in force: one store. Raises InternalError when it is not the one that is staged."""
        self.text_of(number)
        self._word[0] = number


def believe(version: Version, data: bytes) -> Generator[None, None, Snapshot]:
    """The directory of a version from its bytes, checked in steps as when it was first believed. Raises DirectoryError."""
    signers = [bytes.fromhex(signer) for signer in version.settings["directory.signers"]]
    found = yield from verify_in_steps(data, signers, version.settings["directory.threshold"], version.directory.verified)
    if found.digest.hex() != version.directory.digest:
        raise InternalError("the memory holds another directory than this version's")
    return found
