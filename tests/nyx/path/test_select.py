"""Paths: every rule holds in every network, choices follow the weights, and impossible demands end quickly."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nyx.path.select import NoPathError, conflict, select_path, shares
from tests.nyx.path.networks import Member, entropy, network, spread

MEMBERS = st.lists(
    st.builds(
        Member,
        st.builds("{}.{}.0.{}".format, st.sampled_from([9, 11]), st.integers(0, 3), st.integers(1, 9)),
        exit=st.booleans(),
        family=st.sampled_from(["", "", "a", "b"]),
        weight=st.integers(0, 1000),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60)
@given(MEMBERS, st.integers(1, 7), st.integers(0, 2**32))
def test_every_path_keeps_every_rule(members, hops, seed):
    snapshot = network(*members)
    try:
        path = select_path(snapshot, hops, entropy(seed))
    except NoPathError:
        return
    assert len(path) == len({n.id for n in path}) == hops
    assert path[-1].exit
    assert all(n.weight > 0 for n in path)
    families = [n.descriptor.family for n in path if n.descriptor.family]
    assert len(families) == len(set(families))
    networks = [n.addresses[0][0].split(".")[:2] for n in path]
    assert len(networks) == len(set(map(tuple, networks)))


def test_a_path_is_found_whenever_there_is_one():
    members = [
        Member("10.0.0.1"),
        Member("10.0.0.2", exit=False),
        Member("10.1.0.1", exit=False),
        Member("10.2.0.1", exit=False, family="f"),
    ]
    members.append(Member("10.3.0.1", exit=False, family="f"))
    snapshot = network(*members)
    for seed in range(50):
        path = select_path(snapshot, 3, entropy(seed))
        assert path[-1].alias in {n.alias for n in snapshot.nodes if n.exit}
    with pytest.raises(NoPathError):
        select_path(snapshot, 4, entropy())


def test_the_guard_stands_first_and_is_never_the_exit():
    snapshot = network(*spread(5))
    guard = snapshot.nodes[2].id
    for seed in range(30):
        path = select_path(snapshot, 3, entropy(seed), guard)
        assert path[0].id == guard
        assert path[-1].id != guard
    assert len(select_path(snapshot, 1, entropy(), guard)) == 1
    with pytest.raises(NoPathError, match="guard"):
        select_path(snapshot, 3, entropy(), bytes(32))
    with pytest.raises(NoPathError, match="guard"):
        select_path(snapshot, 3, entropy(), guard, {guard})


def test_excluded_nodes_stay_out():
    snapshot = network(*spread(5))
    out = {snapshot.nodes[0].id, snapshot.nodes[1].id}
    for seed in range(30):
        assert not out & {n.id for n in select_path(snapshot, 3, entropy(seed), exclude=out)}


def test_loopback_only_where_test_networks_are_allowed():
    snapshot = network(*[Member("127.0.0.1") for _ in range(4)])
    with pytest.raises(NoPathError, match="0 can be used"):
        select_path(snapshot, 3, entropy())
    assert len(select_path(snapshot, 3, entropy(), allow_loopback=True)) == 3


@pytest.mark.parametrize("hops", [-1, 0, 8])
def test_the_number_of_hops_is_bounded(hops):
    with pytest.raises(NoPathError):
        select_path(network(*spread(2)), hops, entropy())


def test_no_exit_no_path():
    with pytest.raises(NoPathError):
        select_path(network(*spread(4, exit=False)), 3, entropy())


def test_networks_and_families_conflict():
    nodes = network(
        Member("10.1.0.1"), Member("10.1.255.1"), Member("10.2.0.1", family="f"), Member("10.3.0.1", family="f"),
        Member("2001:db8:1::1"), Member("2001:db8:2::1"), Member("2001:db9::1"), Member("::1"),
    ).nodes  # fmt: skip
    by_alias = {n.alias: n for n in nodes}
    found = {(a, b) for a in range(8) for b in range(a, 8) if conflict(by_alias[f"node-{a}"], by_alias[f"node-{b}"])}
    assert found == {(i, i) for i in range(8)} | {(0, 1), (2, 3), (4, 5)}


def test_draws_follow_the_weights_up_to_the_operators_share():
    members = [
        *spread(200, weight=100),
        Member("10.250.0.1", weight=10_000, family="big"),
        Member("10.251.0.1", weight=30_000, family="big"),
    ]
    nodes = network(*members).nodes
    weights = shares(nodes)
    total = sum(weights.values())
    big = {n.id for n in nodes if n.descriptor.family == "big"}
    assert sum(weights[i] for i in big) <= total / 100 * 1.001
    assert sum(weights[i] for i in big) >= total / 100 * 0.97
    small, large = sorted(weights[i] for i in big)
    assert 2.99 < large / small < 3.01


def test_below_a_hundred_operators_shares_are_equal():
    nodes = network(
        Member("10.1.0.1", weight=1), Member("10.2.0.1", weight=1000, family="f"), Member("10.3.0.1", weight=1000, family="f")
    ).nodes
    weights = shares(nodes)
    totals: Counter[str] = Counter()
    for node in nodes:
        totals[node.descriptor.family] += weights[node.id]
    assert abs(totals[""] - totals["f"]) <= 2


def test_last_hops_are_drawn_evenly_from_equal_exits():
    snapshot = network(*spread(4))
    source = random.Random(3).randbytes
    counts = Counter(select_path(snapshot, 2, source)[-1].id for _ in range(2000))
    assert all(400 < count < 600 for count in counts.values())


@pytest.mark.timeout(20)
def test_a_network_that_cannot_serve_is_given_up_in_bounded_time():
    members = [Member(f"10.{i % 4}.{i}.1", exit=i == 0) for i in range(120)]
    with pytest.raises(NoPathError):
        select_path(network(*members), 7, entropy())


@settings(max_examples=40)
@given(MEMBERS, st.integers(1, 4), st.integers(0, 2**32))
def test_avoided_sets_are_never_chosen_and_all_others_can_be(members, hops, seed):
    """Every set that a path can be is found by avoiding those found before; then there is none."""
    snapshot = network(*members)
    avoid: set[frozenset[bytes]] = set()
    while len(avoid) < 20:
        try:
            found = frozenset(node.id for node in select_path(snapshot, hops, entropy(seed), avoid=avoid))
        except NoPathError:
            break
        assert found not in avoid
        avoid.add(found)
    if len(avoid) < 20:
        assert all(
            frozenset(node.id for node in select_path(snapshot, hops, entropy(other))) in avoid for other in range(5) if avoid
        )


def test_an_avoided_set_is_avoided_in_any_order_and_takes_no_other_with_it():
    snapshot = network(*spread(4))
    guard = snapshot.nodes[0].id
    every = {frozenset(n.id for n in select_path(snapshot, 3, entropy(seed), guard)) for seed in range(200)}
    assert len(every) > 1
    for avoided in every:
        left = {frozenset(n.id for n in select_path(snapshot, 3, entropy(s), guard, avoid=[avoided])) for s in range(200)}
        assert left == every - {avoided}
