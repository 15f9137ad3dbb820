r"""SOCKS5 at the server's side, sans-IO (RFC 1928, RFC 1929): CONNECT to an IPv4 address, an IPv6 address or a name.

    METHODS --(02 offered)--> CREDENTIALS --> REQUEST --> a Request
        \-----(00 offered)--------------------/            or, from any state, a Refusal

Put in what the client sent with `receive`, send what `poll_transmit` gives, look at `result`. User and password are never
checked: they choose the circuits (isolation), so they are asked for wherever the client can give them.
"""

from enum import Enum
from typing import Final

from shards.edge.reasons import Reason
from shards.edge.request import FORM_IPV4, FORM_IPV6, Host, Refusal, Request, isolation_key, parse_host

VERSION: Final = 0x05
METHOD_NONE: Final = 0x00
METHOD_PASSWORD: Final = 0x02
METHOD_UNACCEPTABLE: Final = 0xFF
PASSWORD_VERSION: Final = 0x01
COMMAND_CONNECT: Final = 0x01
ATYP_IPV4: Final = 0x01
ATYP_NAME: Final = 0x03
ATYP_IPV6: Final = 0x04


def reply(code: int) -> bytes:
    """A reply with the bound address 0.0.0.0:0: an exit's own address is nobody's business."""
    return bytes((VERSION, code, 0, ATYP_IPV4, 0, 0, 0, 0, 0, 0))


class State(Enum):
    """What the next bytes are."""

    METHODS = "methods"
    CREDENTIALS = "credentials"
    REQUEST = "request"
    DONE = "done"


class SocksParser:
    """One client's greeting. At most 516 bytes are kept besides the last `receive`: each message is bounded by its form."""

    def __init__(self) -> None:
        self.state = State.METHODS
        self.result: Request | Refusal | None = None
        self._in = bytearray()
        self._out = bytearray()
        self._isolation = b""

    def receive(self, data: bytes) -> None:
        """Take what the client sent. Harmless once there is a result: nothing is read any more."""
        if self.state is State.DONE:
            return
        self._in += data
        while self._step():
            pass

    def poll_transmit(self) -> bytes:
        """What to send now; empty when there is nothing."""
        out = bytes(self._out)
        self._out.clear()
        return out

    # ---------------------------------------------------------------- one step a message; False: incomplete, or done

    def _step(self) -> bool:
        match self.state:
            case State.METHODS:
                return self._methods()
            case State.CREDENTIALS:
                return self._credentials()
            case State.REQUEST:
                return self._request()
            case State.DONE:
                return False

    def _methods(self) -> bool:
        if len(self._in) < 2 or len(self._in) < 2 + self._in[1]:
            return False
        offered = self._take(2 + self._in[1])
        if offered[0] != VERSION:
            return self._refuse(Reason.BAD_REQUEST, b"")
        if METHOD_PASSWORD in offered[2:]:
            return self._go(State.CREDENTIALS, bytes((VERSION, METHOD_PASSWORD)))
        if METHOD_NONE in offered[2:]:
            return self._go(State.REQUEST, bytes((VERSION, METHOD_NONE)))
        return self._refuse(Reason.NO_METHOD, bytes((VERSION, METHOD_UNACCEPTABLE)))

    def _credentials(self) -> bool:
        data = self._in
        if data[:1] not in (b"", bytes((PASSWORD_VERSION,))):
            return self._refuse(Reason.BAD_REQUEST, bytes((PASSWORD_VERSION, 1)))
        if len(data) < 2 or len(data) < 3 + data[1] or len(data) < 3 + data[1] + data[2 + data[1]]:
            return False
        users = data[1]
        message = self._take(3 + users + data[2 + users])
        self._isolation = isolation_key(message[2 : 2 + users], message[3 + users :])
        return self._go(State.REQUEST, bytes((PASSWORD_VERSION, 0)))

    def _request(self) -> bool:
        data = self._in
        if data[:1] not in (b"", bytes((VERSION,))):
            return self._refuse(Reason.BAD_REQUEST)
        if len(data) >= 2 and data[1] != COMMAND_CONNECT:
            return self._refuse(Reason.NOT_CONNECT)
        if len(data) < 5:
            return False
        sizes = {ATYP_IPV4: 4, ATYP_IPV6: 16, ATYP_NAME: 1 + data[4]}
        if data[3] not in sizes:
            return self._refuse(Reason.ADDRESS_FORM)
        if len(data) < 6 + sizes[data[3]]:
            return False
        message = self._take(6 + sizes[data[3]])
        host = _host(message[3], message[4:-2])
        port = int.from_bytes(message[-2:], "big")
        if host is None:
            return self._refuse(Reason.BAD_NAME)
        if port == 0:
            return self._refuse(Reason.BAD_REQUEST)
        self.state = State.DONE
        self.result = Request("socks5", host, port, self._isolation, bytes(self._in))
        self._in.clear()
        return True

    # ----------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        message = bytes(self._in[:size])
        del self._in[:size]
        return message

    def _go(self, state: State, answer: bytes) -> bool:
        self.state = state
        self._out += answer
        return True

    def _refuse(self, reason: Reason, answer: bytes | None = None) -> bool:
        self.state = State.DONE
        self.result = Refusal(reason, reply(reason.facts.reply) if answer is None else answer)
        self._in.clear()
        return True


def _host(form: int, address: bytes) -> Host | None:
    if form == ATYP_NAME:
        return parse_host(address[1:])
    return Host(FORM_IPV4 if form == ATYP_IPV4 else FORM_IPV6, address)
