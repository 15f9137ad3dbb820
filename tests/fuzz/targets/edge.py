"""What any program on the machine can say to the proxy's port and to the metrics' one."""

from typing import Any, Final

from control.metrics import server
from shards.edge.greeting import Greeting
from shards.edge.http import HEADER_MAX, HttpParser
from shards.edge.request import Refusal, Request
from shards.edge.socks import SocksParser
from shards.edge.socks import State as SocksState

_KEPT: Final = 516  # bytes of one SOCKS message


def _all_at_once_and_in_pieces(make: Any, data: bytes) -> bool:
    """However the bytes are cut, the request is the same; a refusal stays one; what is sent is bounded."""
    whole, cut, sent = make(), make(), [b"", b""]
    whole.receive(data)
    sent[0] = whole.poll_transmit()
    for at in range(len(data)):
        if cut.result is None:
            cut.receive(data[at : at + 1])
            sent[1] += cut.poll_transmit()
    for parser, out in ((whole, sent[0]), (cut, sent[1])):
        assert len(out) <= 64
        answer = parser.result
        assert answer is None or isinstance(answer, Request | Refusal)
        if isinstance(answer, Request):
            _check(answer, data)
    if isinstance(whole.result, Request):
        assert isinstance(cut.result, Request)
        assert cut.result._replace(rest=b"") == whole.result._replace(rest=b"")
        assert sent[0] == sent[1]
    else:
        assert not isinstance(cut.result, Request)
    before = whole.result
    if before is not None:
        whole.receive(b"more")
        assert whole.result is before
    return isinstance(before, Request)


def _check(request: Request, data: bytes) -> None:
    assert 1 <= request.port <= 65535
    assert str(request.host)
    assert len(request.host.address) <= 254
    assert data.endswith(request.rest)


def greeting(data: bytes) -> bool:
    """Either language."""
    return _all_at_once_and_in_pieces(Greeting, data[: 2 * HEADER_MAX])


def socks(data: bytes) -> bool:
    """SOCKS5; nothing but one message is kept."""
    parser = SocksParser()
    for at in range(0, len(data), 7):
        parser.receive(data[at : at + 7])
        assert len(parser._in) <= _KEPT
    assert (parser.state is SocksState.DONE) == (parser.result is not None)
    return _all_at_once_and_in_pieces(SocksParser, data)


def http(data: bytes) -> bool:
    """CONNECT; no more than a header is kept."""
    parser = HttpParser()
    for at in range(0, len(data), 97):
        parser.receive(data[at : at + 97])
        assert len(parser._in) <= HEADER_MAX
    return _all_at_once_and_in_pieces(HttpParser, data[: 2 * HEADER_MAX])


def metrics(data: bytes) -> bool:
    """A request for the metrics, as far as its empty line."""
    request = data[: server.REQUEST_MAX - 4] + b"\r\n\r\n"
    request = request[: request.index(b"\r\n\r\n") + 4]
    taken = False
    for arrived_at in ("127.0.0.1", "2001:db8::1", "fe80::1%eth0"):
        try:
            server.check(request, arrived_at)
        except server._RefusedError as error:
            assert 400 <= error.status < 500
            continue
        assert request.startswith(b"GET /metrics HTTP/1.")
        taken = True
    return taken
