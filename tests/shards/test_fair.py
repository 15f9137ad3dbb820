"""Queues of those who wait, and what a turn may spend on them."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shards.fair import OPERATIONS, PIECE, RELAY_EXTRA, Budget, FairQueue, serve


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=200))
def test_a_queue_keeps_its_bounds_and_the_order_of_each_key(steps):
    lost = list[tuple[int, int]]()
    queue: FairQueue[int, tuple[int, int]] = FairQueue(12, 5, lost.append)
    held, last = Counter[int](), dict[int, int]()
    for number, (key, put) in enumerate(steps, 1):
        if put and queue.put(key, (key, number)):
            held[key] += 1
            for given_way in lost:
                assert held[given_way[0]] >= max(held.values()) - (given_way[0] != key)
                held[given_way[0]] -= 1
            lost.clear()
            assert held[key] <= 5
        elif not put and (taken := queue.take()):
            held[taken[0]] -= 1
            assert taken[1] > last.get(taken[0], 0)
            last[taken[0]] = taken[1]
        assert len(queue) == held.total() <= 12


def test_who_brings_little_waits_for_nobody_who_brings_much():
    lost = list[int]()
    queue: FairQueue[str, int] = FairQueue(100, 50, lost.append)
    for number in range(50):
        assert queue.put("greedy", number)
        queue.put("greedier", number)
    assert len(queue) == 100
    assert not lost
    assert queue.put("modest", 7)  # in a full queue
    assert len(queue) == 100
    assert lost == [49]
    assert 7 in [queue.take() for _ in range(3)]


def test_one_key_has_its_share_alone():
    queue: FairQueue[str, int] = FairQueue(100, 3, print)
    assert [queue.put("one", n) for n in range(5)] == [True, True, True, False, False]


def test_what_a_turn_overdraws_is_missing_in_the_next():
    budget, made = Budget(), list[str]()

    def relays() -> int:
        made.append("relay")
        return PIECE + RELAY_EXTRA

    for _ in range(40):
        budget.renew()
        serve(budget, relays)
    assert len(made) * (PIECE + RELAY_EXTRA) <= 40 * OPERATIONS + PIECE


def test_handshakes_and_builds_take_turns():
    budget, made = Budget(), list[str]()

    def room(name):
        def work() -> int:
            made.append(name)
            return PIECE

        return work

    serve(budget, room("handshake"), room("build"))
    assert made == ["handshake", "build"]
    budget.renew()
    serve(budget, lambda: 0, room("build"))
    assert made[2:] == ["build", "build"]
