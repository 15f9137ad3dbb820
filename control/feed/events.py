"""Events, derived from one look at the node after another: what is different is what happened.

ready, not_ready       `text`: the stage
worker_restarted       `worker`, `count`: how often since the look before
control_restarted      `count`: how often since the node's start; said once, by the new control process
reloaded               `count`: the version of the configuration in force
upgraded               `count`: how often the node replaced its code since the look before
links_opened, links_closed, circuits_closed     `count`
warning_set, warning_cleared    `text`, with addresses and names taken out
too_long               `text`: a topic whose document found no room in a message
"""

from collections.abc import Iterator
from dataclasses import dataclass

from control.pages import Pages
from control.schemas import Event, Status
from nyx.scrub import scrub

_COUNTED = ("links_opened", "links_closed", "circuits_closed")


@dataclass(frozen=True, slots=True)
class Look:
    """What events are derived from."""

    ready: bool
    stage: str
    warnings: frozenset[str]
    restarts: tuple[int, ...]
    control_restarts: int
    counters: tuple[int, ...]
    version: int | None = None  # of the configuration
    upgrades: int = 0


def look(status: Status, pages: Pages) -> Look:
    """The node at this moment."""
    table, rows = pages.processes(), pages.counters()
    return Look(
        status.ready,
        status.stage,
        frozenset(scrub(text) for text in status.warnings),
        tuple(worker.restarts for worker in table.workers) if table else (),
        table.control_restarts if table else 0,
        tuple(sum(row[name] for row in rows) for name in _COUNTED),
        status.config,
        status.upgrades,
    )


def between(before: Look | None, now: Look) -> Iterator[Event]:
    """What happened; without a look before, what a watcher who begins must know."""
    if before is None or before.ready != now.ready:
        yield Event("ready" if now.ready else "not_ready", text=now.stage)
    if before is None and now.control_restarts:
        yield Event("control_restarted", count=now.control_restarts)
    if before is not None:
        for worker, (old, new) in enumerate(zip(before.restarts, now.restarts, strict=False)):
            if new > old:
                yield Event("worker_restarted", worker=worker, count=new - old)
        if before.version != now.version:
            yield Event("reloaded", count=now.version)
        if now.upgrades > before.upgrades:
            yield Event("upgraded", count=now.upgrades - before.upgrades)
        for name, old, new in zip(_COUNTED, before.counters, now.counters, strict=True):
            if new > old:
                yield Event(name, count=new - old)
    old_warnings = before.warnings if before else frozenset()
    for text in sorted(now.warnings - old_warnings):
        yield Event("warning_set", text=text)
    for text in sorted(old_warnings - now.warnings):
        yield Event("warning_cleared", text=text)
