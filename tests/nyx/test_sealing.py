"""What is read out of /proc, and what is said about a process that is not sealed."""

import pytest

from nyx import sealing
from nyx.sealing import EXPECTED, Seal

SEALED = "CapInh:\t0000000000000000\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t1\nCapAmb:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n"


@pytest.mark.parametrize(
    ("line", "instead", "lost"),
    [
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", Seal.NO_NEW_PRIVILEGES),
        ("NoNewPrivs:\t1\n", "", Seal.NO_NEW_PRIVILEGES),
        ("Seccomp:\t2", "Seccomp:\t0", Seal.SYSTEM_CALLS),
        ("CapEff:\t0", "CapEff:\t0000000000000400", Seal.NO_CAPABILITIES),
        ("CapPrm:\t0", "CapPrm:\t1", Seal.NO_CAPABILITIES),
        ("CapAmb:\t0\n", "", Seal.NO_CAPABILITIES),
    ],
)
def test_what_the_kernel_tells(line: str, instead: str, lost: Seal) -> None:
    whole = Seal.REPORTED | Seal.NO_NEW_PRIVILEGES | Seal.NO_CAPABILITIES | Seal.SYSTEM_CALLS
    assert sealing.from_status(SEALED) == whole
    assert sealing.from_status(SEALED.replace(line, instead)) == whole & ~lost


def test_only_what_is_missing_and_expected_is_warned_of() -> None:
    found = {"supervisor": EXPECTED["supervisor"], "worker 0": EXPECTED["worker"], "keeper 0": EXPECTED["keeper"]}
    assert sealing.warnings(found) == []
    assert sealing.warnings(dict.fromkeys(found, Seal(0))) == []  # they have not told yet
    found["worker 0"] &= ~Seal.SYSTEM_CALLS & ~Seal.KEYS_LOCKED
    found["keeper 0"] &= ~Seal.SYSTEM_CALLS
    lines = sealing.warnings(found)
    assert len(lines) == 2
    assert lines[0].startswith("worker 0, keeper 0: has no system call filter")
    assert lines[1] == "worker 0: has keys that may reach swap (node.lock_memory)"


def test_names_are_those_of_the_documents() -> None:
    assert sealing.names(EXPECTED["supervisor"]) == ["no_new_privileges", "no_capabilities", "system_calls", "not_readable"]
