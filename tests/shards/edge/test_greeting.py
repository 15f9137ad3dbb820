"""Both parsers behind the one port: every split, every early end, garbage, bounds, isolation."""

import base64
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.edge import http, socks
from shards.edge.greeting import Greeting, answer
from shards.edge.reasons import Reason
from shards.edge.request import FORM_IPV4, FORM_IPV6, FORM_NAME, Host, Refusal, Request, isolation_key

REQUEST_NAME = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
PLAIN = b"\x05\x01\x00" + REQUEST_NAME


def password(user: bytes, secret: bytes) -> bytes:
    return b"\x01" + bytes((len(user),)) + user + bytes((len(secret),)) + secret


def connect(target: str = "example.com:443", *fields: str) -> bytes:
    return "\r\n".join([f"CONNECT {target} HTTP/1.1", f"Host: {target}", *fields, "", ""]).encode("latin-1")


def basic(user: str, secret: str) -> str:
    return "Proxy-Authorization: Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


def feed(*pieces: bytes) -> tuple[Request | Refusal | None, bytes]:
    greeting, out = Greeting(), b""
    for piece in pieces:
        greeting.receive(piece)
        out += greeting.poll_transmit()
    return greeting.result, out


EXAMPLE = Host(FORM_NAME, b"example.com")
GOOD = [
    (PLAIN, Request("socks5", EXAMPLE, 443, b"", b""), b"\x05\x00"),
    (
        b"\x05\x02\x00\x02" + password(b"u", b"p") + REQUEST_NAME,
        Request("socks5", EXAMPLE, 443, isolation_key(b"u", b"p"), b""),
        b"\x05\x02\x01\x00",
    ),
    (
        b"\x05\x01\x02" + password(b"", b"") + REQUEST_NAME,
        Request("socks5", EXAMPLE, 443, isolation_key(b"", b""), b""),
        b"\x05\x02\x01\x00",
    ),
    (
        b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
        Request("socks5", Host(FORM_IPV4, bytes((127, 0, 0, 1))), 80, b"", b""),
        b"\x05\x00",
    ),
    (
        b"\x05\x01\x00\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50",
        Request("socks5", Host(FORM_IPV6, bytes(15) + b"\x01"), 80, b"", b""),
        b"\x05\x00",
    ),
    (
        b"\x05\x01\x00\x05\x01\x00\x03\x07" + b"8.8.8.8\x00\x35",
        Request("socks5", Host(FORM_IPV4, bytes((8,) * 4)), 53, b"", b""),
        b"\x05\x00",
    ),
    (connect(), Request("http", EXAMPLE, 443, b"", b""), b""),
    (connect("[::1]:80"), Request("http", Host(FORM_IPV6, bytes(15) + b"\x01"), 80, b"", b""), b""),
    (connect("example.com:443", basic("u", "p")), Request("http", EXAMPLE, 443, isolation_key(b"u", b"p"), b""), b""),
    (connect("example.com:443", "User-Agent: ü", "X:", "Content-Length: 0"), Request("http", EXAMPLE, 443, b"", b""), b""),
]


@pytest.mark.parametrize(("data", "request_", "sent"), GOOD)
def test_good_requests_split_at_every_byte(data, request_, sent):
    assert feed(data) == (request_, sent)
    assert feed(*(data[i : i + 1] for i in range(len(data)))) == (request_, sent)
    for cut in range(len(data)):
        assert feed(data[:cut])[0] is None
        assert feed(data[:cut], data[cut:]) == (request_, sent)


@given(st.sampled_from(GOOD), st.lists(st.integers(0, 200), max_size=5), st.binary(max_size=3000))
def test_first_bytes_of_the_stream_are_kept(good, cuts, rest):
    data, request_, sent = good
    bounds = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    pieces[-1] += rest
    assert feed(*pieces) == (request_._replace(rest=rest), sent)


