"""HTTP CONNECT at the proxy's side, sans-IO (RFC 9110 9.3.6, RFC 9112): one request, at most 8 KiB of header, no body.

`receive` what the client sent, look at `result`; there is nothing to send before the answer (`established`, `refusal`).
Proxy-Authorization is never checked: like SOCKS credentials it chooses the circuits. The same user and password isolate the
same in both languages.
"""

import base64
import binascii
import re
from http import HTTPStatus
from typing import Final

from shards.edge.reasons import Reason
from shards.edge.request import Refusal, Request, isolation_key, parse_host

HEADER_MAX: Final = 8192  # bytes of request line and fields, as in most servers
FIELDS_MAX: Final = 100

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD: Final = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")
_AUTHORITY: Final = re.compile(rb"(\[[^\]]*\]|[^\[\]:]+):([0-9]{1,5})")
_METHOD_START: Final = re.compile(rb"[A-Z]{1,32}(?: [\x21-\x7e]*(?: [\x20-\x7e]*)?)?\r?")


class _RefusedError(Exception):
    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


def established() -> bytes:
    """The answer after which the connection is the application's."""
    return b"HTTP/1.1 200 Connection established\r\n\r\n"


def refusal(reason: Reason, detail: str = "") -> bytes:
    """A whole answer with the reason in words."""
    facts = reason.facts
    body = f"Nyx: {detail or facts.text}.\n".encode()
    lines = [
        f"HTTP/1.1 {facts.status} {HTTPStatus(facts.status).phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        f"Proxy-Status: nyx; error={facts.proxy_error}",
        "Connection: close",
    ]
    if facts.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: CONNECT")
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpParser:
    """One client's request. Keeps at most HEADER_MAX bytes besides the last `receive`."""

    def __init__(self) -> None:
        self.result: Request | Refusal | None = None
        self._in = bytearray()
        self._searched = 0  # bytes in which the end of the header was looked for

    def receive(self, data: bytes) -> None:
        """Take what the client sent. Harmless once there is a result: nothing is read any more."""
        if self.result is not None:
            return
        self._in += data
        try:
            self.result = self._advance()
        except _RefusedError as error:
            self.result = Refusal(error.reason, refusal(error.reason, str(error)))
        if self.result is not None:
            self._in.clear()

    def poll_transmit(self) -> bytes:
        """Nothing: HTTP answers once."""
        return b""

    def _advance(self) -> Request | None:
        end = self._in.find(b"\r\n\r\n", max(0, self._searched - 3))
        if end < 0 and len(self._in) <= HEADER_MAX:
            if b"\n" not in self._in[: self._searched]:
                self._check_start()
            self._searched = len(self._in)
            return None
        if not 0 <= end <= HEADER_MAX - 4:
            raise _RefusedError(Reason.TOO_LARGE)
        lines = bytes(self._in[:end]).split(b"\r\n")
        if len(lines) > FIELDS_MAX + 1:
            raise _RefusedError(Reason.TOO_LARGE, f"more than {FIELDS_MAX} header fields")
        host_text, port_text = _target(lines[0])
        isolation = _isolation(_fields(lines[1:]))
        host, port = parse_host(host_text), int(port_text)
        if host is None or not 1 <= port <= 65535:
            raise _RefusedError(Reason.BAD_NAME)
        return Request("http", host, port, isolation, bytes(self._in[end + 4 :]))

    def _check_start(self) -> None:
        """Refuse early what cannot become a request line, so that garbage is not waited for."""
        line, newline, _ = bytes(self._in[:HEADER_MAX]).partition(b"\n")
        if not _METHOD_START.fullmatch(line):
            raise _RefusedError(Reason.BAD_REQUEST)
        if newline:
            _target(line.removesuffix(b"\r"))


def _target(line: bytes) -> tuple[bytes, bytes]:
    match = _LINE.fullmatch(line)
    if match is None or match[3] != b"1":
        raise _RefusedError(Reason.BAD_REQUEST, "the request line is not HTTP/1.1")
    if match[1] != b"CONNECT":
        raise _RefusedError(
            Reason.NOT_CONNECT, "only CONNECT is carried: use the proxy as socks5h://, or ask your client to tunnel"
        )
    authority = _AUTHORITY.fullmatch(match[2])
    if authority is None:
        raise _RefusedError(Reason.BAD_NAME, "the target is not host:port")
    return authority[1], authority[2]


def _fields(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise _RefusedError(Reason.BAD_REQUEST, "a header field is malformed")
        found.setdefault(match[1].lower(), []).append(match[2].strip(b" \t"))
    if b"transfer-encoding" in found or any(v != b"0" for v in found.get(b"content-length", [])):
        raise _RefusedError(Reason.BAD_REQUEST, "CONNECT has no body")
    return found


def _isolation(fields: dict[bytes, list[bytes]]) -> bytes:
    """Key of the credentials. What cannot be read is refused, never put together with those who gave none."""
    values = fields.get(b"proxy-authorization", [])
    if not values:
        return b""
    if len(values) > 1:
        raise _RefusedError(Reason.BAD_REQUEST, "more than one Proxy-Authorization")
    scheme, _, text = values[0].partition(b" ")
    if scheme.lower() != b"basic":
        return isolation_key(b"", b"http " + values[0])
    try:
        user, colon, password = base64.b64decode(text.strip(), validate=True).partition(b":")
    except binascii.Error as error:
        raise _RefusedError(Reason.BAD_REQUEST, "Proxy-Authorization is not base64") from error
    if not colon:
        raise _RefusedError(Reason.BAD_REQUEST, "Proxy-Authorization has no colon")
    return isolation_key(user, password)
