"""Frames of an opened cell: bytes and values are the same thing, and what is no frame is refused with the right code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.wire import frames as f
from nyx.wire.codes import ErrorCode
from nyx.wire.geometry import FRAMES_SIZE, STREAM_DATA_MAX
from tests.nyx.wire.frame_values import cells, frames


@given(cells())
def test_round_trip(values: list[f.Frame]) -> None:
    data = f.encode(values)
    assert len(data) == FRAMES_SIZE
    assert f.decode(data) == values


@given(st.binary(max_size=FRAMES_SIZE))
def test_any_bytes_decode_or_are_a_violation(data: bytes) -> None:
    code, values = None, []
    try:
        values = f.decode(data)
    except RemoteProtocolError as error:
        code = error.code
    if code is None:
        encoded = b"".join(map(f.encode_frame, values))
        assert encoded == data[: len(encoded)]
    else:
        assert code in (ErrorCode.PROTOCOL_VIOLATION, ErrorCode.UNSUPPORTED_CAP)


@given(frames(), st.data())
def test_a_cut_frame_is_a_violation(frame: f.Frame, data: st.DataObject) -> None:
    encoded = f.encode_frame(frame)
    if isinstance(frame, f.Stream) and frame.fill:
        return  # has no end of its own
    cut = data.draw(st.integers(1, len(encoded) - 1))
    with pytest.raises(RemoteProtocolError):
        f.decode(encoded[:cut])


def test_layouts() -> None:
    """The tables of docs/protocol.md, section 12, spelt out once by hand."""
    assert f.encode_frame(f.Stream(2, 5, b"hi", fin=True)) == bytes.fromhex("0103000200000000000500026869")
    assert f.encode_frame(f.Stream(2, 5, b"hi", fill=True)) == bytes.fromhex("010000020000000000056869")
    assert f.encode_frame(f.Ack(((7, 9), (1, 3)), 4)) == bytes.fromhex("020000000000000009000402000000030000000300000003")
    assert f.encode_frame(f.Open(4, 1, 443, 1, b"a.b")) == bytes.fromhex("0300040101bb0103612e62")
    assert f.encode_frame(f.OpenResult(4, 5)) == bytes.fromhex("040004050404000000000000")
    assert f.encode_frame(f.MaxStreamData(4, 1 << 20)) == bytes.fromhex("050004000000100000")
    assert f.encode_frame(f.MaxConnectionData(1 << 22)) == bytes.fromhex("060000000000400000")
    assert f.encode_frame(f.ResetStream(4, 0x101, 9)) == bytes.fromhex("0700040101000000000009")
    assert f.encode_frame(f.StopSending(4, 0x100)) == bytes.fromhex("0800040100")
    assert f.encode_frame(f.Datagram(4, b"x")) == bytes.fromhex("090004000178")
    assert f.encode_frame(f.LocalizedString("en", "hm")) == bytes.fromhex("2002656e0002686d")
    assert f.encode_frame(f.Settings(2, 3)) == bytes.fromhex("30000200000003")
    assert f.encode_frame(f.Ping(1)) == bytes.fromhex("310000000000000001")
    assert f.encode_frame(f.Pong(1)) == bytes.fromhex("320000000000000001")
    assert f.encode_frame(f.PathChallenge(bytes(16))) == bytes.fromhex("33" + "00" * 16)
    assert f.encode_frame(f.PathResponse(bytes(16))) == bytes.fromhex("34" + "00" * 16)
    assert f.encode_frame(f.Close(1, "no")) == bytes.fromhex("3f0001026e6f")
    assert FRAMES_SIZE - len(f.encode_frame(f.Stream(2, 0, b"", fill=True))) == STREAM_DATA_MAX


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("0104 0002 000000000000", 1),  # a flag that does not exist
        ("0102 0002 ffffffffffff 0001 00", 1),  # beyond 2^48 - 1
        ("02 0000000000000000 0000 01 00000002", 1),  # below cell 0
        ("02 0000000000000009 0000 01 00000000", 1),  # a range of no cells
        ("02 0000000000000009 0000 02 00000001 00000000 00000001", 1),  # a gap of no cells
        ("02 0000000000000009 0000 00 00000001", 1),  # no ranges
        ("02 0000000000000099 0000 21 00000001" + "00000001 00000001 " * 32, 1),  # 33 ranges
        ("03 0002 03 0050 04 04 7f000001", 1),  # no such kind
        ("03 0002 01 0000 04 04 7f000001", 1),  # port 0
        ("03 0002 01 0050 04 05 7f00000101", 1),  # IPv4 of five bytes
        ("03 0002 01 0050 01 03 612062", 1),  # a space in a name
        ("03 0002 01 0050 01 00", 1),  # no name
        ("0a", 1), ("0e", 1), ("10", 1), ("35", 1), ("ff", 1),
        ("40", 7), ("4f", 7), ("50", 7), ("5f", 7),
        ("20 01 ff 0000", 1),  # not UTF-8
    ],
)  # fmt: skip
def test_refused(data: str, code: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        f.decode(bytes.fromhex(data).ljust(FRAMES_SIZE, b"\1"))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "frame",
    [
        f.Ping(1 << 64),
        f.Ack(()),
        f.Ack(((0, 0),) * 33),
        f.Stream(65536, 0, b""),
        f.Stream(2, 1 << 48, b""),
        f.PathChallenge(b"x"),
    ],
)
def test_values_out_of_range_are_our_mistake(frame: f.Frame) -> None:
    with pytest.raises(LocalProtocolError):
        f.encode_frame(frame)


def test_too_much_for_a_cell() -> None:
    with pytest.raises(LocalProtocolError):
        f.encode([f.Stream(2, 0, bytes(FRAMES_SIZE))])
