"""Every fuzz target on its corpus and on a few hundred changed inputs, without Atheris; `make fuzz` goes deeper."""

import random
from collections.abc import Sequence

import pytest

from tests.fuzz import corpus
from tests.fuzz.mutate import inputs
from tests.fuzz.targets import TARGETS, Target, load

COUNT = 300
DEAR = {
    "build_hop": 80,
    "build_client": 80,
    "refresh_hop": 80,
    "refresh_client": 80,
    "channel": 150,
    "responder": 100,
}  # a twin's layers, or many steps, in each input
LOADED = {name: load(name) for name in TARGETS}  # here, as kernels that are not compiled yet take longer than a test may


def attack(target: Target, data: Sequence[bytes], rng: random.Random, count: int) -> tuple[int, int]:
    """How many inputs were taken and refused; an input that breaks the target is in the error."""
    outcomes = [0, 0]
    for given in [*data, *inputs(data, rng, count)]:
        try:
            outcomes[bool(target(given))] += 1
        except Exception as error:
            error.add_note(f"input: bytes.fromhex({given.hex()!r})")
            raise
    return outcomes[1], outcomes[0]


@pytest.mark.parametrize("name", TARGETS)
def test_targets_hold(name: str, rng: random.Random) -> None:
    target, kept = LOADED[name], corpus.kept(name)
    taken = [data for data in kept if target(data)]
    assert taken, "no kept input is taken any more: the corpus reaches nothing behind the first check"
    assert len(taken) < len(kept), "no kept input is refused"
    attack(target, kept, rng, DEAR.get(name, COUNT))


def test_no_corpus_without_its_target() -> None:
    assert {folder.name for folder in corpus.FOLDER.iterdir()} == set(TARGETS)
    assert max(len(data) for name in TARGETS for data in corpus.kept(name)) <= 16384


def test_an_input_that_breaks_a_target_is_told(rng: random.Random) -> None:
    def fragile(data: bytes) -> bool:
        return data.index(b"n") >= 0

    with pytest.raises(ValueError) as caught:
        attack(fragile, [b"nyx"], rng, COUNT)
    note = caught.value.__notes__[0]
    assert b"n" not in bytes.fromhex(note.split("'")[1])


def test_inputs_repeat_from_their_seed() -> None:
    first, second = (list(inputs([b"abc", b"0123456789"], random.Random(7), 50)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 40
