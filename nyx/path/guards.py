"""The first hops that a client keeps: few and for long, whatever fails.

A client that takes a new first hop each time it meets trouble meets, sooner or later, one that belongs to whoever makes the
trouble. So the list changes only when a guard has left the network, or when its time is over; failures never change it.
The file form is text: a line a guard, "node-id-in-hex chosen-at-Unix-seconds".
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nyx.errors import ConfigError
from nyx.files import read_private, write_whole
from nyx.path.directory import Node, Snapshot
from nyx.path.select import Entropy, NoPathError, draw, shares, usable

LIFETIME: Final = 120 * 86400  # seconds; Tor keeps a primary guard for about as long
CLOCK_BACK: Final = 86400  # a guard from the future: the clock was wrong then or is now, which is no reason for a new one
_FILE_MOST: Final = 4096


@dataclass(frozen=True, slots=True)
class Guard:
    """A kept first hop: its node id, and when it was chosen (Unix seconds)."""

    id: bytes
    since: int


def current_guard(
    guards: Sequence[Guard],
    snapshot: Snapshot,
    wall: int,
    exclude: Collection[bytes] = frozenset(),
    *,
    allow_loopback: bool = False,
) -> Guard | None:
    """The guard to use: the first that is still in the network and whose time is not over."""
    known = {node.id for node in usable(snapshot, exclude, allow_loopback=allow_loopback)}
    return next((guard for guard in guards if guard.id in known and -CLOCK_BACK <= wall - guard.since < LIFETIME), None)


def choose_guard(
    snapshot: Snapshot, entropy: Entropy, wall: int, exclude: Collection[bytes] = frozenset(), *, allow_loopback: bool = False
) -> Guard:
    """A new guard, drawn by weight from the nodes that are no exits, or from all where every node is one. Raises NoPathError."""
    nodes = usable(snapshot, exclude, allow_loopback=allow_loopback)
    candidates: list[Node] = [node for node in nodes if not node.exit] or nodes
    if not candidates:
        raise NoPathError("the directory has no usable relay")
    return Guard(candidates[draw(candidates, shares(candidates), entropy)].id, wall)


def keep_guard(
    file: Path,
    snapshot: Snapshot,
    entropy: Entropy,
    wall: int,
    exclude: Collection[bytes] = frozenset(),
    *,
    allow_loopback: bool = False,
) -> Guard:
    """The guard in the file, or a new one put there first of all; never one of `exclude` (a relay's own id).

    Raises ConfigError, NoPathError, OSError.
    """
    guards = load_guards(file)
    guard = current_guard(guards, snapshot, wall, exclude, allow_loopback=allow_loopback)
    if guard is None:
        guard = choose_guard(snapshot, entropy, wall, exclude, allow_loopback=allow_loopback)
        save_guards(file, [guard])
    return guard


def load_guards(file: Path) -> list[Guard]:
    """The guards in the file; none when there is no file. Raises ConfigError."""
    try:
        lines = read_private(file, _FILE_MOST).decode("ascii").splitlines()
        pairs = [line.split() for line in lines]
        found = [Guard(bytes.fromhex(name), int(since)) for name, since in pairs]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ConfigError([f"{file}: is damaged; remove it to choose a new guard: {error}"]) from error
    if any(len(guard.id) != 32 for guard in found):
        raise ConfigError([f"{file}: is damaged; remove it to choose a new guard: a node id has 32 bytes"])
    return found


def save_guards(file: Path, guards: Sequence[Guard]) -> None:
    """Write the guards. Raises OSError."""
    write_whole(file, "".join(f"{guard.id.hex()} {guard.since}\n" for guard in guards).encode())