@pytest.mark.parametrize(
    ("data", "reason", "last"),
    [
        (b"\x05\x00", Reason.NO_METHOD, b"\x05\xff"),
        (b"\x05\x01\x01", Reason.NO_METHOD, b"\x05\xff"),
        (b"\x05\x01\x02\x05", Reason.BAD_REQUEST, b"\x01\x01"),
        (b"\x05\x01\x00\x05\x02", Reason.NOT_CONNECT, socks.reply(7)),
        (b"\x05\x01\x00\x05\x03", Reason.NOT_CONNECT, socks.reply(7)),
        (b"\x05\x01\x00\x05\xf0", Reason.NOT_CONNECT, socks.reply(7)),
        (b"\x05\x01\x00\x05\x01\x00\x02\x00", Reason.ADDRESS_FORM, socks.reply(8)),
        (b"\x05\x01\x00\x04", Reason.BAD_REQUEST, socks.reply(1)),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", Reason.BAD_NAME, socks.reply(4)),
        (b"\x05\x01\x00\x05\x01\x00\x03\x03a b\x00\x50", Reason.BAD_NAME, socks.reply(4)),
        (b"\x05\x01\x00\x05\x01\x00\x01\x01\x01\x01\x01\x00\x00", Reason.BAD_REQUEST, socks.reply(1)),
        (b"\x04\x01", Reason.BAD_REQUEST, b"\x00\x5b" + bytes(6)),
        (b"\x16\x03\x01", Reason.BAD_REQUEST, b""),
        (b"\x00", Reason.BAD_REQUEST, b""),
        (b"get /", Reason.BAD_REQUEST, b""),
    ],
)
def test_refused_with_the_right_code_at_every_split(data, reason, last):
    assert feed(data)[0] == Refusal(reason, last)
    assert feed(*(data[i : i + 1] for i in range(len(data))))[0] == Refusal(reason, last)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET http://example.com/ HTTP/1.1\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nHost: x\r\n", 405),
        (b"CONNECT example.com HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT example.com:0 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT example.com:65536 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT ::1:80 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a_b..c:80 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT example.com:80 HTTP/2.0\r\n", 400),
        (b"CONNECT example.com:80\r\n", 400),
        (b"CONNECT example.com:80 HTTP/1.1\n\n", None),
        (b"CONNECT  example.com:80 HTTP/1.1\r\n", 400),
        (b"HELO\x00", 400),
        (b"EHLO there\r\n", 400),
        (b"A" * 33, 400),
        (connect("example.com:80", " folded"), 400),
        (connect("example.com:80", "Space : x"), 400),
        (connect("example.com:80", "Nul: \0"), 400),
        (connect("example.com:80", "Transfer-Encoding: chunked"), 400),
        (connect("example.com:80", "Content-Length: 5"), 400),
        (connect("example.com:80", basic("a", "b"), basic("c", "d")), 400),
        (connect("example.com:80", "Proxy-Authorization: Basic !!"), 400),
        (connect("example.com:80", "Proxy-Authorization: Basic YWJj"), 400),
        (connect("example.com:80", *(f"X{i}: y" for i in range(100))), 431),
        (connect("example.com:80", "X: " + "y" * 8192), 431),
        (b"CONNECT " + b"a" * 9000, 431),
    ],
)
def test_http_refusals(data, status):
    result, sent = feed(data)
    assert sent == b""
    if status is None:
        assert result is None
    else:
        assert isinstance(result, Refusal)
        assert result.reply.startswith(f"HTTP/1.1 {status} ".encode())
        assert len(result.reply) < 600


def test_the_longest_header_that_is_taken():
    room = http.HEADER_MAX - len(connect("example.com:443", "X: "))
    data = connect("example.com:443", "X: " + "y" * room)
    assert len(data) == http.HEADER_MAX
    assert isinstance(feed(data)[0], Request)
    assert isinstance(feed(data[:-1], data[-1:])[0], Request)
    refused = feed(connect("example.com:443", "X: " + "y" * (room + 1)))[0]
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.TOO_LARGE


def _request(data: bytes) -> Request:
    result = feed(data)[0]
    assert isinstance(result, Request)
    return result


def test_other_authorization_schemes_isolate_too():
    keys = {_request(connect("a.b:1", f"Proxy-Authorization: {v}")).isolation for v in ("Bearer x", "Bearer y", "Negotiate x")}
    assert len(keys | {b""}) == 4


@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20),
    st.sampled_from([b"", b"\x05", b"\x05\x01\x00", b"\x05\x01\x02\x01", b"CONNECT ", b"\x05\x01\x00\x05\x01\x00"]),
)
def test_garbage_ends_in_a_result_or_waits_within_bounds(pieces, start):
    greeting = Greeting()
    total = 0
    greeting.receive(start)
    for piece in pieces:
        before = greeting.result
        greeting.receive(piece)
        total += len(greeting.poll_transmit())
        assert before is None or greeting.result == before
    assert total <= 4
    if greeting.result is None:
        kept = getattr(greeting._parser, "_in", b"")
        assert len(kept) <= (http.HEADER_MAX if isinstance(greeting._parser, http.HttpParser) else 516)


@pytest.mark.parametrize("seed", range(300))
def test_five_thousand_bytes_of_garbage(seed):
    data = random.Random(seed).randbytes(5000)
    result, sent = feed(data)
    assert len(sent) <= 4
    if data[0] not in b"\x05ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        assert isinstance(result, Refusal)


def test_answers():
    assert answer("socks5", Reason.NONE) == b"\x05\x00\x00\x01" + bytes(6)
    assert answer("socks5", Reason.CONNECTION_REFUSED)[1] == 5
    assert answer("http", Reason.NONE).startswith(b"HTTP/1.1 200 ")
    for reason in list(Reason)[1:]:
        head, _, body = answer("http", reason).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert int(head.split()[1]) >= 400
        assert reason.text.encode() in body
