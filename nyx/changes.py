"""What is different between two configurations, and what of it a running node takes over.

Settings are in the form in which a file says them (`nyx.config.settings`). A key is live or waits for a restart; where the live
changes cannot go without the waiting ones (the two halves of a rule between keys), all wait. Source: docs/configuration.md.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nyx.config import KEYS, from_settings
from nyx.errors import ConfigError

DIRECTORY: Final = "directory snapshot"  # no key: what the directory's file holds, as its sequence
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One key with its old and new value; `live`: a running node takes it over."""

    key: str
    old: Any
    new: Any
    live: bool

    def text(self) -> str:
        """The change for people: old and new as TOML writes them."""
        return f"{_short(self.old)} -> {_short(self.new)}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload does: the settings afterwards, what changes in them, and what is wanted but waits for a restart."""

    settings: dict[str, Any]
    applied: list[Change]
    waiting: list[Change]


def compare(old: Settings, new: Settings) -> list[Change]:
    """Every key whose value differs, in the order of the table of keys."""
    return [
        Change(key.name, old.get(key.name), new.get(key.name), bool(key.live))
        for key in KEYS
        if old.get(key.name) != new.get(key.name)
    ]


def plan(running: Settings, wanted: Settings) -> Plan:
    """How a node that runs with `running` comes as near to `wanted` as it can without a restart."""
    changes = compare(running, wanted)
    applied = [change for change in changes if change.live]
    waiting = [change for change in changes if not change.live]
    mixed = {**running, **{change.key: change.new for change in applied}}
    if applied and waiting:
        try:
            from_settings(mixed)
        except ConfigError:
            return Plan(dict(running), [], [Change(c.key, c.old, c.new, live=False) for c in changes])
    return Plan(mixed, applied, waiting)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
