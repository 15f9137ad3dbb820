"""Writing a person's configuration files: one key at a time, comments and order kept, the whole checked before a byte is written.

A key is written where it already is, in the file that decides it; one that no file has goes to the main file. What decides
otherwise (the environment, a flag) is named instead of written over. Source: docs/configuration.md.
"""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nyx.changes import Change, compare
from nyx.config import Config, drop_ins, known_key, load, settings
from nyx.errors import ConfigError
from nyx.files import sync_folder

_NEW_MODE: Final = 0o600


@dataclass(slots=True)
class Edit:
    """Changes to the files of one configuration, not written yet."""

    main: Path
    environ: Mapping[str, str]
    texts: dict[Path, str] = field(default_factory=dict)  # of the files that change
    before: dict[Path, str | None] = field(default_factory=dict)  # None: there was no such file
    _touched: set[str] = field(default_factory=set)

    def set(self, key: str, value: Any) -> None:
        """Give a key this value, in the form of a file. Raises ConfigError."""
        section, _, name = known_key(key).name.partition(".")
        self._touched.add(key)
        file, document = self._open(self._place(key))
        if section not in document:
            import tomlkit

            document[section] = tomlkit.table()
        _table(file, document, section)[name] = value
        self.texts[file] = document.as_string()

    def remove(self, key: str) -> None:
        """Leave a key to its default, in every file. Raises ConfigError."""
        section, _, name = known_key(key).name.partition(".")
        self._touched.add(key)
        for file in (self.main, *drop_ins(self.main)):
            if not file.exists():
                continue
            file, document = self._open(file)  # noqa: PLW2901 (the same file)
            if name in _table(file, document, section):
                del document[section][name]
                self.texts[file] = document.as_string()

    def check(self) -> list[Change]:
        """The whole configuration as it would be; what it changes. Raises ConfigError with every problem."""
        new = settings(self._load(self.texts))
        try:
            return compare(settings(self._load(self.before)), new)
        except ConfigError:  # what was wrong with the files has just been mended
            return [change for change in compare({}, new) if change.key in self._touched]

    def write(self) -> list[str]:
        """Write the files that change, each whole or not at all; their names. Raises OSError."""
        changed = {file: text for file, text in self.texts.items() if text != self.before[file]}
        for file, text in changed.items():
            _replace(file, text)
        return [str(file) for file in changed]

    def take_back(self) -> None:
        """Write again what was there before. Raises OSError."""
        for file, text in self.before.items():
            if text is None:
                file.unlink(missing_ok=True)
            elif self.texts.get(file, text) != text:
                _replace(file, text)

    def _load(self, texts: Mapping[Path, str | None]) -> Config:
        return load(self.main, environ=self.environ, instead={file: text or "" for file, text in texts.items()})

    def _place(self, key: str) -> Path:
        """The file that decides the key: the last that has it, or the main file."""
        section, _, name = key.partition(".")
        for file in reversed(drop_ins(self.main)):
            _, document = self._open(file)
            if name in _table(file, document, section):
                return file
        return self.main

    def _open(self, file: Path) -> tuple[Path, Any]:
        import tomlkit  # takes longer to import than nyxctl takes to start
        from tomlkit.exceptions import ParseError, TOMLKitError

        if file not in self.before:
            self.before[file] = _read(file)
        try:
            return file, tomlkit.parse(self.texts.get(file, self.before[file] or ""))
        except ParseError as error:
            raise ConfigError([f"{file}:{error.line}  not TOML: {error}"]) from error
        except (ValueError, TOMLKitError, RecursionError) as error:
            raise ConfigError([f"{file}: not TOML: {str(error) or 'brackets are nested too deeply'}"]) from error


def _table(file: Path, document: Any, section: str) -> Any:
    """A section of a file, empty where there is none. Raises ConfigError where the name is another thing's."""
    found = document.get(section, {})
    if not isinstance(found, MutableMapping):
        raise ConfigError([f"{file}: {section} is not a section; mend the file by hand"])
    return found


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error


def _replace(file: Path, text: str) -> None:
    """A new file in the place of the old one, with its owner and mode; a link stays and its target is replaced."""
    target = file.resolve()
    old = target.stat() if target.exists() else None
    temporary = target.with_name(target.name + ".new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _NEW_MODE)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            if old:
                os.fchmod(handle, old.st_mode & 0o7777)
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(handle, old.st_uid, old.st_gid)
            stream.write(text)
            stream.flush()
            os.fsync(handle)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
