"""Sealing of the control process: what it gives up once its modules are loaded, and what it tells about everybody's sealing.

It inherits from the supervisor that it has no capabilities and gains no privileges. Exec made it readable again, so it ends that
itself, refuses new code, and loads the filter of system calls that the supervisor made for it. `nyx.sealing` has the words.
Source: Linux prctl(2), seccomp(2).
"""

import base64
import ctypes
from pathlib import Path
from typing import Final

from nyx.sealing import Seal, from_status

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_SET_MDWE: Final = 65
_SECCOMP_MODE_FILTER: Final = 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def seal(program: str, *, inspect: bool) -> Seal:
    """Seal this process while it has one thread; what took effect. `program`: the filter in base64, empty where there is none."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    no_new_code = prctl(_PR_SET_MDWE, 1, 0, 0, 0) == 0
    if not inspect:
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    code = base64.b64decode(program)
    given = _Program(len(code) // 8, ctypes.cast(ctypes.c_char_p(code), ctypes.c_void_p))
    filtered = bool(code) and prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(given), 0, 0) == 0
    found = from_status(Path("/proc/self/status").read_text("utf-8", "replace"))
    if not filtered:
        found &= ~Seal.SYSTEM_CALLS
    if no_new_code:
        found |= Seal.NO_NEW_CODE
    if prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0:
        found |= Seal.NOT_READABLE
    return found
