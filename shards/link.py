"""One link as one worker sees it: its state, its session rows, its control channels.

Place on a packet's way: none; `shards/links.py` moves it through its states.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from nyx.link.channel import Channel
from nyx.link.handshake import Initiator
from nyx.link.upgrade import LinkUpgrade

WINDOW_UNKNOWN: Final = 192  # packets, until the peer has said its own


class LinkState(Enum):
    """Where a link is in its life; see the table in shards/links.py."""

    HANDSHAKE = "handshake"
    KEYING = "keying"
    UP = "up"
    GONE = "gone"


@dataclass(eq=False, slots=True)
class Link:
    """One link as one worker sees it: only this worker's sessions have rows and channels here."""

    row: int  # what its session rows carry in "link"
    tag: bytes  # names the link to the other workers
    node: bytes | None  # the peer's node id; None for a client
    address: bytes
    initiator: bool
    created: int
    state: LinkState
    suite: int = 0
    window: int = WINDOW_UNKNOWN
    rtt: int = 0
    sending: int = 0  # generation under which we send
    sessions: dict[tuple[int, int], int] = field(default_factory=dict)  # (generation, session) -> row
    channels: dict[tuple[int, int], Channel] = field(default_factory=dict)  # (generation, session) -> its control channel
    upgrade: LinkUpgrade | None = None
    attempt: Initiator | None = None
    cookie: bytes = b""  # that the responder asked for, for the tries that follow
    tries: int = 0
    asked: int = 0  # cookies that the responder has sent
    due: int = 0  # of the next try, or of the end of KEYING
    retire: int = 0  # when generation 0 goes; 0: it has gone or is needed
    circuits: int = 0


WhenUp = Callable[[Link | None], None]  # told once the link carries circuits, or that it cannot
