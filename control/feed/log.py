"""The operation `events` of the admin socket: what is kept of the events, and a wait for the next.

Args: `after`, the number of the last event that the caller has (all that are kept: 0), with the `life` that it counts in; `wait`,
seconds until an answer without events. A number of another life counts as none. The place is the caller's to keep.
"""

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final

from control.feed.watch import Told, Watch
from control.schemas import EventLog, NumberedEvent
from control.wire import Refusal

WAIT_MOST: Final = 30.0  # seconds; less than the silence after which a connection ends


async def answer(alias: str, watch: Watch, args: Mapping[str, Any]) -> EventLog:
    """The events after a number, at once when there are any. Raises Refusal."""
    after, life, wait = _read(args)
    if life is not None and life != watch.life:
        after = 0
    if after > watch.last:
        raise Refusal("bad_request", f"no event has the number {after} yet; the last is {watch.last}")
    if after == watch.last and wait:
        try:
            async with asyncio.timeout(wait):
                await watch.wait()
        except TimeoutError:
            pass
    events, complete = watch.after(after)
    known = life in (None, watch.life)
    return EventLog(alias, watch.life, watch.last, complete and known, [_numbered(told) for told in events])


def _read(args: Mapping[str, Any]) -> tuple[int, str | None, float]:
    after, life, wait = args.get("after", 0), args.get("life"), args.get("wait", 0)
    if type(after) is not int or after < 0:
        raise Refusal("bad_request", "after must be a number of an event, or 0")
    if not isinstance(life, str | None):
        raise Refusal("bad_request", "life must be a text or null")
    if type(wait) not in (int, float) or not math.isfinite(wait) or not 0 <= wait <= WAIT_MOST:
        raise Refusal("bad_request", f"wait must be seconds from 0 to {WAIT_MOST:g}")
    return after, life, float(wait)


def _numbered(told: Told) -> NumberedEvent:
    event = told.event
    return NumberedEvent(told.sequence, told.time, event.kind, event.worker, event.count, event.text)
