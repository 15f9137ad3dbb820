"""Cells of a peer that breaks rules: each ends its connection with the right code, costs little and changes nothing before."""

from time import thread_time_ns
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.errors import RemoteProtocolError
from nyx.stream import columns as c
from nyx.stream.inspect import check_invariants
from nyx.wire import frames as f
from nyx.wire.codes import ErrorCode
from nyx.wire.geometry import CELL_FRAMES, FRAMES_SIZE
from tests.nyx.stream.simulator import MS, End, Network
from tests.nyx.wire.frame_values import cells

MIB = 1 << 20
VIOLATION, FLOW, UNSUPPORTED = (
    int(ErrorCode.PROTOCOL_VIOLATION),
    int(ErrorCode.FLOW_CONTROL_ERROR),
    int(ErrorCode.UNSUPPORTED_CAP),
)
TARGET = f.Open(4, 1, 80, 1, b"example.org")


def network(seed: int = 1) -> Network:
    """Stream 2 is open both ways, and 100 bytes have come each way."""
    net = Network(seed)
    row = net.open()
    net.write(net.client, row, bytes(100))
    assert net.run(lambda: bool(net.exit.ids) and bool(net.client.events))
    net.write(net.exit, net.peer_row(net.client, row), bytes(100))
    assert net.run(lambda: len(net.client.read[row]) == 100 and len(net.exit.read[0]) == 100)
    net.run(seconds=0.1)
    return net


def inject(net: Network, end: End, data: bytes, sequence: int | None = None) -> int:
    number = sequence if sequence is not None else max(end.seen, default=-1) + 1
    return net.deliver(end, [number.to_bytes(8, "big") + bytes(8) + data.ljust(FRAMES_SIZE, b"\0")])


def primary(end: End) -> list[bytes]:
    """All that a rejected cell must leave as it was, but for the one counter."""
    connection = end.streams.connections.copy()
    connection["dropped"] = 0
    return [connection.tobytes(), end.streams.streams.tobytes(), end.streams.rx.tobytes(), end.streams.id_rows(0).tobytes()]


def close_code(end: End) -> int | None:
    """The code that an end closes with; the CLOSE itself waits to be sent."""
    connection = end.streams.connections[end.connection]
    return int(connection["close_code"]) if int(connection["state"]) == c.CLOSING else None


CUT = bytes.fromhex("0102000200000000000004ff")  # a STREAM frame of 1279 bytes


BAD_AT_EXIT: list[tuple[list[f.Frame] | str, int]] = [
    ("ff", VIOLATION),
    ("0a", VIOLATION),
    ("10", VIOLATION),
    ("40", UNSUPPORTED),
    ("5f", UNSUPPORTED),
    ([f.Datagram(2, b"x")], UNSUPPORTED),
    ([f.Stream(3, 0, b"x")], VIOLATION),  # last-hop streams do not exist
    ([f.Stream(0, 0, b"x")], VIOLATION),
    ([f.Stream(2, MIB, b"x")], FLOW),
    ([f.Stream(4, MIB, b"x")], FLOW),  # a stream not opened yet has the first window
    ([f.Stream(2, 50, b"x", fin=True)], VIOLATION),  # ends before bytes that came
    ([f.ResetStream(2, 0, 50)], VIOLATION),
    ([f.ResetStream(2, 0, MIB + 1)], FLOW),
    ([f.OpenResult(2, 0)], VIOLATION),  # the client's own business
    ([f.Ack(((1 << 40, 1 << 40),))], VIOLATION),
    ([f.Ack(((0, 1000),))], VIOLATION),
    ([f.Ack(((0, 0),)), f.Ack(((0, 0),))], VIOLATION),
    ([TARGET, f.Open(6, 1, 80, 1, b"example.org")], VIOLATION),
    ([f.Open(5, 1, 80, 4, bytes(4))], VIOLATION),
    ("0104000200000000000000", VIOLATION),
    (CUT.hex(), VIOLATION),
    ("030004010050040500000000", VIOLATION),
    ("0300040100000404" + "00" * 4, VIOLATION),
    ("0300040300500404" + "00" * 4, VIOLATION),
    ("0300040100500103612062", VIOLATION),
]


