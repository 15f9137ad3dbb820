"""The versions of a node's configuration that were in force, newest last, each a file in the node's state folder.

Roles: the supervisor adds; `nyxctl` and the control process read. An entry is written whole before its version comes into force.
The newest KEPT are kept; one that is damaged is passed over, and its number is never used again.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nyx.changes import Change
from nyx.errors import ConfigError
from nyx.files import private_folder, read_private, write_whole

FOLDER: Final = "config-history"
KEPT: Final = 50
_ENTRY_MAX: Final = 1 << 18  # bytes: settings and changes, each below 64 KiB


@dataclass(frozen=True, slots=True)
class Entry:
    """One version: when it came into force, who asked, what it changed, what it was."""

    version: int
    time: int  # Unix seconds
    origin: str
    changes: Sequence[Change]  # with those that waited for a restart
    settings: Mapping[str, Any]
    origins: Mapping[str, str]
    directory: Mapping[str, Any]  # sequence and digest of the snapshot

    def to_bytes(self) -> bytes:
        """The file."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"  # a path may hold half of a surrogate pair: JSON's own escape

    @classmethod
    def from_bytes(cls, data: bytes) -> "Entry":
        """The entry of a file. Raises ValueError, KeyError, TypeError."""
        try:
            value = json.loads(data)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        return cls(**{**value, "changes": [Change(**change) for change in value["changes"]]})


class History:
    """The entries of one node."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER

    def add(self, entry: Entry) -> None:
        """Write an entry, and drop the oldest beyond KEPT. Raises OSError, ConfigError."""
        private_folder(self._folder)
        write_whole(self._file(entry.version), entry.to_bytes())
        for old in self.numbers()[:-KEPT]:
            with contextlib.suppress(FileNotFoundError):
                self._file(old).unlink()

    def remove(self, version: int) -> None:
        """Take back the entry of a version that did not come into force."""
        self._file(version).unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Every version that has a file, damaged or not, oldest first."""
        return sorted(int(file.stem) for file in self._folder.glob("*.json") if file.stem.isdecimal())

    def entry(self, version: int) -> Entry | None:
        """One version, or None where there is none that can be read."""
        try:
            return Entry.from_bytes(read_private(self._file(version), _ENTRY_MAX))
        except (ConfigError, FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def entries(self) -> list[Entry]:
        """All that can be read, oldest first."""
        return [entry for number in self.numbers() if (entry := self.entry(number))]

    def newest(self) -> Entry | None:
        """The last one that can be read."""
        return next((entry for number in reversed(self.numbers()) if (entry := self.entry(number))), None)

    def _file(self, version: int) -> Path:
        return self._folder / f"{version:08d}.json"
