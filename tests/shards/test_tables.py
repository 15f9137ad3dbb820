"""The lookup table against a dictionary."""

import random

import pytest

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