@pytest.mark.parametrize(("what", "code"), BAD_AT_EXIT, ids=str)
@pytest.mark.parametrize("before", [False, True], ids=["alone", "after good frames"])
def test_violations_at_the_last_hop(what: list[f.Frame] | str, code: int, before: bool) -> None:
    net = network()
    good: list[f.Frame] = [f.Ping(7), f.MaxStreamData(2, 5 * MIB), f.Stream(2, 100, b"good")] if before else []
    data = bytes.fromhex(what) if isinstance(what, str) else b"".join(map(f.encode_frame, what))
    front = b"".join(map(f.encode_frame, good))
    if data == CUT:  # the cell must end before the frame does
        front += f.encode_frame(f.Stream(2, 104, bytes(FRAMES_SIZE - len(front) - len(data) - f.STREAM_LENGTH_SIZE)))
    frames = (front + data).ljust(FRAMES_SIZE, b"\0")
    rx, ids = net.exit.streams.rx.copy(), net.exit.streams.id_rows(0).copy()
    assert inject(net, net.exit, frames) == 0
    assert close_code(net.exit) == code
    assert np.array_equal(rx, net.exit.streams.rx)
    assert int(net.exit.streams.connections[0]["pong_nonce"]) == 0
    assert int(ids[1]) == int(net.exit.streams.id_rows(0)[1])
    assert net.run(lambda: bool(net.exit.closed) and bool(net.client.closed))
    kinds = {event.kind for event in net.exit.closed}
    assert kinds == {c.PROTOCOL_ERROR, c.CONNECTION_CLOSED}
    assert {event.value for event in net.client.closed} == {code}  # the CLOSE says it


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([TARGET], VIOLATION),
        ([f.Stream(8, 0, b"x")], VIOLATION),  # never opened
        ([f.MaxStreamData(8, 1)], VIOLATION),
        ([f.Stream(2, MIB, b"")], 0),
        ([f.Stream(2, MIB, b"x")], FLOW),
    ],
    ids=str,
)
def test_violations_at_the_client(frames: list[f.Frame], code: int) -> None:
    net = network()
    inject(net, net.client, f.encode(frames))
    assert close_code(net.client) == (code or None)


def test_the_connection_window_holds_over_all_streams() -> None:
    net = network()
    net.exit.reading = False
    for stream in (2, 4, 6, 8):
        if stream > 2:
            inject(net, net.exit, f.encode([f.Open(stream, 1, 80, 4, bytes(4))]))
        inject(net, net.exit, f.encode([f.Stream(stream, MIB - 1, b"x")]))
    assert close_code(net.exit) is None
    inject(net, net.exit, f.encode([f.Open(10, 1, 80, 4, bytes(4)), f.Stream(10, 200, b"x")]))
    assert close_code(net.exit) == FLOW


@pytest.mark.parametrize("frame", [f.MaxStreamData(8, 1), f.ResetStream(8, 0, 0), f.StopSending(8, 0)], ids=str)
def test_frames_that_overtook_their_open_count_as_lost(frame: f.Frame) -> None:
    net = network()
    before = primary(net.exit)
    assert inject(net, net.exit, f.encode([f.Ping(7), frame])) == 0
    assert primary(net.exit) == before
    assert int(net.exit.streams.connections[0]["dropped"]) == 1
    assert close_code(net.exit) is None


