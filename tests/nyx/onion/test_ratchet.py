"""The layer ratchet: the chain of keys, what is erased when, which epoch a cell is of, and what a death in a move leaves."""

import random
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nyx.crypto import schedule
from nyx.crypto.scratch import new_scratch
from nyx.crypto.suites import LAYER_KEY_SIZES, SUITE_AEGIS128L, SUITE_CHACHA
from nyx.kernel import PLAIN, kernel
from nyx.onion import ratchet
from nyx.onion.ratchet import CHAIN, HOP_KEYS, MS, advance, begin_chain, follow, forget_before, mend_chain
from tests.reference.ratchet import Chain, Follower

SUITES = (SUITE_AEGIS128L, SUITE_CHACHA)
GAP = 15_000
SECOND = 1_000_000_000


@kernel("i8", CHAIN, "i8", "u1[]", "i8", "i8", "i8", "i8", "i8", "i8", "u1[]")
def move(chains: Any, chain: Any, keys: Any, block: Any, hops: Any, direction: Any, suite: Any, cells: Any, now: Any, scratch: Any) -> Any:  # fmt: skip  # noqa: E501
    return advance(chains, chain, keys, block, hops, direction, suite, 0, cells, now, scratch)


@kernel("i8", CHAIN, "i8", "i8", "u1[]", "i8", "i8", "i8", "i8", "i8", "i8", "u1[]")
def see(chains: Any, chain: Any, parity: Any, keys: Any, block: Any, hops: Any, direction: Any, suite: Any, now: Any, gap: Any, scratch: Any) -> Any:  # fmt: skip  # noqa: E501
    return follow(chains, chain, parity, keys, block, hops, direction, suite, 0, 0, now, gap, scratch)


@kernel("i8", CHAIN, "i8", "u1[]", "i8", "i8", "i8", "i8", "i8")
def forget(chains: Any, chain: Any, keys: Any, block: Any, hops: Any, direction: Any, now: Any, gap: Any) -> Any:
    return forget_before(chains, chain, keys, block, hops, direction, now, gap)


@kernel("i8", CHAIN, "i8", "u1[]", "i8", "i8", "i8")
def mend(chains: Any, chain: Any, keys: Any, block: Any, hops: Any, direction: Any) -> Any:
    return mend_chain(chains, chain, keys, block, hops, direction)


class Circuit:
    """One direction of a circuit at a node that holds the keys of `hops` hops, and the twin of each hop."""

    def __init__(self, rng: Any, suite: int, hops: int, direction: int) -> None:
        self.suite, self.hops, self.direction = suite, hops, direction
        self.block, self.chain = 2, 3
        self.chains = np.zeros(5, CHAIN)
        self.keys = np.zeros((hops + 3) * HOP_KEYS, np.uint8)
        seeds = [rng.randbytes(32) for _ in range(hops)]
        self.twins = [Chain(bytes(bytearray(seed)), suite) for seed in seeds]
        for hop, seed in enumerate(seeds):
            begin_chain(self.keys, self.block + hop, direction, seed, suite)
            assert not any(seed), "the seed is in the column alone"
        self.scratch = new_scratch()

    @property
    def _all(self) -> list[Any]:
        return [self.chains, self.chain, self.keys, self.block, self.hops, self.direction]

    @property
    def epoch(self) -> int:
        return int(self.chains[self.chain]["now"]) >> ratchet.MOVED_BITS

    def move(self, now: int = 0, cells: int = 0) -> int:
        arguments = [*self._all, self.suite, cells, now, self.scratch]
        return int(move(*arguments))

    def see(self, parity: int, now: int) -> int:
        chains, chain, *rest = self._all
        arguments = [chains, chain, parity, *rest, self.suite, now, GAP, self.scratch]
        return int(see(*arguments))

    def forget(self, now: int) -> int:
        arguments = [*self._all, now, GAP]
        return int(forget(*arguments))

    def mend(self) -> int:
        return int(mend(*self._all))

    def held(self, hop: int = 0) -> dict[str, bytes]:
        """What stands in each place, zeros left out."""
        size = LAYER_KEY_SIZES[self.suite]
        at = (self.block + hop) * HOP_KEYS + self.direction * ratchet.CHAIN_KEYS
        raw = self.keys[at : at + ratchet.CHAIN_KEYS].tobytes()
        places = {"key 0": raw[:size], "key 1": raw[176 : 176 + size], "seed 0": raw[352:384], "seed 1": raw[384:416]}
        return {name: value for name, value in places.items() if any(value)}

    def expected(self, hop: int, *epochs: int) -> dict[str, bytes]:
        """What must stand there: layer keys of these epochs, the seed of the current one."""
        twin, now = self.twins[hop], self.epoch
        return {f"key {e & 1}": twin.key(e) for e in epochs} | {f"seed {now & 1}": twin.seed(now)}

    def check(self, *epochs: int) -> None:
        for hop in range(self.hops):
            assert self.held(hop) == self.expected(hop, *epochs)
        own = [(self.block + hop) * HOP_KEYS + self.direction * ratchet.CHAIN_KEYS for hop in range(self.hops)]
        others = self.keys.copy()
        for at in own:
            others[at : at + ratchet.CHAIN_KEYS] = 0
        assert not others.any(), "another direction's or circuit's keys were written"
        assert not self.scratch.any()


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(("hops", "direction"), [(1, 0), (1, 1), (7, 0), (3, 1)])
def test_the_chain_is_the_twins_and_two_epochs_are_kept(rng, suite, hops, direction):
    circuit = Circuit(rng, suite, hops, direction)
    circuit.check(0)
    for epoch in range(1, 9):
        assert circuit.move(epoch * SECOND, cells=100 * epoch) == circuit.epoch == epoch
        circuit.check(epoch - 1, epoch)
        assert int(circuit.chains[circuit.chain]["since"]) == 100 * epoch
    used = [twin.key(e) for twin in circuit.twins for e in range(9)]
    assert len(set(used)) == 9 * hops


