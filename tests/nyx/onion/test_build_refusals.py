"""What a hop and a client refuse: records that break a rule, repeat or lead back; refusals of hops; junk, cheaply."""

import struct
from typing import Any

import pytest

from nyx.columns import allocate
from nyx.crypto.keys import StaticKeys
from nyx.crypto.suites import SUITE_CHACHA
from nyx.errors import LocalProtocolError, RemoteProtocolError
from nyx.onion.build import BuildRefusedError, HopBuild
from nyx.onion.seen import BuildReplay, seen_columns
from nyx.wire.geometry import CELL_SIZE
from tests.nyx.onion.builds import NODES, WALL, build_for, hop_opens, through, twin_node
from tests.reference import circuit_build as twin


def handmade(rng, suite=SUITE_CHACHA, created=WALL, following=None, **broken):
    body = twin.body(suite, created, following, **broken)
    record, _ = twin.request(twin_node(NODES[0]), rng.randbytes(32), body, SUITE_CHACHA)
    cells = [rng.randbytes(CELL_SIZE) for _ in range(7)]
    cells[rng.randrange(7)] = record
    return cells


def test_a_handmade_record_is_accepted(rng):
    assert hop_opens(handmade(rng), NODES[0], rng).next_node_id is None
    following = NODES[1].public.node_id
    assert hop_opens(handmade(rng, following=following), NODES[0], rng).next_node_id == following
    assert hop_opens(handmade(rng, delay=5, cells=6, bytes=7), NODES[0], rng).status == 0


BROKEN: dict[str, dict[str, Any]] = {
    "version 0": {"version": 0}, "version 2": {"version": 2}, "flag 2": {"flags": 3}, "flag 128": {"flags": 129},
    "suite 0": {"suite": 0}, "suite 3": {"suite": 3}, "zero": {"zero": 1}, "zeros": {"zeros": bytes(19) + b"\1"},
    "last with a next": {"next": b"n" * 32}, "not last without a next": {"flags": 0},
    "too old": {"created": WALL - 601}, "from the future": {"created": WALL + 121}, "from the start": {"created": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_record_that_breaks_a_rule_is_refused_and_not_remembered(rng, name):
    asked = []

    class Watch:
        def seen(self, x, created, wall):
            asked.append(x)
            return False

    with pytest.raises(RemoteProtocolError):
        HopBuild.open(handmade(rng, **BROKEN[name]), NODES[0], Watch(), rng.randbytes, WALL)
    assert asked == []


@pytest.mark.parametrize("created", [WALL - 600, WALL, WALL + 120])
def test_the_edges_of_a_records_age(rng, created):
    hop_opens(handmade(rng, created=created), NODES[0], rng)
    hop_opens(handmade(rng, created=created), NODES[0], rng, started=created)
    with pytest.raises(RemoteProtocolError):
        hop_opens(handmade(rng, created=created), NODES[0], rng, started=created + 1)


def test_a_repeated_record_is_refused_for_as_long_as_its_age_allows(rng):
    (column,) = seen_columns(1)
    seen = BuildReplay(allocate([column])["builds_seen"], 0)
    cells = handmade(rng, created=WALL + 120)
    HopBuild.open(cells, NODES[0], seen, rng.randbytes, WALL)
    for later in (0, 1, 600, 719, 720, 721, 2000):
        with pytest.raises(RemoteProtocolError):
            HopBuild.open(cells, NODES[0], seen, rng.randbytes, WALL + later)


def test_a_build_that_leads_back_is_refused(rng):
    back = build_for(NODES[:2], rng)
    with pytest.raises(RemoteProtocolError, match="back"):
        hop_opens(back.cells, NODES[0], rng, predecessor=NODES[1].public.node_id)
    hop_opens(back.cells, NODES[0], rng, predecessor=NODES[2].public.node_id)
    with pytest.raises(RemoteProtocolError, match="back"):
        hop_opens(handmade(rng, following=NODES[0].public.node_id), NODES[0], rng)
    hop_opens(build_for(NODES[:1], rng).cells, NODES[0], rng, predecessor=None)


def test_a_hop_that_is_not_on_the_path_finds_nothing(rng):
    build = build_for(NODES[:3], rng)
    for node in NODES[1:]:
        with pytest.raises(RemoteProtocolError, match="no record"):
            hop_opens(build.cells, node, rng)


def test_junk_costs_no_key_agreement(rng, monkeypatch):
    called = []
    monkeypatch.setattr(type(NODES[0].onion), "exchange", lambda *_: called.append(1))
    for _ in range(50):
        with pytest.raises(RemoteProtocolError):
            hop_opens([rng.randbytes(CELL_SIZE) for _ in range(7)], NODES[0], rng)
    assert called == []


@pytest.mark.parametrize("status", [1, 2, 3, 4, 255])
@pytest.mark.parametrize("refusing", [0, 1, 2])
def test_a_refusal_is_authenticated_and_looks_like_an_answer(rng, status, refusing):
    build = build_for(NODES[:3], rng)
    cells, results = list(build.cells), []
    for i, node in enumerate(NODES[:3]):
        answer = status if i == refusing else 0
        results.append(hop_opens(cells, node, rng, decide=lambda _suite, _last, answer=answer: answer))
        cells = list(results[-1].cells)
    assert results[refusing].status == status
    for result in reversed(results):
        cells = result.answer_layer(cells)
    with pytest.raises(BuildRefusedError) as caught:
        build.finish(cells)
    assert (caught.value.hop, caught.value.status) == (refusing, status)


def test_the_decision_knows_suite_and_place(rng):
    asked = []

    def decide(suite, last):
        asked.append((suite, last))
        return 0

    build = build_for(NODES[:2], rng, SUITE_CHACHA)
    first = hop_opens(build.cells, NODES[0], rng, decide=decide)
    hop_opens(list(first.cells), NODES[1], rng, decide=decide)
    assert asked == [(SUITE_CHACHA, False), (SUITE_CHACHA, True)]


def test_an_answer_with_bytes_behind_its_fields_is_refused(rng):
    build = build_for(NODES[:1], rng)
    slot, _, memory = twin.hop_opens(list(build.cells), twin_node(NODES[0]))
    body = struct.pack(">BQQQ", 0, 1, 0, 0) + bytes(1150) + b"\1"
    cells, _ = twin.hop_answers(build.cells, slot, memory, rng.randbytes(32), body)
    with pytest.raises(RemoteProtocolError, match="breaks a rule"):
        build.finish(twin.hop_returns(cells, memory))


def test_what_callers_may_not_do(rng):
    for hops, suite in (([], 1), (NODES[:1] * 2, 1), ([*NODES, StaticKeys.generate(rng.randbytes)], 1), (NODES[:1], 3)):
        with pytest.raises(LocalProtocolError):
            build_for(hops, rng, suite)
    build = build_for(NODES[:1], rng)
    for cells in (build.cells[:6], [*build.cells[:6], b""]):
        with pytest.raises(LocalProtocolError):
            build.finish(cells)
        with pytest.raises(LocalProtocolError):
            hop_opens(cells, NODES[0], rng)


def test_nothing_secret_is_printed(rng):
    build = build_for(NODES[:2], rng)
    results, answers = through(build, NODES[:2], rng)
    circuit = build.finish(answers)
    shown = repr(build) + repr(circuit) + repr(circuit.hops) + repr(results) + repr(build._records)
    for secret in (circuit.hops[0].ck, circuit.hops[1].forward_seed, build._records[0].x, results[0]._answer_key):
        assert secret[:6].hex() not in shown
        assert repr(secret[:6])[2:-1] not in shown