def test_data_waits_for_its_open_but_not_for_ever() -> None:
    net = network()
    inject(net, net.exit, f.encode([f.Stream(8, 0, b"early")]))
    row = int(net.exit.streams.id_rows(0)[4]) - 1
    assert int(net.exit.streams.streams[row]["state"]) == c.EARLY
    inject(net, net.exit, f.encode([f.Open(8, 1, 80, 1, b"example.org")]))
    assert net.run(lambda: row in net.exit.read and bytes(net.exit.read[row]) == b"early")
    inject(net, net.exit, f.encode([f.Stream(10, 0, b"early")]))
    net.now += 31_000 * MS
    net.exit.streams.on_timeout(net.now)
    assert int(net.exit.streams.id_rows(0)[5]) < 0


@given(cells(), st.data())
def test_what_the_codec_refuses_never_passes(values: list[f.Frame], data: Any) -> None:
    """The kernels against the codec, which was written apart from them: mutated cells."""
    cell = bytearray(f.encode(values))
    for _ in range(data.draw(st.integers(0, 3))):
        cell[data.draw(st.integers(0, 120))] = data.draw(st.integers(0, 255))
    net = network()
    taken = inject(net, net.exit, bytes(cell))
    try:
        f.decode(bytes(cell))
    except RemoteProtocolError as error:
        text = "UTF-8" in str(error)  # nobody reads those texts
        assert text or (taken == 0 and (close_code(net.exit) or int(net.exit.streams.connections[0]["dropped"]) == 1))
    check_invariants(net.exit.streams)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=20))
def test_random_bytes_do_no_harm(cells_: list[bytes]) -> None:
    net = network()
    for data in cells_:
        for end in (net.client, net.exit):
            inject(net, end, data)
            check_invariants(end.streams)
    net.run(limit=50)


def test_full_of_opens_and_refusals_are_bounded() -> None:
    net = Network(streams=4)
    for number in range(2, 100, 2):
        inject(net, net.exit, f.encode([f.Open(number, 1 + number % 4 // 2, 80, 4, bytes(4))]))
    assert close_code(net.exit) is None
    assert net.exit.streams.free_rows == 0
    assert int((net.exit.streams.id_rows(0) < 0).sum()) <= c.REFUSALS
    assert int(net.exit.streams.connections[0]["dropped"]) > 0


@pytest.mark.parametrize("kind", ["ranges", "frames", "padding"])
def test_work_per_hostile_cell_is_bounded(kind: str) -> None:
    """A cell of the dearest legal kind costs the processor no more than 200 us (uncompiled: 20 ms)."""
    from nyx.kernel import PLAIN

    net = network()
    net.exit.streams.connections[0]["sequence_next"] = 1 << 40
    net.exit.streams.connections[0]["oldest"] = (1 << 40) - c.FLIGHT + 2
    low = (1 << 40) - 4 * c.FLIGHT
    data = {
        "ranges": f.encode([f.Ack(tuple((low + 200 * i, low + 200 * i + 190) for i in reversed(range(32))))]),
        "frames": b"".join(f.encode_frame(f.StopSending(2, 1)) for _ in range(FRAMES_SIZE // 5)).ljust(FRAMES_SIZE, b"\0"),
        "padding": bytes(FRAMES_SIZE),
    }[kind]
    number = max(net.exit.seen) + 1
    cells_ = [(number + i).to_bytes(8, "big") + bytes(CELL_FRAMES - 8) + data for i in range(40)]
    start = thread_time_ns()
    net.deliver(net.exit, cells_)
    assert (thread_time_ns() - start) / 40 < (20_000_000 if PLAIN else 200_000)


def test_an_ack_of_everything_is_no_bomb() -> None:
    net = network()
    net.exit.streams.connections[0]["sequence_next"] = 1 << 61
    net.exit.streams.connections[0]["oldest"] = (1 << 61) - 5
    high = (1 << 61) - 1
    start = thread_time_ns()
    inject(net, net.exit, f.encode([f.Ack(((high - (1 << 32) + 2, high),))]))
    assert thread_time_ns() - start < 100 * MS
    assert close_code(net.exit) is None
