"""The lookup table against a dictionary."""

import random

import pytest

from nyx.errors import InternalError
from shards.tables import Table


@pytest.mark.parametrize("seed", range(4))
def test_table_agrees_with_a_dictionary(seed):
    rng = random.Random(seed)
    table = Table(300, rng.getrandbits(64))
    model: dict[int, int] = {}
    for step in range(4000):
        key = rng.randrange(-250, 250) if rng.random() < 0.95 else rng.getrandbits(63)
        if rng.random() < 0.5:
            if len(model) < 300 or key in model:
                table.put(key, step)
                model[key] = step
        else:
            table.drop(key)
            model.pop(key, None)
        probe = rng.randrange(-250, 250)
        assert table.find(probe) == model.get(probe, -1)
        assert table.count == len(model)


def test_a_full_table_says_so_and_keeps_what_it_has():
    table = Table(8, 99)
    for key in range(8):
        table.put(key, key)
    with pytest.raises(OverflowError):
        table.put(100, 1)
    assert [table.find(k) for k in range(8)] == list(range(8))


@pytest.mark.parametrize("harm", ["lost", "foreign", "moved", "count", "value"])
def test_a_table_that_contradicts_the_rows_is_found(harm):
    table, content = Table(8, 12345), {5: 1, 6: 2, 1 << 40: 3}
    for key, value in content.items():
        table.put(key, value)
    table.check_invariants(content)
    if harm == "lost":
        table.drop(5)
    elif harm == "foreign":
        table.put(7, 9)
    elif harm == "moved":
        table.keys[:], table.values[:] = table.keys[::-1].copy(), table.values[::-1].copy()
    elif harm == "count":
        table.count += 1
    else:
        content[5] = 2
    with pytest.raises(InternalError):
        table.check_invariants(content)
