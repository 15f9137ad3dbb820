"""Taking out of a text for the log what must not stand in one: addresses, host names, node ids, keys, bytes.

Place: the last step before a line is written, by every process. It is the second fence: nothing that names a peer or a target is
to be put into a message in the first place, but an exception of a library, or a mistake, may carry one.
What says nothing about anybody stays readable: loopback and unspecified addresses, names of settings, files with known endings.
A host name without a dot cannot be told from a word.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

ADDRESS: Final = "[address]"
NAME: Final = "[name]"
HEX: Final = "[hex]"
KEY: Final = "[key]"
BYTES: Final = "[bytes]"

_BYTES: Final = re.compile(r"""\bb(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""")
_HEX: Final = re.compile(r"(?<![0-9A-Za-z])(?:0x)?(?:[0-9a-fA-F]{2}[:-]?){8,}(?![0-9A-Za-z])")
_KEY: Final = re.compile(r"(?<![0-9A-Za-z+_=-])[0-9A-Za-z+_-]{40,}={0,2}")
_V6: Final = re.compile(
    r"(?<![0-9A-Za-z:.])\[?([0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?:\.[0-9]{1,3}){0,3})(?:%\w+)?\]?(?::[0-9]{1,5}\b)?"
)
_V4: Final = re.compile(r"(?<![0-9.])((?:[0-9]{1,3}\.){3}[0-9]{1,3})(?::[0-9]{1,5})?(?![0-9.]*[0-9])")
_LABEL: Final = r"[0-9A-Za-z_](?:[0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?"
_NAME: Final = re.compile(
    rf"(?<![0-9A-Za-z_.-])(?:{_LABEL}\.)+(?:[A-Za-z]{{2,63}}|xn--[0-9A-Za-z-]+)\.?(?::[0-9]{{1,5}})?(?![0-9A-Za-z_-])"
)
_FILES: Final = (".toml", ".sock", ".json", ".new", ".toml.new")  # none of these is a top-level domain
_KEPT: Final[set[str]] = set()  # names of settings, which look like host names


def keep(names: Iterable[str]) -> None:
    """Leave these names readable from now on: they are the settings', and no hosts'."""
    _KEPT.update(names)


def scrub(text: str) -> str:
    """The text with placeholders for what it must not tell."""
    text = _BYTES.sub(BYTES, text)
    text = _HEX.sub(HEX, text)
    text = _KEY.sub(_key, text)
    text = _V6.sub(_address, text)
    text = _V4.sub(_address, text)
    return _NAME.sub(_name, text)


def _key(match: re.Match[str]) -> str:
    """Base64, not a long word of ours: it mixes digits and both cases."""
    found = match[0]
    return KEY if found.lower() != found and found.upper() != found and any(c.isdigit() for c in found) else found


def _address(match: re.Match[str]) -> str:
    for end in ("", ":"):  # a sentence may go on with a colon after it
        try:
            found = ipaddress.ip_address(match[1].removesuffix(end) if end else match[1])
        except ValueError:
            continue
        return match[0] if found.is_loopback or found.is_unspecified else ADDRESS + end
    return match[0]  # a time, a version, a slice


def _name(match: re.Match[str]) -> str:
    name = match[0].partition(":")[0].rstrip(".")
    if name.endswith(_FILES) or (name.endswith(".py") and match.string[match.start() - 1 : match.start()] == "/"):
        return match[0]  # a file, of ours or in a traceback
    return match[0] if name in _KEPT else NAME