def test_the_plain_schedule_derives_the_same(rng):
    seed = rng.randbytes(32)
    twin = Chain(seed, SUITE_CHACHA)
    assert schedule.next_seed(schedule.next_seed(seed)) == twin.seed(2)
    assert schedule.layer_key(schedule.next_seed(seed), SUITE_CHACHA) == twin.key(1)


def test_the_epoch_before_is_erased_when_it_is_of_no_more_use(rng):
    circuit = Circuit(rng, SUITE_AEGIS128L, 2, 0)
    assert circuit.forget(10**15) == 0, "there is none before the first"
    circuit.move(100 * SECOND)
    assert circuit.forget(100 * SECOND + GAP * MS - MS) == 0
    circuit.check(0, 1)
    assert circuit.see(0, 101 * SECOND) == 0
    assert circuit.forget(100 * SECOND + GAP * MS) == 1
    circuit.check(1)
    assert circuit.forget(100 * SECOND + GAP * MS) == 0
    assert circuit.see(1, 120 * SECOND) == 1


def test_a_cell_whose_keys_are_gone_moves_nothing(rng):
    circuit = Circuit(rng, SUITE_CHACHA, 1, 1)
    circuit.move(100 * SECOND)
    circuit.chains[circuit.chain]["kept"] = 1  # as a death in the next move leaves it
    assert circuit.see(0, 101 * SECOND) == -1
    assert circuit.epoch == 1


def test_a_hop_follows_and_is_never_led_two_epochs_at_once(rng):
    circuit = Circuit(rng, SUITE_AEGIS128L, 1, 0)
    assert circuit.see(0, 5 * SECOND) == 0
    assert circuit.see(1, 5 * SECOND) == 1, "nothing is older than epoch 0, so this needs no time"
    assert circuit.see(0, 5 * SECOND + GAP * MS - MS) == 0
    assert circuit.see(0, 5 * SECOND + GAP * MS) == 2
    assert circuit.see(1, 6 * SECOND + GAP * MS) == 1
    circuit.check(1, 2)


class Hop(RuleBasedStateMachine):
    """A hop that sees cells of either parity at any time, and the twin that has seen the same."""

    @initialize(seed=st.integers(0, 1 << 32), suite=st.sampled_from(SUITES), hops=st.integers(1, 3))
    def begin(self, seed, suite, hops):
        self.circuit, self.twin, self.now = Circuit(random.Random(seed), suite, hops, 0), Follower(GAP), 1000

    @rule(parity=st.integers(0, 1))
    def cell(self, parity):
        found = self.circuit.see(parity, self.now * MS)
        expected = self.twin.cell(parity, self.now)
        assert found == (-1 if expected is None else expected)

    @rule(ms=st.sampled_from([1, 1000, GAP - 1, GAP, 30_000]))
    def time_passes(self, ms):
        self.now += ms

    @rule()
    def look(self):
        self.circuit.forget(self.now * MS)
        self.twin.forget(self.now)

    @rule()
    def die(self):
        assert self.circuit.mend() == 0, "nothing is torn between two calls"

    @invariant()
    def keys_are_right(self):
        epoch = self.twin.epoch
        self.circuit.check(*([epoch - 1] if self.twin.before_opens else []), epoch)


Hop.TestCase.settings = settings(
    max_examples=25 if PLAIN else 60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
test_hop = Hop.TestCase


class KilledError(BaseException):
    """SIGKILL, as far as the columns can tell."""


def killed(circuit: Circuit, after: int, work: Any) -> bool:
    """Whether `work` was killed before its line number `after` in the ratchet."""
    left = after

    def trace(frame: Any, event: str, _arg: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != ratchet.__file__:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KilledError
        return trace

    sys.settrace(trace)
    try:
        work()
    except KilledError:
        circuit.scratch[:] = 0  # the next life has another
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.skipif(not PLAIN, reason="compiled code cannot be stopped between two lines; make test runs it uncompiled too")
@pytest.mark.parametrize("what", ["move", "forget"])
def test_a_death_before_any_line_leaves_an_epoch_whole(rng, what):
    deaths = 0
    while True:
        circuit = Circuit(rng, SUITE_CHACHA, 2, 1)
        circuit.move(100 * SECOND)
        circuit.forget(200 * SECOND)
        if what == "move":
            dead = killed(circuit, deaths, lambda circuit=circuit: circuit.move(200 * SECOND))
        else:
            circuit.move(200 * SECOND)
            dead = killed(circuit, deaths, lambda circuit=circuit: circuit.forget(300 * SECOND))
        circuit.mend()
        assert circuit.mend() == 0
        epoch, kept = circuit.epoch, int(circuit.chains[circuit.chain]["kept"])
        assert epoch in {1, 2}
        circuit.check(*range(kept, epoch + 1))
        later = 400 * SECOND
        assert circuit.see(1 - epoch % 2, later) == epoch + 1
        circuit.check(epoch, epoch + 1)
        if not dead:
            break
        deaths += 1
    assert deaths > (20 if what == "move" else 8)


def test_the_epoch_stands_in_one_word(rng):
    circuit = Circuit(rng, SUITE_AEGIS128L, 1, 0)
    for epoch in range(1, 4):
        circuit.move(epoch * 10**15)
        assert int(circuit.chains[circuit.chain]["now"]) == epoch << 40 | epoch * 10**9
