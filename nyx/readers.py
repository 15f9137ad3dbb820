"""Readers of settings: what a key's value in TOML becomes, and what is wrong with one that it cannot have.

Place: `nyx/config.py` names one for each key. A reader is called with the raw value and returns the checked one, or raises
`WrongValueError` with what is allowed; `allowed` says it for people who have not tried yet.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nyx.path.policy import RULES_MAX, parse_rule


class WrongValueError(ValueError):
    """A value that a key cannot have, with what is allowed."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How one kind of value is read, and what it may be."""

    read: Callable[[Any], Any]
    kind: str  # what TOML calls it
    allowed: str

    def __call__(self, value: Any) -> Any:
        """The checked value. Raises WrongValueError."""
        return self.read(value)


def integer(low: int, high: int) -> Reader:
    """A whole number within these bounds."""

    def read(value: Any) -> int:
        if type(value) is not int:
            raise WrongValueError(f"{show(value)} is not a whole number; allowed: {low} to {high}")
        if not low <= value <= high:
            raise WrongValueError(f"{show(value)} is {'below' if value < low else 'above'} the range {low} to {high}")
        return value

    return Reader(read, "integer", f"{low} to {high}")


def choice(*allowed: str) -> Reader:
    """One of these words."""

    def read(value: Any) -> str:
        if value not in allowed:
            raise WrongValueError(f"{show(value)} is none of {', '.join(allowed)}{suggest(str(value), allowed)}")
        return str(value)

    return Reader(read, "string", ", ".join(f'"{word}"' for word in allowed))


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WrongValueError(f"{show(value)} is neither true nor false")
    return value


def _text(value: Any, what: str = "text") -> str:
    if not isinstance(value, str):
        raise WrongValueError(f"{show(value)} is not {what}")
    return value


def _alias(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", _text(value, "a name")):
        raise WrongValueError(f"{show(value)}: 1 to 32 letters, digits, - and _, a letter or digit first")
    return str(value)


def _user(value: Any) -> str | None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}|", _text(value, "a name")):
        raise WrongValueError(f"{show(value)} is not the name of a user")
    return str(value) or None


def _address(value: Any) -> str:
    try:
        return str(ipaddress.ip_address(_text(value, "an address")))
    except ValueError as error:
        raise WrongValueError(f"{show(value)} is not a numeric IPv4 or IPv6 address") from error


def _path(value: Any) -> Path:
    if not _text(value, "a path") or "\0" in value:
        raise WrongValueError("an empty path")
    return Path(value)


def _file(value: Any) -> Path | None:
    return _path(value) if _text(value, "a path") else None


def _endpoint(value: Any) -> tuple[str, int] | None:
    if _text(value, 'text like "127.0.0.1:9750"') == "off":
        return None
    host, _, port = value.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise WrongValueError(f'{show(value)} is neither "off" nor a numeric address and port like "127.0.0.1:9750"') from error
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise WrongValueError(f"port {port!r} is not within 1 to 65535")
    return str(address), int(port)


def _listen(value: Any) -> tuple[str, int] | None:
    found = _endpoint(value)
    if found and not is_loopback(found):
        raise WrongValueError(f"{found[0]} is not a loopback address: anybody who reaches it could use this proxy")
    return found


def _local(value: Any) -> tuple[str, int] | None:
    found = _endpoint(value)
    if found and not is_loopback(found):
        raise WrongValueError(f"{found[0]} is not a loopback address: reach a collector elsewhere through one on this machine")
    return found


def is_loopback(endpoint: tuple[str, int]) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(endpoint[0]).is_loopback


def _count(value: Any) -> int:
    return 0 if value == "auto" else int(integer(1, 4)(value))


def _memory(value: Any) -> int:
    return 0 if value == "auto" else int(integer(128, 1 << 22)(value))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise WrongValueError(f"{show(value)} is not a list")
    return value


def _signers(value: Any) -> tuple[bytes, ...]:
    found = _list(value)
    for item in found:
        if not isinstance(item, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", item):
            raise WrongValueError(f"{show(item)} is not an Ed25519 public key of 64 hexadecimal digits")
    keys = tuple(bytes.fromhex(item) for item in found)
    if not 1 <= len(set(keys)) == len(keys) <= 32:
        raise WrongValueError("1 to 32 keys, each once")
    return keys


def _rules(value: Any) -> tuple[str, ...]:
    for item in _list(value):
        try:
            parse_rule(_text(item, "a rule").strip())
        except ValueError as error:
            raise WrongValueError(str(error)) from error
    if len(value) > RULES_MAX:
        raise WrongValueError(f"at most {RULES_MAX} rules")
    return tuple(item.strip() for item in value)


BOOLEAN: Final = Reader(_boolean, "boolean", "true or false")
ALIAS: Final = Reader(_alias, "string", "1 to 32 letters, digits, - and _")
USER: Final = Reader(_user, "string", "the name of a user, or empty")
ADDRESS: Final = Reader(_address, "string", "a numeric IPv4 or IPv6 address")
PATH: Final = Reader(_path, "string", "a path, counted from the file's folder")
FILE: Final = Reader(_file, "string", "a path, counted from the file's folder, or empty")
LOCAL: Final = Reader(_local, "string", 'a loopback address and port, or "off"')
LISTEN: Final = Reader(_listen, "string", 'a loopback address and port, or "off"')
ENDPOINT: Final = Reader(_endpoint, "string", 'a numeric address and port, or "off"')
COUNT: Final = Reader(_count, "integer or string", '1 to 4, or "auto"')
MEMORY: Final = Reader(_memory, "integer or string", '128 to 4194304, or "auto"')
SIGNERS: Final = Reader(_signers, "array of strings", "1 to 32 keys of 64 hexadecimal digits")
RULES: Final = Reader(_rules, "array of strings", f"at most {RULES_MAX} rules")


def show(value: Any) -> str:
    """A value as a file says it, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = f'"{value}"' if isinstance(value, str) else str(value)
    except ValueError:  # the interpreter writes no number of thousands of digits, alone or in a list
        text = "a value with a number of too many digits"
    return text if len(text) <= 80 else text[:77] + "..."


def suggest(word: str, known: tuple[str, ...]) -> str:
    """The end of a message about an unknown word: the known one that it resembles, if any."""
    import difflib  # an error's way only

    close = difflib.get_close_matches(word.lower(), known, 1, 0.6)
    return f', did you mean "{close[0]}"?' if close else ""
