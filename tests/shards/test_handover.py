"""Descriptors that go from one keeper to the next: each under its number, also in a table that is nearly full."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from shards import handover

ROOT = Path(__file__).resolve().parents[2]

PLACING = """
import json, os, resource, sys
from shards import handover

received, own, limit = json.loads(sys.argv[1])
received = {int(target): fd for target, fd in received.items()}
def name(text):
    return os.memfd_create(text)
made = {fd: name(f"for {target}") for target, fd in received.items()}
mine = name("own")
above = max([*received, *received.values(), own, mine, *made.values()]) + 1
made = {fd: os.dup2(at, above + n) for n, (fd, at) in enumerate(made.items())}
mine = os.dup2(mine, above + len(made))
os.closerange(3, above)
for fd, at in made.items():
    os.dup2(at, fd)
os.dup2(mine, own)
os.closerange(above, above + len(made) + 1)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
kept = handover.place(received, own)
found = {}
for entry in os.listdir("/proc/self/fd"):
    try:
        found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}").removeprefix("/memfd:").removesuffix(" (deleted)")
    except OSError:
        pass  # of the listing itself
print(json.dumps([kept, {fd: text for fd, text in found.items() if text.startswith("for ") or text == "own"}]))
"""


@pytest.mark.parametrize(
    ("received", "own"),
    [
        ({20: 30, 21: 31}, 5),
        ({20: 21, 21: 22, 22: 23}, 5),  # each where the next belongs
        ({20: 21, 21: 22, 22: 20, 40: 40}, 5),  # a ring
        ({20: 21, 21: 20, 22: 23, 23: 22}, 20 + 4),
        ({20: 30, 21: 31}, 20),  # our own end stands in the way
        ({20: 21, 21: 30}, 20),
        ({}, 5),
    ],
)
def test_each_gets_its_number_back(received: dict[int, int], own: int) -> None:
    check(received, own, 4096)


def test_a_table_that_is_nearly_full_goes_over_whole() -> None:
    limit = 128
    check({target: limit + 8 - target for target in range(10, limit - 1)}, 3, limit)


def check(received: dict[int, int], own: int, limit: int) -> None:
    command = [sys.executable, "-c", PLACING, json.dumps([received, own, limit])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    kept, found = json.loads(done.stdout)
    assert found == {str(kept): "own"} | {str(target): f"for {target}" for target in received}


def test_what_a_full_table_cannot_take_is_lost_alone() -> None:
    """Of more descriptors than a process may have, it gets the first ones, and knows which."""
    ours, theirs = handover.make_pair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    sent = sorted(os.memfd_create(f"number {index}") for index in range(40))
    inodes = {fd: os.fstat(fd).st_ino for fd in sent}
    with ours, theirs:
        handover.send(theirs, sent)
        room = os.dup(0)
        os.close(room)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(room, max(sent) + 1) + 10, hard))
        try:
            found = handover.receive(ours)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 0 < len(found) < len(sent)
    assert {fd: os.fstat(here).st_ino for fd, here in found.items()} == {fd: inodes[fd] for fd in found}
    for fd in (*sent, *found.values()):
        os.close(fd)
