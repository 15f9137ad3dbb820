"""A refresh through 1 to 7 hops: keys agree, also with the twin; no change goes unnoticed; each counter serves once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.onion.refresh import ClientRefresh, answer_layer, answer_refresh
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE
from tests.nyx.onion.builds import SUITES, flip
from tests.reference import circuit_refresh as twin

COUNTER, EPOCH = 5, 12


def keys_of(fresh):
    return fresh.forward_seed, fresh.backward_seed, fresh.ck


def through(refresh, cks, suite, change=None, counters=range(1, 9)):
    """Over all hops and back; `change(step, cells)` may alter what arrives at step 0..2n-1. Returns hops' results and answers."""
    cells, made = list(refresh.cells), []
    for step, ck in enumerate(cks):
        cells = change(step, cells) if change else cells
        made.append(answer_refresh(cells, ck, suite, counters, cells_forward=100 - step, cells_backward=step))
        cells = list(made[-1].cells)
    for step, (ck, one) in enumerate(zip(reversed(cks), reversed(made), strict=True), len(cks)):
        cells = answer_layer(cells, ck, suite, one.counter)
        cells = change(step, cells) if change else cells
    return made, cells


@pytest.fixture
def cks(rng):
    return [rng.randbytes(32) for _ in range(7)]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("hops", range(1, 8))
def test_client_and_hops_agree(rng, cks, suite, hops):
    refresh = ClientRefresh(cks[:hops], suite, COUNTER, EPOCH, rng.randbytes)
    made, answers = through(refresh, cks[:hops], suite)
    found = refresh.finish(answers)
    assert [keys_of(one.fresh) for one in found] == [keys_of(one.fresh) for one in made]
    assert [(one.cells_forward, one.cells_backward) for one in found] == [(100 - i, i) for i in range(hops)]
    assert {(one.counter, one.epoch) for one in made} == {(COUNTER, EPOCH)}
    assert len({key for one in found for key in keys_of(one.fresh)} | set(cks)) == 3 * hops + 7


@pytest.mark.parametrize("suite", SUITES)
def test_the_twin_is_every_hop(rng, cks, suite):
    refresh = ClientRefresh(cks[:3], suite, COUNTER, EPOCH, rng.randbytes)
    cells, keys = list(refresh.cells), []
    for i, ck in enumerate(cks[:3]):
        fresh, epoch, cells = twin.hop_answers(cells, ck, COUNTER, suite, 10 * i, i)
        assert epoch == EPOCH
        keys.append(fresh)
    for ck in reversed(cks[:3]):
        cells = twin.hop_returns(cells, ck, COUNTER, suite)
    found = refresh.finish(cells)
    assert [keys_of(one.fresh) for one in found] == keys
    assert [(one.cells_forward, one.cells_backward) for one in found] == [(0, 0), (10, 1), (20, 2)]


@pytest.mark.parametrize("suite", SUITES)
def test_the_twin_is_the_client(rng, cks, suite):
    seeds, slots = [rng.randbytes(64) for _ in range(3)], [6, 0, 3]
    cells = twin.client_sends(cks[:3], seeds, slots, COUNTER, EPOCH, suite)
    made = []
    for ck in cks[:3]:
        made.append(answer_refresh(cells, ck, suite, [COUNTER], cells_forward=7, cells_backward=8))
        cells = list(made[-1].cells)
    for ck in reversed(cks[:3]):
        cells = answer_layer(cells, ck, suite, COUNTER)
    found, _ = twin.client_opens(cells, cks[:3], seeds, slots, COUNTER, suite)
    assert [keys for keys, *_ in found] == [keys_of(one.fresh) for one in made]
    assert all(counts == [7, 8] for _, *counts in found)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(0, 6), st.integers(0, 8 * CELL_SIZE - 1), st.data())
def test_one_bit_changed_anywhere_gives_the_client_nothing(hops, slot, bit, data):
    step = data.draw(st.integers(0, 2 * hops - 1))
    cks = [bytes([hop + 1]) * 32 for hop in range(hops)]
    drawn = iter(range(10**6))
    refresh = ClientRefresh(cks, SUITES[0], COUNTER, EPOCH, lambda n: bytes((next(drawn) * 37 + i) % 251 for i in range(n)))

    def change(at, cells):
        return flip(cells, slot, bit) if at == step else cells

    with pytest.raises(RemoteProtocolError):
        _, answers = through(refresh, cks, SUITES[0], change)
        refresh.finish(answers)


def test_a_counter_that_a_hop_has_seen_opens_nothing(rng, cks):
    refresh = ClientRefresh(cks[:2], SUITES[0], COUNTER, EPOCH, rng.randbytes)
    with pytest.raises(RemoteProtocolError):
        through(refresh, cks[:2], SUITES[0], counters=range(COUNTER + 1, COUNTER + 9))


def test_another_circuits_key_opens_nothing(rng, cks):
    refresh = ClientRefresh(cks[:2], SUITES[0], COUNTER, EPOCH, rng.randbytes)
    with pytest.raises(RemoteProtocolError):
        through(refresh, cks[2:4], SUITES[0])


def test_requests_look_alike_whatever_the_number_of_hops(rng, cks):
    for hops in range(1, 8):
        refresh = ClientRefresh(cks[:hops], SUITES[0], hops, EPOCH, rng.randbytes)
        assert [len(cell) for cell in refresh.cells] == [CELL_SIZE] * BUILD_SLOTS
        assert len(set(refresh.cells)) == BUILD_SLOTS


def test_nothing_secret_is_printed(rng, cks):
    refresh = ClientRefresh(cks[:2], SUITES[0], COUNTER, EPOCH, rng.randbytes)
    made, answers = through(refresh, cks[:2], SUITES[0])
    shown = repr(refresh) + repr(made) + repr(refresh.finish(answers))
    for secret in (cks[0], made[0].fresh.ck, made[1].fresh.forward_seed):
        assert secret[:6].hex() not in shown
        assert repr(secret[:6])[2:-1] not in shown


def test_what_a_caller_does_wrong(rng, cks):
    with pytest.raises(LocalProtocolError):
        ClientRefresh([], SUITES[0], 1, 2, rng.randbytes)
    refresh = ClientRefresh(cks[:1], SUITES[0], 1, 2, rng.randbytes)
    with pytest.raises(LocalProtocolError):
        refresh.finish(refresh.cells[:6])
    with pytest.raises(LocalProtocolError):
        answer_refresh(refresh.cells[:6], cks[0], SUITES[0], [1], cells_forward=0, cells_backward=0)
