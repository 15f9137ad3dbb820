"""Link frames: encode and decode are inverses, and anything else is refused whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.link import frames as f
from nyx.wire.codes import ErrorCode


def u(bits):
    return st.integers(0, (1 << bits) - 1)


FRAMES = st.one_of(
    st.builds(f.LinkAck, u(64), u(64)),
    st.builds(f.NewCid, st.integers(0, 3), st.binary(min_size=12, max_size=12)),
    st.builds(f.Destroy, u(32), u(8)),
    st.builds(f.ReceiveWindow, u(32)),
    st.builds(f.Crypto, st.sampled_from(f.CryptoMessage), st.binary(max_size=300)),
    st.builds(f.Settings, u(16), u(32)),
    st.builds(f.Ping, u(64)),
    st.builds(f.Pong, u(64)),
    st.builds(f.Close, u(16), st.binary(max_size=255)),
)


@given(st.lists(FRAMES, max_size=4), st.integers(0, 40))
def test_round_trip_with_padding(frames, padding):
    data = f.encode(frames)
    assert f.decode(data + bytes(padding)) == frames


@given(st.lists(FRAMES, min_size=1, max_size=4), st.data())
def test_cut_short_is_refused_or_ends_between_frames(frames, data):
    encoded = f.encode(frames)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    starts = [len(f.encode(frames[:i])) for i in range(len(frames))]
    if cut in starts:
        assert f.decode(encoded[:cut]) == frames[: starts.index(cut)]
    else:
        with pytest.raises(RemoteProtocolError):
            f.decode(encoded[:cut])


@given(st.binary(max_size=1224))
def test_any_bytes_decode_or_are_refused(data):
    try:
        frames = f.decode(data)
    except RemoteProtocolError:
        return
    again = f.encode(frames)
    assert data.startswith(again)
    assert not any(data[len(again) :])


@pytest.mark.parametrize("number", sorted(set(range(1, 256)) - {int(t) for t in f.FrameType}))
def test_unknown_types_are_violations(number):
    with pytest.raises(RemoteProtocolError) as caught:
        f.decode(f.encode([f.Ping(1)]) + bytes([number]) + bytes(100))
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION


def test_byte_layouts():
    assert f.encode([f.LinkAck(5, 3)]).hex() == "0a" + "0000000000000005" + "0000000000000003"
    assert f.encode([f.NewCid(2, b"abcdefghijkl")]) == b"\x0b\x02abcdefghijkl"
    assert f.encode([f.Destroy(0x80000001, 4)]).hex() == "0c" + "80000001" + "04"
    assert f.encode([f.ReceiveWindow(192)]).hex() == "0d" + "000000c0"
    assert f.encode([f.Crypto(2, b"xy")]).hex() == "10" + "02" + "0002" + "7879"
    assert f.encode([f.Settings(3, 9)]).hex() == "30" + "0003" + "00000009"
    assert f.encode([f.Ping(1), f.Pong(2)]).hex() == "31" + "0000000000000001" + "32" + "0000000000000002"
    assert f.encode([f.Close(7, b"no")]).hex() == "3f" + "0007" + "02" + "6e6f"


def test_fec_change_is_decoded_and_refused_by_code():
    with pytest.raises(RemoteProtocolError) as caught:
        f.decode(bytes.fromhex("0e" + "00" * 8 + "0a03"))
    assert caught.value.code == ErrorCode.UNSUPPORTED_CAP
    with pytest.raises(RemoteProtocolError) as caught:
        f.decode(bytes.fromhex("0e" + "00" * 8 + "0a"))
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize("data", ["0b04" + "00" * 12, "1003" + "0000", "00" * 5 + "01", "3100"])
def test_refused(data):
    with pytest.raises(RemoteProtocolError):
        f.decode(bytes.fromhex(data))


def test_what_does_not_fit_is_our_own_error():
    with pytest.raises(LocalProtocolError):
        f.encode([f.Crypto(1, bytes(1184)), f.Crypto(1, bytes(40))])
    with pytest.raises(LocalProtocolError):
        f.encode([f.Ping(1 << 64)])
