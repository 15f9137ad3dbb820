"""Sealing: what each process of a node gives up about itself before it works, in words that all processes share.

Place: the supervisor, the keepers, the workers and the control process seal themselves (`shards/seal.py`, `control/seal.py`) and
say in one word of the process table what took effect, as the kernel tells it; `nyxctl status` names what did not.
Source: Linux prctl(2), seccomp(2), capabilities(7), mlock2(2).
"""

from collections.abc import Mapping
from enum import IntFlag
from typing import Final


class Seal(IntFlag):
    """What took effect in one process; 0: it has not said anything yet. Only appended."""

    REPORTED = 1
    NO_NEW_PRIVILEGES = 2  # no program it might execute gains rights
    NO_CAPABILITIES = 4  # none of root's rights, whatever its user is
    SYSTEM_CALLS = 8  # a filter over system calls
    NO_NEW_CODE = 16  # no memory becomes executable
    NOT_READABLE = 32  # not dumpable: neither core files nor other programs of the same user read its memory
    KEYS_LOCKED = 64  # the columns with keys do not reach swap


UNTOLD: Final = Seal(0)
_PARENT: Final = Seal.REPORTED | Seal.NO_NEW_PRIVILEGES | Seal.NO_CAPABILITIES | Seal.SYSTEM_CALLS | Seal.NOT_READABLE
_CHILD: Final = _PARENT | Seal.NO_NEW_CODE

# The supervisor executes other programs, which would inherit the refusal of new code; keys are used by workers alone.
EXPECTED: Final[Mapping[str, Seal]] = {
    "supervisor": _PARENT,
    "keeper": _CHILD,
    "worker": _CHILD | Seal.KEYS_LOCKED,
    "control": _CHILD,
}

ABSENT: Final[Mapping[Seal, str]] = {
    Seal.NO_NEW_PRIVILEGES: "could gain privileges: the kernel refused no_new_privs",
    Seal.NO_CAPABILITIES: "has capabilities that it does not need",
    Seal.SYSTEM_CALLS: "has no system call filter: it needs libseccomp.so.2 and a kernel with seccomp",
    Seal.NO_NEW_CODE: "could make memory executable: this kernel has no PR_SET_MDWE (Linux 6.3)",
    Seal.NOT_READABLE: "can be read by other programs of its user (node.inspect)",
    Seal.KEYS_LOCKED: "has keys that may reach swap (node.lock_memory)",
}


def from_status(text: str) -> Seal:
    """What /proc/PID/status tells. A filter may be a container's: whoever loaded one knows whether it is its own."""
    values = dict(line.partition(":")[::2] for line in text.splitlines())
    found = Seal.REPORTED
    if values.get("NoNewPrivs", "").strip() == "1":
        found |= Seal.NO_NEW_PRIVILEGES
    if not any(int(values.get(name, "1"), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")):
        found |= Seal.NO_CAPABILITIES
    if values.get("Seccomp", "").strip() == "2":
        found |= Seal.SYSTEM_CALLS
    return found


def names(seal: Seal) -> list[str]:
    """What took effect, in words for documents."""
    return [str(part.name).lower() for part in Seal if part in seal and part != Seal.REPORTED]


def warnings(found: Mapping[str, Seal]) -> list[str]:
    """A line for each thing that should have taken effect and did not; `found`: by process, "worker 0" for instance."""
    lines = []
    for part, text in ABSENT.items():
        lacking = [name for name, seal in found.items() if seal and part in EXPECTED[name.partition(" ")[0]] & ~seal]
        if lacking:
            lines.append(f"{', '.join(lacking)}: {text}")
    return lines
