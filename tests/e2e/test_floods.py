"""Floods at the guard of a running circuit: it goes on, strangers who mean it get their links, and memory stays."""

import pytest

from bench.attack import flooded

STOPPED_BY = {
    "junk": "dropped_forged_handshake",
    "forgeries": "dropped_no_cookie",
    "proven": "dropped_over_quota",
    "half_builds": "dropped_overflow",
}
PLAN = flooded.Plan(rate=6000, addresses=1000, seconds=1.0, rounds=1, links=5, builds=500, warm=0)
GROWN = 16 << 10  # KiB


@pytest.fixture(scope="module")
def floods() -> dict[str, flooded.Found]:
    return {found.kind: found for found in flooded.run(1, PLAN)}


@pytest.mark.parametrize("kind", flooded.KINDS)
def test_a_flood_stops_nobody(floods: dict[str, flooded.Found], kind: str) -> None:
    found = floods[kind]
    assert found.sent > 500
    assert found.drops[STOPPED_BY[kind]] > 100
    assert (len(found.links), found.failed) == (PLAN.links, 0)
    assert min(found.under) > 0
    assert found.grown_kib <= GROWN
