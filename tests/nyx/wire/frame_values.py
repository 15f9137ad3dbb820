"""Frames and cells that are legal as far as bytes go, for Hypothesis."""

from typing import Any

from hypothesis import strategies as st

from nyx.wire import frames as f
from nyx.wire.geometry import FRAMES_SIZE

_u16, _u32, _u48, _u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 48, 64))
_names = st.text("abcXYZ019-_.", min_size=1, max_size=255).map(str.encode)
_text = st.text(max_size=40)


@st.composite
def _acks(draw: Any) -> f.Ack:
    gaps = draw(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=32))
    low = draw(st.integers(0, 1 << 50))
    ranges = []
    for gap, length in gaps:
        ranges.append((low, low + length - 1))
        low += length + gap
    return f.Ack(tuple(reversed(ranges)), draw(_u16))


def _streams(fill: bool) -> st.SearchStrategy[f.Stream]:
    return st.builds(f.Stream, _u16, st.integers(0, (1 << 48) - 2048), st.binary(max_size=400), st.booleans(), st.just(fill))


def _opens() -> st.SearchStrategy[f.Open]:
    targets = st.one_of(
        st.tuples(st.just(1), _names),
        st.tuples(st.just(4), st.binary(min_size=4, max_size=4)),
        st.tuples(st.just(6), st.binary(min_size=16, max_size=16)),
        st.tuples(st.sampled_from([0, 2, 9]), st.binary(max_size=30)),
    )
    return st.builds(
        lambda stream, kind, port, target: f.Open(stream, kind, port, *target),
        _u16,
        st.integers(1, 2),
        st.integers(1, 65535),
        targets,
    )


def frames() -> st.SearchStrategy[f.Frame]:
    """Any frame."""
    return st.one_of(
        _streams(fill=False), _acks(), _opens(),
        st.builds(f.OpenResult, _u16, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=255), _u16),
        st.builds(f.MaxStreamData, _u16, _u48),
        st.builds(f.MaxConnectionData, _u64),
        st.builds(f.ResetStream, _u16, _u16, _u48),
        st.builds(f.StopSending, _u16, _u16),
        st.builds(f.Datagram, _u16, st.binary(max_size=100)),
        st.builds(f.LocalizedString, _text, _text),
        st.builds(f.Settings, _u16, _u32),
        st.builds(f.Ping, _u64),
        st.builds(f.Pong, _u64),
        st.builds(f.PathChallenge, st.binary(min_size=16, max_size=16)),
        st.builds(f.PathResponse, st.binary(min_size=16, max_size=16)),
        st.builds(f.Close, _u16, _text),
    )  # fmt: skip


@st.composite
def cells(draw: Any) -> list[f.Frame]:
    """What fits one cell; sometimes the last is a STREAM frame that fills it."""
    kept: list[f.Frame] = []
    room = FRAMES_SIZE
    for frame in draw(st.lists(frames(), max_size=12)):
        size = len(f.encode_frame(frame))
        if size <= room:
            kept.append(frame)
            room -= size
    if room >= 10 and draw(st.booleans()):
        kept.append(
            f.Stream(draw(_u16), draw(st.integers(0, 1 << 40)), draw(st.just(b"\xee" * (room - 10))), fin=False, fill=True)
        )
    return kept
