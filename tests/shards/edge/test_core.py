"""Deadlines against a plain model."""

from hypothesis import given
from hypothesis import strategies as st

from shards.edge.contract import NEVER
from shards.edge.core import Deadlines


@given(st.lists(st.tuples(st.sampled_from(["set", "clear", "expire"]), st.integers(0, 5), st.integers(0, 50))))
def test_deadlines(steps):
    deadlines, model = Deadlines(), dict[int, int]()
    for verb, key, at in steps:
        if verb == "set":
            deadlines.set(key, at)
            model[key] = at
        elif verb == "clear":
            deadlines.clear(key)
            model.pop(key, None)
        else:
            gone = sorted((t, k) for k, t in model.items() if t <= at)
            assert deadlines.expired(at) == [k for _, k in gone]
            for _, k in gone:
                del model[k]
        assert deadlines.next <= min(model.values(), default=NEVER)
        assert (deadlines.next == NEVER) == (not model)
