"""The supervisor's end of its channel to the control process: orders in, answers and notices out; nothing here ever waits.

Place on a packet's way: none. An order is carried out by the function that the table names; it returns what to answer, or None
and answers later by `answer` or `refuse`. A full channel (the control process is dead or slow) loses the answer.
"""

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from nyx.errors import NyxError, RemoteProtocolError
from nyx.wire.admin import Answer
from nyx.wire.envelope import MESSAGE_MAX
from nyx.wire.orders import Message, Notice, Order, decode, notice

_A_TURN: Final = 16  # orders taken before the supervisor looks at its children again

Handler = Callable[[Message], Mapping[str, Any] | None]


class OrderRefusedError(NyxError):
    """The order cannot be carried out; the text says why and what to do."""


class Orders:
    """Reads and answers; `on_readable` is called when the channel has something."""

    def __init__(self, channel: socket.socket, table: Mapping[Order, Handler]) -> None:
        self._channel = channel
        self._table = table

    def fileno(self) -> int:
        """The channel's descriptor."""
        return self._channel.fileno()

    def on_readable(self) -> None:
        """Carry out what was ordered."""
        for _ in range(_A_TURN):
            try:
                text = self._channel.recv(MESSAGE_MAX + 1)
            except OSError:
                return
            if not text:
                return
            with contextlib.suppress(RemoteProtocolError):
                self._carry_out(decode(text, Order))

    def _carry_out(self, order: Message) -> None:
        handler = self._table.get(Order(order.op))
        try:
            if handler is None:
                raise OrderRefusedError(f"this supervisor knows no order {order.op}")
            data = handler(order)
        except NyxError as error:
            self.refuse(order.id, str(error))
            return
        if data is not None:
            self.answer(order.id, data)

    def answer(self, number: int, data: Mapping[str, Any]) -> None:
        """The order was carried out."""
        self._send(Answer(number, data).encode())

    def refuse(self, number: int, why: str) -> None:
        """The order was not carried out."""
        self._send(Answer(number, error=why).encode())

    def tell(self, what: Notice) -> None:
        """Tell the control process something unasked."""
        self._send(notice(what))

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(message)
