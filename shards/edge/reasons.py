"""Why a request or a stream failed: one table for SOCKS replies, HTTP answers, stream codes and `nyxctl streams`.

The wire carries only the SOCKS reply code (OPEN_RESULT) and the stream code (RESET_STREAM, STOP_SENDING): the client's
sentence is made from those. Source: RFC 1928 6, RFC 9209 2.3 (Proxy-Status), docs/protocol.md, "Streams".
"""

from enum import IntEnum
from typing import Final, NamedTuple

CODE_NO_ERROR: Final = 0x000
CODE_CANCELLED: Final = 0x100
CODE_TARGET_RESET: Final = 0x101
CODE_TIMEOUT: Final = 0x102
CODE_LIMIT: Final = 0x103
CODE_INTERNAL: Final = 0x104


class Reason(IntEnum):
    """Why. NONE is no failure; the numbers are this node's own and may change."""

    NONE = 0
    BAD_REQUEST = 1
    NOT_CONNECT = 2
    ADDRESS_FORM = 3
    BAD_NAME = 4
    NO_METHOD = 5
    SLOW_CLIENT = 6
    NO_CIRCUIT = 7
    CIRCUIT_LOST = 8
    BUSY = 9
    POLICY = 10
    NETWORK_UNREACHABLE = 11
    HOST_UNREACHABLE = 12
    NOT_RESOLVED = 13
    CONNECTION_REFUSED = 14
    TIMEOUT = 15
    EXIT_FAILED = 16
    TARGET_RESET = 17
    CANCELLED = 18
    RESTARTED = 19
    SHUTDOWN = 20
    STOPPED = 21
    TOO_LARGE = 22
    NO_DESCRIPTOR = 23
    MEMORY = 24

    @property
    def facts(self) -> "Facts":
        """What each kind of peer is told."""
        return _FACTS[self]

    @property
    def text(self) -> str:
        """The sentence for people."""
        return _FACTS[self].text


class Facts(NamedTuple):
    """The faces of a reason: sentence, SOCKS5 reply, HTTP status, Proxy-Status error, stream code."""

    text: str
    reply: int
    status: int
    proxy_error: str
    code: int


_FACTS: Final = {
    Reason.NONE: Facts("", 0x00, 200, "", CODE_NO_ERROR),
    Reason.BAD_REQUEST: Facts("the request is not SOCKS5 or HTTP CONNECT", 0x01, 400, "http_request_error", CODE_CANCELLED),
    Reason.NOT_CONNECT: Facts("only CONNECT is carried", 0x07, 405, "http_request_denied", CODE_CANCELLED),
    Reason.ADDRESS_FORM: Facts("unknown address form", 0x08, 400, "http_request_error", CODE_CANCELLED),
    Reason.BAD_NAME: Facts("the target is no valid name or address", 0x04, 400, "http_request_error", CODE_CANCELLED),
    Reason.NO_METHOD: Facts("no common authentication method", 0x01, 407, "http_request_denied", CODE_CANCELLED),
    Reason.SLOW_CLIENT: Facts("the request did not arrive in time", 0x01, 408, "http_request_error", CODE_TIMEOUT),
    Reason.NO_CIRCUIT: Facts("no circuit became ready in time", 0x01, 503, "proxy_internal_error", CODE_TIMEOUT),
    Reason.CIRCUIT_LOST: Facts("the circuit closed", 0x01, 502, "connection_terminated", CODE_CANCELLED),
    Reason.BUSY: Facts("too many streams are being opened", 0x01, 503, "connection_limit_reached", CODE_LIMIT),
    Reason.POLICY: Facts("the exit's policy refuses the target", 0x02, 403, "destination_ip_prohibited", CODE_CANCELLED),
    Reason.NETWORK_UNREACHABLE: Facts(
        "the exit has no route to the network", 0x03, 502, "destination_ip_unroutable", CODE_CANCELLED
    ),
    Reason.HOST_UNREACHABLE: Facts(
        "the host cannot be reached or resolved", 0x04, 502, "destination_unavailable", CODE_CANCELLED
    ),
    Reason.NOT_RESOLVED: Facts("the name does not resolve", 0x04, 502, "dns_error", CODE_CANCELLED),
    Reason.CONNECTION_REFUSED: Facts("the target refused the connection", 0x05, 502, "connection_refused", CODE_CANCELLED),
    Reason.TIMEOUT: Facts("the target did not answer in time", 0x06, 504, "connection_timeout", CODE_TIMEOUT),
    Reason.EXIT_FAILED: Facts("the exit could not open the connection", 0x01, 502, "proxy_internal_error", CODE_CANCELLED),
    Reason.TARGET_RESET: Facts("the other side reset the stream", 0x01, 502, "connection_terminated", CODE_TARGET_RESET),
    Reason.CANCELLED: Facts("the application went away", 0x01, 502, "proxy_internal_error", CODE_CANCELLED),
    Reason.RESTARTED: Facts(
        "a worker was restarted while the stream was being opened", 0x01, 502, "proxy_internal_error", CODE_INTERNAL
    ),
    Reason.SHUTDOWN: Facts("the node is shutting down", 0x01, 503, "proxy_internal_error", CODE_CANCELLED),
    Reason.STOPPED: Facts("the other side no longer reads", 0x01, 502, "connection_terminated", CODE_CANCELLED),
    Reason.NO_DESCRIPTOR: Facts("the node has no descriptors left", 0x01, 503, "connection_limit_reached", CODE_LIMIT),
    Reason.MEMORY: Facts(
        "the node's memory was used up, and this stream's bytes waited longest", 0x01, 503, "connection_limit_reached", CODE_LIMIT
    ),
    Reason.TOO_LARGE: Facts("the request's header is longer than 8 KiB", 0x01, 431, "http_request_error", CODE_LIMIT),
}

_BY_REPLY: Final = {
    0x00: Reason.NONE,
    0x02: Reason.POLICY,
    0x03: Reason.NETWORK_UNREACHABLE,
    0x04: Reason.HOST_UNREACHABLE,
    0x05: Reason.CONNECTION_REFUSED,
    0x06: Reason.TIMEOUT,
    0x07: Reason.NOT_CONNECT,
    0x08: Reason.ADDRESS_FORM,
}


def reason_of_reply(reply: int) -> Reason:
    """What an OPEN_RESULT's reply code means to the client."""
    return _BY_REPLY.get(reply, Reason.EXIT_FAILED)
