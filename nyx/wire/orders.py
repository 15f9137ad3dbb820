"""Messages between the control process and the supervisor: JSON over their SOCK_SEQPACKET channel, one message a packet.

Roles: the control process orders, the supervisor answers with `nyx.wire.admin.Answer`, at once or when the order is carried out;
no answer comes once the supervisor has begun to replace itself. The supervisor speaks first only in notices, whose id is 0 and
which nobody answers. Either side may be a new life on the same channel: an answer to an id that nobody waits for is dropped.

    order     {"v": 1, "id": 7, "op": "restart", "args": {"worker": 0}}
    notice    {"v": 1, "id": 0, "op": "reload", "args": {}}

| order   | args                              | data                                                            |
| ------- | --------------------------------- | --------------------------------------------------------------- |
| restart | worker: int                       | {"pid": int}: of the worker's new life, once it runs             |
| upgrade | drain: float, seconds; or null    | {"drained": bool, "changes": [str]}: just before it begins       |
| stage_config  | settings, origins: objects by key; origin: str  | {"version": int, "new": bool}, or {"problems": [str]} |
| commit_config | version: int, as it was staged                  | {"version": int}: it is in force                      |
| reload_begins | none                                            | {}: the service manager hears of it                   |
| reload_ends   | refused: bool                                   | {}: so does it of the end                             |

| notice | args | meaning                                       |
| ------ | ---- | --------------------------------------------- |
| reload | none | SIGHUP came: read the configuration anew      |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from nyx.errors import RemoteProtocolError
from nyx.wire.envelope import VERSION, dump, load

NOTICE_ID: Final = 0


class Order(StrEnum):
    """What the supervisor can be told."""

    RESTART = "restart"
    UPGRADE = "upgrade"
    STAGE_CONFIG = "stage_config"
    COMMIT_CONFIG = "commit_config"
    RELOAD_BEGINS = "reload_begins"
    RELOAD_ENDS = "reload_ends"


class Notice(StrEnum):
    """What the supervisor tells unasked."""

    RELOAD = "reload"


@dataclass(frozen=True, slots=True)
class Message:
    """An order or a notice."""

    id: int
    op: Order | Notice
    args: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The message."""
        return dump({"v": VERSION, "id": self.id, "op": self.op.value, "args": dict(self.args)})


def notice(op: Notice) -> bytes:
    """The message that tells of something."""
    return Message(NOTICE_ID, op).encode()


def decode(message: bytes, kind: type[Order] | type[Notice]) -> Message:
    """The order, or the notice, in a message. Raises RemoteProtocolError."""
    value = load(message)
    args = value.get("args", {})
    try:
        op = kind(value.get("op", ""))
    except ValueError as error:
        raise RemoteProtocolError(f"unknown {kind.__name__.lower()} {value.get('op')!r}") from error
    if not isinstance(args, dict):
        raise RemoteProtocolError("the arguments must be an object")
    return Message(value["id"], op, args)
