"""What a malicious relay does to cells that it passes on, and what comes again: nothing is delivered, nothing can be told."""

import pytest

from bench.attack import cells, replays
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA


@pytest.mark.parametrize(
    ("hops", "share", "suite"), [(3, 1.0, SUITE_AEGIS128L), (7, 0.2, SUITE_AEGIS128L), (3, 0.2, SUITE_CHACHA)]
)
def test_a_flipped_bit_looks_like_any_cell_to_the_next_hop_and_is_never_delivered(hops, share, suite, seed):
    found = cells.flips(hops, seed, share=share, suite=suite)
    assert found.attacked == found.twins == 2 * hops * int(share * cells.BITS)
    assert found.outcomes == {"passed"}
    assert found.delivered == found.distinguishable == 0


@pytest.mark.parametrize("hops", [2, 3, 7])
def test_cells_exchanged_spliced_doubled_or_in_another_order(hops, seed):
    found = cells.mixtures(hops, seed, count=20)
    for name, one in found.items():
        assert one.attacked > 0, name
        assert one.delivered == one.distinguishable == 0, name
    for name in ("doubled", "re-ordered"):
        assert found[name].twins == 2 * hops * 2 * 20, f"{name}: what is whole arrives once"


def test_equal_records_are_different_behind_an_honest_hop(seed):
    found = cells.equal_records(seed)
    assert found.attacked == 42
    assert found.alike == 0


def test_nothing_that_comes_again_is_accepted(seed):
    found = replays.replays(60_000, seed, buckets=1 << 16)
    assert len(found.sent) == 5
    assert all(sent > 4_000 for sent in found.sent.values())
    assert not any(found.accepted.values())
    assert sum(found.drops.values()) == sum(found.sent.values())
    assert found.fresh > 50_000
    assert found.dropped_fresh == 0
