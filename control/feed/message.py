"""What the feed publishes: topics with versions, and one JSON object a message.

    frame 0   topic: nyx.status/1, nyx.stats/1, nyx.events/1
    frame 1   {"topic": ..., "node": alias, "life": id of this publisher's life, "seq": ..., "time": Unix seconds, "data": {...}}

`data` is a document of control/schemas.py. `seq` counts a topic's messages from 1 within a life: a gap is a loss, a number seen
before is a repeat for the sake of somebody who came later. Within a version fields are only added.
"""

import json
from collections.abc import Callable
from typing import Final

from control.schemas import Document, Event, Stats, Status

MESSAGE_MAX: Final = 32768  # bytes; what is longer is left out and told as an event
TOPICS: Final[dict[str, type[Document]]] = {f"{cls.SCHEMA}/{cls.VERSION}": cls for cls in (Status, Stats, Event)}


def topic_of(document: Document) -> str:
    """The topic under which a document is published."""
    return f"{document.SCHEMA}/{document.VERSION}"


class Numbering:
    """Makes messages of one publisher's life, and keeps the last one of each topic."""

    def __init__(self, node: str, life: str, clock: Callable[[], float]) -> None:
        self._node = node
        self._life = life
        self._clock = clock
        self._seq = dict.fromkeys(TOPICS, 0)
        self.last: dict[str, bytes] = {}

    def make(self, document: Document, number: int | None = None, at: float | None = None) -> tuple[str, bytes]:
        """Topic and body of the next message, or of the one of this number and time. Raises ValueError when it is too long."""
        topic = topic_of(document)
        number = number or self._seq[topic] + 1
        at = self._clock() if at is None else at
        head = {"topic": topic, "node": self._node, "life": self._life, "seq": number, "time": at}
        body = json.dumps(head | {"data": document.to_json()}, separators=(",", ":")).encode()
        if len(body) > MESSAGE_MAX:
            raise ValueError(f"{topic} has {len(body)} bytes")
        self._seq[topic] = number
        self.last[topic] = body
        return topic, body
