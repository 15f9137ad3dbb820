"""Messages between the control process and a worker: round trips, pages, hostile input."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.errors import RemoteProtocolError
from nyx.wire import admin, envelope

IDS = st.integers(0, 2**53)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8
)


@given(IDS, st.sampled_from(admin.Op), st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_a_request_comes_back_as_sent(number, op, args):
    request = admin.Request(number, op, args)
    assert admin.decode_request(request.encode()) == request


@given(IDS, st.dictionaries(st.text(), JSON_VALUES, max_size=4), st.booleans())
def test_an_answer_comes_back_as_sent(number, data, more):
    answer = admin.Answer(number, data, more=more)
    assert admin.decode_answer(answer.encode()) == answer


def test_a_refusal_carries_its_words():
    assert admin.decode_answer(admin.Answer(3, error="no circuit 12").encode()) == admin.Answer(3, {}, "no circuit 12")


@given(st.integers(0, 3000), st.integers(1, 400))
def test_rows_are_cut_into_messages_of_bounded_size_and_lose_nothing(count, width):
    rows = [{"id": i, "text": "é" * width} for i in range(min(count, 300))]
    messages = list(admin.answer_rows(5, "rows", rows))
    answers = [admin.decode_answer(m) for m in messages]
    assert [row for a in answers for row in a.data["rows"]] == rows
    assert [a.more for a in answers] == [True] * (len(answers) - 1) + [False]
    assert max(map(len, messages)) <= envelope.MESSAGE_MAX


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(message):
    for decode in (admin.decode_request, admin.decode_answer):
        with pytest.raises(RemoteProtocolError):
            decode(message)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": None},
        {"id": "1"},
        {"id": True},
        {"id": None},
        {"op": "explode"},
        {"op": None},
        {"op": []},
        {"args": []},
        {"args": None},
    ],
)
def test_a_request_with_one_wrong_field_is_refused(change):
    good = {"v": 1, "id": 1, "op": "ping", "args": {}}
    with pytest.raises(RemoteProtocolError):
        admin.decode_request(json.dumps(good | change).encode())


@pytest.mark.parametrize("change", [{"ok": 1}, {"ok": None}, {"more": 0}, {"data": []}, {"ok": False}, {"ok": False, "error": 4}])
def test_an_answer_with_one_wrong_field_is_refused(change):
    good = {"v": 1, "id": 1, "ok": True, "more": False, "data": {}}
    with pytest.raises(RemoteProtocolError):
        admin.decode_answer(json.dumps(good | change).encode())


def test_a_message_above_the_bound_and_a_deep_one_are_refused():
    for message in (b" " * (envelope.MESSAGE_MAX + 1), b"[" * 60000):
        with pytest.raises(RemoteProtocolError):
            admin.decode_request(message)
