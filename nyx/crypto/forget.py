"""Overwriting secrets that Python holds as `bytes`, as soon as their last use is over.

Place on a packet's way: before it, where keys are derived and put into the locked columns. The interpreter promises no such
thing: it frees memory without clearing it, and a copy that somebody made elsewhere stays. So this is for objects that the caller
made itself, that nobody else holds, and that nobody will read again. What libraries keep inside (ML-KEM keys) is not reached.
Source: CPython's PyBytesObject, whose data follow its head; docs/threat-model.md, "Client machine".
"""

import ctypes
from typing import Final

_HEAD: Final = bytes.__basicsize__ - 1  # of an object; one byte of the size is the zero behind the data
_LEAST: Final = 16  # shorter ones may be shared by the interpreter, and are no keys

_PROBE: Final = bytes(range(_LEAST))
REACHES: Final = ctypes.string_at(id(_PROBE) + _HEAD, _LEAST) == _PROBE  # other interpreters lay objects out differently


def forget(*secrets: bytes) -> None:
    """Make these objects zeros, whatever they were; shorter than 16 bytes they stay."""
    for secret in secrets:
        if REACHES and len(secret) >= _LEAST:
            ctypes.memset(id(secret) + _HEAD, 0, len(secret))
