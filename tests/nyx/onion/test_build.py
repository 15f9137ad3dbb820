"""A build through 1 to 7 hops: keys agree, also with the twin; hops learn their neighbours alone; no change goes unnoticed."""

import dataclasses
import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from nyx.columns import allocate
from nyx.crypto.schedule import layer_key
from nyx.crypto.suites import SUITE_AEGIS128L
from nyx.errors import RemoteProtocolError
from nyx.onion import build as module
from nyx.onion.build import BuildRefusedError, ClientBuild, HopBuild
from nyx.onion.layer import apply_layer, remove_layer
from nyx.onion.seen import BuildReplay, seen_columns
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE
from tests.nyx.onion.builds import NODES, SUITES, WALL, build_for, flip, hop_opens, keys_of, through, twin_node
from tests.reference import circuit_build as twin

# ---------------------------------------------------------------- agreement


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("hops", range(1, 8))
def test_keys_agree(rng, suite, hops):
    build = build_for(NODES[:hops], rng, suite)
    results, answers = through(build, NODES[:hops], rng)
    circuit = build.finish(answers)
    assert circuit.suite == suite
    assert [(h.forward_seed, h.backward_seed, h.ck) for h in circuit.hops] == [
        (r.forward_seed, r.backward_seed, r.ck) for r in results
    ]
    keys = [k for h in circuit.hops for k in (h.forward_seed, h.backward_seed, h.ck)]
    assert len(set(keys)) == 3 * hops
    ids = [n.public.node_id for n in NODES[1:hops]]
    assert [r.next_node_id for r in results] == [*ids, None]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("hops", [1, 2, 4])
def test_the_twin_is_every_hop(rng, suite, hops):
    """Our client, the twin's hops: what they read, and the keys both hold."""
    build = build_for(NODES[:hops], rng, suite)
    cells, memories, keys, slots = list(build.cells), [], [], []
    for i, node in enumerate(NODES[:hops]):
        slot, body, memory = twin.hop_opens(cells, twin_node(node))
        following = NODES[i + 1].public.node_id if i + 1 < hops else None
        assert body == twin.body(suite, WALL, following)
        cells, made = twin.hop_answers(cells, slot, memory, rng.randbytes(32), struct.pack(">BQQQ", 0, 77, 0, 0) + bytes(1151))
        memories.append(memory)
        keys.append(made)
        slots.append(slot)
    for memory in reversed(memories):
        cells = twin.hop_returns(cells, memory)
    circuit = build.finish(cells)
    assert keys_of(circuit.hops) == [(k["forward"], k["back"], k["ck"]) for k in keys]
    assert len(set(slots)) == hops


@pytest.mark.parametrize("suite", SUITES)
def test_the_twin_is_the_client(rng, suite):
    nodes = [twin_node(n) for n in NODES[:3]]
    slots, cells = [4, 0, 6], [rng.randbytes(CELL_SIZE) for _ in range(7)]
    memories: list[Any] = []
    for i, (slot, node) in enumerate(zip(slots, nodes, strict=True)):
        following = nodes[i + 1]["node_id"] if i < 2 else None
        record, memory = twin.request(node, rng.randbytes(32), twin.body(suite, WALL, following), suite)
        cells[slot] = twin.wrap(record, memories, slot, suite)
        memories.append(memory)
    sent, results = list(cells), []
    for node in NODES[:3]:
        results.append(hop_opens(cells, node, rng, boot_epoch=99))
        cells = list(results[-1].cells)
    for result in reversed(results):
        cells = result.answer_layer(cells)
    opened, spare = twin.client_opens(cells, slots, memories)
    for (body, keys), result in zip(opened, results, strict=True):
        assert body == struct.pack(">BQQQ", 0, 99, 0, 0) + bytes(1151)
        assert (result.forward_seed, result.backward_seed, result.ck) == (keys["forward"], keys["back"], keys["ck"])
    assert [spare[s] for s in (1, 2, 3, 5)] == [sent[s] for s in (1, 2, 3, 5)]


# ---------------------------------------------------------------- what a hop learns


def test_a_hop_holds_its_neighbour_its_keys_and_nothing_else(rng):
    fields = {field.name for field in dataclasses.fields(module.HopResult)}
    assert fields == {"next_node_id", "cells", "suite", "forward_seed", "backward_seed", "ck", "status", "_answer_key"}
    build = build_for(NODES[:5], rng)
    results, _ = through(build, NODES[:5], rng)
    for i, result in enumerate(results):
        others = [n.public for k, n in enumerate(NODES) if k not in {i, i + 1}]
        held = b"".join((result.forward_seed, result.backward_seed, result.ck, result._answer_key, *result.cells))
        if result.next_node_id:
            held += result.next_node_id
        for public in others:
            assert public.node_id not in held
            assert public.onion_x25519 not in held
            assert public.link_x25519 not in held


