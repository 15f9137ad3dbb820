"""Lines of the admin socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import wire


def test_lines_come_back():
    assert wire.parse_request(wire.request("streams", {"show_targets": True})) == ("streams", {"show_targets": True})
    assert wire.parse_answer(wire.answer({"schema": "nyx.x", "text": "é\n"})) == {"schema": "nyx.x", "text": "é\n"}
    assert wire.answer({"text": "a\nb"}).count(b"\n") == 1
    with pytest.raises(wire.Refusal, match="no") as caught:
        wire.parse_answer(wire.refusal(wire.Refusal("denied", "no")))
    assert caught.value.code == "denied"


@given(
    st.binary(max_size=100)
    | st.sampled_from([b"{}", b'{"v":2}', b'{"v":1,"op":3}', b'{"v":1,"op":"a","args":[]}', b"[" * 50000, b"null"])
)
def test_anything_else_is_refused(line):
    with pytest.raises(wire.Refusal) as caught:
        wire.parse_request(line)
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{}", b"[]", b'{"v":1}', b'{"v":9,"ok":true}', b'{"v":1,"ok":true}',
        b'{"v":1,"ok":true,"document":[]}', b'{"v":1,"ok":false}', b"\xff", b"[" * 50000,
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_refused(line):
    with pytest.raises(wire.Refusal) as caught:
        wire.parse_answer(line)
    assert caught.value.code == "protocol"
