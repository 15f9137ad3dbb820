"""What the edge asks of the rooms beside it, as types: streams, the worker's epoll, whoever hands out circuits."""

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.edge.request import Refused

Words = NDArray[np.int64]

NEVER: Final = 1 << 62  # ns; a timeout that is none
SECOND: Final = 1_000_000_000
KIND_TCP: Final = 1  # kind of an OPEN

# (isolation key, host, port) -> row of a connection, None while none is ready, or why there will be none.
OpenCircuit = Callable[[bytes, str, int], int | Refused | None]


class Streams(Protocol):
    """The part of nyx.stream's class that the edge calls. Every call is harmless in any state of the row.

    That tx_head and rx_tail moved, it sees by itself when it transmits.
    """

    def open_stream(self, connection: int, kind: int, host: str | bytes, port: int, now: int) -> int:
        """Row of a new stream. Raises LocalProtocolError while the connection has no room or closes."""

    def opened(self, stream: int, /) -> tuple[int, int, bytes, int]:
        """Kind, address form, address and port of an OPEN that arrived."""

    def answer_open(self, stream: int, code: int) -> Any:
        """Send the OPEN_RESULT, a SOCKS5 reply code; any but 0 ends the stream."""

    def finish(self, stream: int) -> Any:
        """The application closed its side: everything in the ring, then a FIN."""

    def reset(self, stream: int, code: int) -> Any:
        """Abandon what was not sent and tell the peer."""

    def stop(self, stream: int, code: int) -> Any:
        """Ask the peer to send no more."""

    def release(self, stream: int) -> Any:
        """The application is done with the row."""


class Epoll(Protocol):
    """select.epoll, or what the worker has in its place. The data of an event is the descriptor."""

    def register(self, fd: int, eventmask: int, /) -> Any:
        """Watch a descriptor."""

    def unregister(self, fd: int, /) -> Any:
        """Stop watching it."""