@pytest.mark.parametrize("hops", [3, 7])
def test_no_hop_can_open_or_recognise_another_slot(rng, hops):
    """In what arrives at hop i, only its own slot carries a hint that anybody's keys know."""
    build = build_for(NODES[:hops], rng)
    cells = list(build.cells)
    for i, node in enumerate(NODES[:hops]):
        known = [
            (slot, k)
            for slot, cell in enumerate(cells)
            for k, other in enumerate(NODES)
            if module._hint(cell[:32], other.public) == cell[1120:1128]
        ]
        assert [k for _, k in known] == [i]
        cells = list(hop_opens(cells, node, rng).cells)
    assert not any(module._hint(cell[:32], n.public) == cell[1120:1128] for cell in cells for n in NODES)


def test_position_and_length_do_not_show_in_sizes_or_slots(rng):
    """Slots are drawn uniformly, whatever the hop and the length."""
    counts = np.zeros((7, 7))
    for _ in range(350):
        for position, slot in enumerate(module.shuffled_slots(rng.randbytes)):
            counts[position, slot] += 1
    assert float(((counts - 50) ** 2 / 50).sum()) < 36 + 6 * (2 * 36) ** 0.5
    for hops in range(1, 8):
        build = build_for(NODES[:hops], rng)
        assert [len(cell) for cell in build.cells] == [CELL_SIZE] * BUILD_SLOTS
        assert [len(cell) for cell in hop_opens(build.cells, NODES[0], rng).cells] == [CELL_SIZE] * BUILD_SLOTS


def test_slots_are_drawn_without_bias():
    """Of 256 values of a byte, 252 fall on seven slots alike; the last four are drawn again."""
    assert module.shuffled_slots(iter_entropy([255, 254, 253, 252, 251, 0, 0, 0, 0, 0, 0])) == [6, 0, 1, 2, 3, 4, 5]
    assert module.shuffled_slots(iter_entropy([7, 252, 251, 255, 250, 0, 0, 0, 0, 0]))[0] == 0


def iter_entropy(values):
    left = iter(values)
    return lambda size: bytes(next(left) for _ in range(size))


def test_equal_cells_in_different_slots_leave_a_hop_different(rng):
    """The tweak: colluding hops cannot recognise equal cells behind an honest one."""
    build = build_for(NODES[:1], rng)
    spare = build._records[0].slot
    equal = rng.randbytes(CELL_SIZE)
    cells = [build.cells[slot] if slot == spare else equal for slot in range(7)]
    result = hop_opens(cells, NODES[0], rng)
    assert len(set(result.cells)) == 7
    assert len(set(result.answer_layer([equal] * 7))) == 7


def test_the_same_build_never_leaves_a_hop_twice_alike(rng):
    build = build_for(NODES[:2], rng)
    one, two = hop_opens(build.cells, NODES[0], rng), hop_opens(build.cells, NODES[0], rng)
    assert one.ck != two.ck
    assert one.forward_seed != two.forward_seed


# ---------------------------------------------------------------- changes


BITS = st.integers(0, 8 * CELL_SIZE - 1)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), hops=st.integers(1, 7), suite=st.sampled_from(SUITES), slot=st.integers(0, 6), bit=BITS)
def test_a_flipped_bit_anywhere_is_noticed(data, hops, suite, slot, bit):
    """What arrives at any hop, on the way there or back, and at the client: any slot, any bit."""
    rng = random.Random(bit * 7 + slot)
    step = data.draw(st.integers(0, 2 * hops - 1))
    build = build_for(NODES[:hops], rng, suite)
    reach: list[int] = []
    with pytest.raises(RemoteProtocolError) as caught:
        _, answers = through(build, NODES[:hops], rng, lambda at, cells: flip(cells, slot, bit) if at == step else cells, reach)
        build.finish(answers)
    assert not isinstance(caught.value, BuildRefusedError)


@pytest.mark.parametrize("hops", range(1, 8))
def test_every_part_of_a_record_is_bound(rng, hops):
    """One bit in each field of the record that the last hop finds, as its predecessor could set it."""
    build = build_for(NODES[:hops], rng)
    cells = list(build.cells)
    for node in NODES[: hops - 1]:
        cells = list(hop_opens(cells, node, rng).cells)
    slot = build._records[-1].slot
    hop_opens(cells, NODES[hops - 1], rng)
    for first, end in ((0, 32), (32, 1120), (1120, 1128), (1128, 1136), (1136, 1208), (1208, 1224)):
        for _ in range(3):
            with pytest.raises(RemoteProtocolError):
                hop_opens(flip(cells, slot, rng.randrange(8 * first, 8 * end)), NODES[hops - 1], rng)


