"""A build through 1 to 7 hops: keys agree, each hop learns its neighbours alone, and no change goes unnoticed."""

import numpy as np
import pytest

from nyx.crypto.keys import StaticKeys
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA
from nyx.errors import RemoteProtocolError
from nyx.onion.build import ClientBuild, HopBuild
from nyx.onion.seen import KEPT, BuildReplay, seen_columns
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE

WALL = 1_800_000_000


@pytest.fixture(scope="module")
def nodes():
    import random

    source = random.Random(7)
    return [StaticKeys.generate(source.randbytes) for _ in range(7)]


def fresh():
    (column,) = seen_columns(1)
    return BuildReplay(np.zeros(column.length, column.dtype), 0)


def through(build, nodes, rng, change=None):
    """Run a build over all hops; `change(step, cells)` may alter the cells between two hops. Returns results and answers."""
    cells, results = list(build.cells), []
    for step, node in enumerate(nodes):
        if change:
            cells = change(step, cells)
        results.append(HopBuild.open(cells, node, fresh(), rng.randbytes, WALL))
        cells = list(results[-1].cells)
    for step, result in enumerate(reversed(results), len(nodes)):
        if change:
            cells = change(step, cells)
        cells = result.answer_layer(cells)
    return results, cells


@pytest.mark.parametrize("suite", [SUITE_CHACHA, SUITE_AEGIS128L])
@pytest.mark.parametrize("hops", range(1, 8))
def test_keys_agree_and_a_hop_learns_its_successor_alone(nodes, rng, suite, hops):
    build = ClientBuild([n.public for n in nodes[:hops]], suite, rng.randbytes, WALL)
    results, answers = through(build, nodes[:hops], rng)
    circuit = build.finish(answers)
    assert circuit.suite == suite
    assert [(h.forward_key, h.backward_key, h.ck) for h in circuit.hops] == [
        (r.forward_key, r.backward_key, r.ck) for r in results
    ]
    assert len({h.forward_key for h in circuit.hops} | {h.backward_key for h in circuit.hops}) == 2 * hops
    ids = [n.public.node_id for n in nodes[1:hops]]
    assert [r.next_node_id for r in results] == [*ids, None]


@pytest.mark.parametrize("step", range(6))
def test_a_flipped_bit_anywhere_on_the_way_is_noticed(nodes, rng, step):
    """Three hops: steps 0 to 2 change what arrives at a hop, 3 to 5 what arrives on the way back; every slot, sampled bits."""
    for slot in range(BUILD_SLOTS):
        bit = rng.randrange(8 * CELL_SIZE)

        def change(at, cells, slot=slot, bit=bit):
            if at != step:
                return cells
            changed = bytearray(cells[slot])
            changed[bit // 8] ^= 1 << bit % 8
            return [*cells[:slot], bytes(changed), *cells[slot + 1 :]]

        build = ClientBuild([n.public for n in nodes[:3]], SUITE_AEGIS128L, rng.randbytes, WALL)
        with pytest.raises(RemoteProtocolError):
            build.finish(through(build, nodes[:3], rng, change)[1])


def test_a_repeated_record_is_refused(nodes, rng):
    build, seen = ClientBuild([nodes[0].public], SUITE_CHACHA, rng.randbytes, WALL), fresh()
    HopBuild.open(build.cells, nodes[0], seen, rng.randbytes, WALL)
    with pytest.raises(RemoteProtocolError, match="repeated"):
        HopBuild.open(build.cells, nodes[0], seen, rng.randbytes, WALL)


@pytest.mark.parametrize("offset", [601, -121])
def test_an_old_or_future_record_is_refused(nodes, rng, offset):
    build = ClientBuild([nodes[0].public], SUITE_CHACHA, rng.randbytes, WALL)
    with pytest.raises(RemoteProtocolError):
        HopBuild.open(build.cells, nodes[0], fresh(), rng.randbytes, WALL + offset)


def test_a_record_from_before_the_set_was_made_is_refused(nodes, rng):
    build = ClientBuild([nodes[0].public], SUITE_CHACHA, rng.randbytes, WALL)
    with pytest.raises(RemoteProtocolError):
        HopBuild.open(build.cells, nodes[0], fresh(), rng.randbytes, WALL, started=WALL + 1)


def test_a_build_that_leads_to_the_predecessor_or_to_the_hop_itself_is_refused(nodes, rng):
    back = ClientBuild([nodes[0].public, nodes[1].public], SUITE_CHACHA, rng.randbytes, WALL)
    with pytest.raises(RemoteProtocolError, match="back"):
        HopBuild.open(back.cells, nodes[0], fresh(), rng.randbytes, WALL, predecessor=nodes[1].public.node_id)
    itself = ClientBuild([nodes[0].public, nodes[0].public], SUITE_CHACHA, rng.randbytes, WALL)
    with pytest.raises(RemoteProtocolError, match="back"):
        HopBuild.open(itself.cells, nodes[0], fresh(), rng.randbytes, WALL)


def test_a_refusal_is_authenticated_and_looks_like_an_answer(nodes, rng):
    build = ClientBuild([nodes[0].public], SUITE_CHACHA, rng.randbytes, WALL)
    result = HopBuild.open(build.cells, nodes[0], fresh(), rng.randbytes, WALL, decide=lambda _suite, _last: 4)
    with pytest.raises(RemoteProtocolError, match="status 4"):
        build.finish(result.answer_layer(result.cells))


def test_a_hop_that_is_not_on_the_path_finds_nothing(nodes, rng):
    build = ClientBuild([nodes[0].public], SUITE_CHACHA, rng.randbytes, WALL)
    with pytest.raises(RemoteProtocolError, match="no record"):
        HopBuild.open(build.cells, nodes[1], fresh(), rng.randbytes, WALL)


def test_workers_share_what_they_have_seen_and_a_new_life_keeps_it(rng):
    (column,) = seen_columns(2)
    words = np.zeros(column.length, column.dtype)
    one, two = BuildReplay(words, 0), BuildReplay(words, 1)
    values = [rng.randbytes(32) for _ in range(200)]
    for i, x in enumerate(values):
        assert not (one, two)[i % 2].seen(x, WALL, WALL)
    for x in values:
        assert one.seen(x, WALL, WALL)
        assert two.seen(x, WALL, WALL)
        assert BuildReplay(words, 0).seen(x, WALL, WALL)
    assert not one.seen(values[0], WALL + 2 * KEPT, WALL + 2 * KEPT), "forgotten once its age alone refuses it"


def test_cells_of_a_build_are_uniform(nodes, rng):
    """Bytes 32 on of every slot but the record of the first hop, which is masked by the link alone."""
    counts = np.zeros(256, np.int64)
    for _ in range(60):
        build = ClientBuild([n.public for n in nodes[:5]], SUITE_AEGIS128L, rng.randbytes, WALL)
        cells = list(build.cells)
        cells = list(HopBuild.open(cells, nodes[0], fresh(), rng.randbytes, WALL).cells)
        counts += np.bincount(np.frombuffer(b"".join(cells), np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 400
