"""Token buckets of sources: rate, burst, what is one source, and that the table does not grow."""

import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.columns import allocate
from shards.address import pack
from shards.quotas import BURST, RATE, SECOND, Quotas, quota_columns, source_of


@pytest.fixture
def words():
    return allocate(quota_columns())["quotas"]


def taken(quotas, source, times, now):
    return sum(quotas.take(source, now) for _ in range(times))


def test_a_source_has_a_burst_then_its_rate_then_its_burst_again(words):
    quotas, now = Quotas(words, bytes(16)), 10 * SECOND
    assert taken(quotas, b"abc", 1000, now) == BURST
    assert taken(quotas, b"abc", 1000, now + SECOND) == RATE
    assert taken(quotas, b"abc", 1000, now + 100 * SECOND) == BURST
    assert taken(quotas, b"abd", 1000, now + 100 * SECOND) == BURST


def test_a_new_life_goes_on_with_the_same_buckets(words):
    assert taken(Quotas(words, bytes(16)), b"abc", 1000, SECOND) == BURST
    assert not Quotas(words, bytes(16)).take(b"abc", SECOND)


@given(st.lists(st.binary(min_size=3, max_size=8), max_size=50), st.integers(0, 1 << 60))
def test_no_bucket_is_ever_further_ahead_than_a_burst(sources, now):
    words = allocate(quota_columns())["quotas"]
    quotas = Quotas(words, bytes(16))
    for source in sources:
        quotas.take(source, now)
    assert int(words.max()) <= now + BURST * SECOND // RATE
    assert np.count_nonzero(words) <= 2 * len(sources)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_source_is_what_one_subscriber_has(family):
    one, near, far = (source_of(pack(host, 1, family)) for host in ("10.1.2.3", "10.1.2.200", "10.1.3.3"))
    assert one == near != far
    if family == socket.AF_INET6:
        one, near, far = (source_of(pack(host, 1, family)) for host in ("2001:db8:1:2::1", "2001:db8:1:2:9::", "2001:db8:1:3::1"))
        assert one == near != far
