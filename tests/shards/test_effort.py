"""The effort that a relay asks: rises while builds wait, falls after, between the descriptor's and a ceiling."""

from hypothesis import given
from hypothesis import strategies as st

from shards.effort import CALM, CEILING, FIRST, SECOND, WAITING, Effort


def test_it_rises_while_builds_wait_and_falls_after_a_time_of_calm():
    effort, now = Effort(), 0
    effort.look(WAITING - 1, 0, 0, now)
    assert effort.bits == 0
    for bits in (FIRST, FIRST + 1, FIRST + 2):
        now += SECOND // 4
        effort.look(WAITING, 0, 0, now)
        assert (effort.bits, effort.raised) == (bits, True)
    effort.look(0, 0, 0, now + CALM - 1)
    assert effort.bits == FIRST + 2
    fallen = []
    for second in range(5):
        effort.look(0, 0, 0, now + CALM + second * SECOND)
        fallen.append(effort.bits)
    assert fallen == [FIRST + 1, FIRST, 0, 0, 0]
    assert not effort.raised


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.integers(0, SECOND)), max_size=300), st.integers(0, 20))
def test_it_stays_between_its_floor_and_its_ceiling(looks, floor):
    effort, now = Effort(), 0
    for waiting, refused, passed in looks:
        now += passed
        before = effort.bits
        effort.look(waiting, refused, floor, now)
        assert floor <= effort.bits <= max(CEILING, floor)
        assert effort.bits >= before or (waiting < WAITING and not refused)
