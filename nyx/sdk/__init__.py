"""The SDK: streams through Nyx for Python programs, over memory shared with the node's daemon.

    async with Client() as client:
        stream = await client.open_stream("example.org", 80)

Unlike the rest of nyx/ this room reads sockets and clocks. It imports no kernel and nothing of the planes. See docs/sdk.md.
"""

from nyx.sdk.client import Client
from nyx.sdk.errors import (
    NotReadyError,
    RefusedError,
    ResetError,
    SdkError,
    StreamLostError,
    TimedOutError,
    UnreachableError,
)
from nyx.sdk.events import Event, Kind
from nyx.sdk.stream import Stream
from nyx.wire.sdk import Outcome

__all__ = [
    "Client",
    "Event",
    "Kind",
    "NotReadyError",
    "Outcome",
    "RefusedError",
    "ResetError",
    "SdkError",
    "Stream",
    "StreamLostError",
    "TimedOutError",
    "UnreachableError",
]
