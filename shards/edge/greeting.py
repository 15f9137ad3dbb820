"""The first bytes of a client on the proxy's one port: SOCKS5 or HTTP CONNECT, told apart by the first of them."""

from typing import Final, Protocol

from shards.edge import http, socks
from shards.edge.reasons import Reason
from shards.edge.request import Refusal, Request

_SOCKS4: Final = 0x04
_SOCKS4_REJECTED: Final = bytes((0, 0x5B, 0, 0, 0, 0, 0, 0))


class _Parser(Protocol):
    @property
    def result(self) -> Request | Refusal | None: ...
    def receive(self, data: bytes) -> None: ...
    def poll_transmit(self) -> bytes: ...


class Greeting:
    """One client until its request is complete. Same verbs as the parsers behind it."""

    def __init__(self) -> None:
        self._parser: _Parser | None = None
        self._refusal: Refusal | None = None

    @property
    def result(self) -> Request | Refusal | None:
        """The request, or why there will be none; None as long as bytes are missing."""
        return self._refusal or (self._parser.result if self._parser else None)

    def receive(self, data: bytes) -> None:
        """Take what the client sent."""
        if not data or self._refusal:
            return
        if self._parser is None:
            if data[0] == socks.VERSION:
                self._parser = socks.SocksParser()
            elif 0x41 <= data[0] <= 0x5A:  # a method's capital letter
                self._parser = http.HttpParser()
            else:
                self._refusal = Refusal(Reason.BAD_REQUEST, _SOCKS4_REJECTED if data[0] == _SOCKS4 else b"")
                return
        self._parser.receive(data)

    def poll_transmit(self) -> bytes:
        """What to send now; empty when there is nothing."""
        return self._parser.poll_transmit() if self._parser else b""


def answer(protocol: str, reason: Reason) -> bytes:
    """The proxy's answer to a request, in the language that it came in."""
    if protocol == "http":
        return http.established() if reason is Reason.NONE else http.refusal(reason)
    return socks.reply(reason.facts.reply)