def test_every_part_of_an_answer_is_bound(rng):
    build = build_for(NODES[:1], rng)
    result = hop_opens(build.cells, NODES[0], rng)
    layers = build._layers[0]
    for bit in [
        rng.randrange(8 * a, 8 * b) for a, b in ((0, 32), (32, 33), (33, 41), (57, 1208), (1208, 1224)) for _ in range(3)
    ]:
        cells = [bytearray(cell) for cell in result.cells]
        slot = build._records[0].slot
        remove_layer(cells[slot], layers[0], SUITE_AEGIS128L, 0, 1, slot)
        cells[slot][bit // 8] ^= 1 << bit % 8
        apply_layer(cells[slot], layers[0], SUITE_AEGIS128L, 0, 1, slot)
        with pytest.raises(RemoteProtocolError):
            build.finish(result.answer_layer([bytes(cell) for cell in cells]))
    build.finish(result.answer_layer(result.cells))


@pytest.mark.parametrize("hops", [1, 3, 6])
@pytest.mark.parametrize("step", range(6))
def test_swapped_replaced_and_repeated_slots_are_noticed(rng, hops, step):
    """Cells exchanged, doubled, replaced by random bytes or by those of another build, at every step."""
    other = build_for(NODES[:hops], rng)
    kinds = {
        "swap": lambda cells: [cells[1], cells[0], *cells[2:]],
        "double": lambda cells: [*cells[:6], cells[0]],
        "random": lambda cells: [*cells[:3], rng.randbytes(CELL_SIZE), *cells[4:]],
        "other": lambda cells: [*cells[:5], other.cells[5], cells[6]],
        "rotate": lambda cells: [*cells[1:], cells[0]],
    }
    for kind in kinds.values():
        build = build_for(NODES[:hops], rng)

        def change(at, cells, kind=kind):
            return kind(cells) if at == step % (2 * hops) else cells

        with pytest.raises(RemoteProtocolError):
            build.finish(through(build, NODES[:hops], rng, change)[1])


@pytest.mark.parametrize("change", ["drop a hop", "no layer at the last", "answer as it was sent"])
def test_hops_that_skip_their_work_are_noticed(rng, change):
    build = build_for(NODES[:3], rng)
    cells = list(build.cells)
    results = []
    for node in NODES[:3]:
        results.append(hop_opens(cells, node, rng))
        cells = list(results[-1].cells)
    if change == "answer as it was sent":
        answers = list(build.cells)
    else:
        back = [results[2], results[0]] if change == "drop a hop" else [results[1], results[0]]
        for result in back:
            cells = result.answer_layer(cells)
        answers = cells
    with pytest.raises(RemoteProtocolError):
        build.finish(answers)


def test_a_malicious_hop_cannot_take_the_place_of_the_next(rng):
    """Hop 1 forges a record for a node of its choice and hands the build there: the client sees it."""
    build = build_for(NODES[:3], rng)
    first = hop_opens(build.cells, NODES[0], rng)
    forged = build_for([NODES[5]], rng)
    with pytest.raises(RemoteProtocolError):
        hop_opens(list(first.cells), NODES[5], rng)
    answers = hop_opens(list(forged.cells), NODES[5], rng)
    with pytest.raises(RemoteProtocolError):
        build.finish(first.answer_layer(answers.answer_layer(answers.cells)))


def test_a_failed_finish_leaves_the_build_as_it_was(rng):
    build = build_for(NODES[:3], rng)
    _, answers = through(build, NODES[:3], rng)
    for slot in range(7):
        with pytest.raises(RemoteProtocolError):
            build.finish(flip(answers, slot, rng.randrange(8 * CELL_SIZE)))
    build.finish(answers)


def test_points_of_small_order_are_refused(rng, monkeypatch):
    monkeypatch.setattr(module, "x25519_public", lambda _: bytes(32))
    build = build_for(NODES[:1], rng)
    monkeypatch.undo()
    with pytest.raises(RemoteProtocolError):
        hop_opens(build.cells, NODES[0], rng)
    build = build_for(NODES[:1], rng)
    monkeypatch.setattr(module, "x25519_public", lambda _: bytes(32))
    result = hop_opens(build.cells, NODES[0], rng)
    monkeypatch.undo()
    with pytest.raises(RemoteProtocolError):
        build.finish(result.answer_layer(result.cells))


# ---------------------------------------------------------------- what the wire shows


def test_cells_of_builds_and_answers_are_uniform(seed):
    """All cells but a hop's own record, which stands in plain form for it and is covered by the link."""
    rng = random.Random(seed)
    gathered: list[bytes] = []
    for number in range(40):
        hops = NODES[: 1 + number % 7]
        build = build_for(hops, rng, SUITES[number % 2])
        cells, results = list(build.cells), []
        for i, node in enumerate(hops):
            gathered += [cell for slot, cell in enumerate(cells) if slot != build._records[i].slot]
            results.append(hop_opens(cells, node, rng))
            cells = list(results[-1].cells)
        for result in reversed(results):
            cells = result.answer_layer(cells)
            gathered += cells
    table = np.frombuffer(b"".join(gathered), np.uint8).reshape(-1, CELL_SIZE)
    for part in (table, table[:, :32], table[:, 31:32], table[:, 32:1120], table[:, 1120:]):
        values = np.bincount(part.ravel(), minlength=256)
        expected = part.size / 256
        assert abs(float(((values - expected) ** 2 / expected).sum()) - 255) < 6 * (2 * 255) ** 0.5
        ones = int(np.unpackbits(part.ravel()).sum())
        assert abs(ones - part.size * 4) < 5 * (part.size * 2) ** 0.5
    columns = np.unpackbits(table, axis=1).mean(axis=0)
    assert abs(columns - 0.5).max() < 6 * 0.5 / len(table) ** 0.5


class Builds(RuleBasedStateMachine):
    """Builds under way through three to five hops, step by step, with tampering, replays and wrong hops in between."""

    @initialize(seed=st.integers(0, 1 << 32))
    def start(self, seed):
        self.rng = random.Random(seed)
        self.seen = [BuildReplay(allocate(seen_columns(1))["builds_seen"], 0) for _ in NODES]
        self.under_way: list[dict[str, Any]] = []
        self.past: list[tuple[int, list[bytes]]] = []

    @rule(order=st.permutations(range(7)), hops=st.integers(1, 7), suite=st.sampled_from(SUITES))
    def begin(self, order, hops, suite):
        path = order[:hops]
        build = ClientBuild([NODES[i].public for i in path], suite, self.rng.randbytes, WALL)
        self.under_way.append({"build": build, "path": path, "cells": list(build.cells), "results": [], "changed": False})

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def tamper(self, data):
        one = data.draw(st.sampled_from(self.under_way))
        if not one["changed"]:
            one["cells"] = flip(one["cells"], data.draw(st.integers(0, 6)), data.draw(st.integers(0, 8 * CELL_SIZE - 1)))
            one["changed"] = True

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def replay(self, data):
        node, cells = data.draw(st.sampled_from(self.past))
        with pytest.raises(RemoteProtocolError):
            HopBuild.open(cells, NODES[node], self.seen[node], self.rng.randbytes, WALL)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def advance(self, data):
        one = data.draw(st.sampled_from(self.under_way))
        step, hops = len(one["results"]), len(one["path"])
        if step < hops:
            node = one["path"][step]
            before = one["path"][step - 1] if step else None
            predecessor = NODES[before].public.node_id if before is not None else None
            cells = one["cells"]
            try:
                result = HopBuild.open(cells, NODES[node], self.seen[node], self.rng.randbytes, WALL, predecessor=predecessor)
            except RemoteProtocolError:
                assert one["changed"]
                self.under_way.remove(one)
                return
            self.past.append((node, cells))
            following = NODES[one["path"][step + 1]].public.node_id if step + 1 < hops else None
            assert result.next_node_id == following
            one["results"].append(result)
            one["cells"] = list(result.cells)
            return
        self.under_way.remove(one)
        answers = one["cells"]
        for result in reversed(one["results"]):
            answers = result.answer_layer(answers)
        if one["changed"]:
            with pytest.raises(RemoteProtocolError):
                one["build"].finish(answers)
            return
        circuit = one["build"].finish(answers)
        assert keys_of(circuit.hops) == keys_of(one["results"])
        self.data_passes(circuit, one["results"])

    def data_passes(self, circuit, results):
        """The client's inverse layers, then the hops' layers, give the cell back."""
        cell = bytearray(self.rng.randbytes(CELL_SIZE))
        plain = bytes(cell)
        for hop in reversed(circuit.hops):
            remove_layer(cell, layer_key(hop.forward_seed, circuit.suite), circuit.suite, 0)
        for result in results:
            apply_layer(cell, layer_key(result.forward_seed, result.suite), result.suite, 0)
        assert bytes(cell) == plain


Builds.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestBuilds = Builds.TestCase
