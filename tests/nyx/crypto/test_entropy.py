"""The random stream of a process: against a plain twin, and what it leaves behind."""

import random

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st

from nyx.crypto.entropy import STRETCH, RandomStream


class Twin:
    """The same from `cryptography`: (key, stretch) = ChaCha20(key), forwards."""

    def __init__(self, source):
        self.source, self.key = source, bytes(32)
        self.renew()

    def renew(self):
        self.key = bytes(a ^ b for a, b in zip(self.key, self.source(32), strict=True))
        self.turn()

    def turn(self):
        stream = Cipher(algorithms.ChaCha20(self.key, bytes(16)), None).encryptor().update(bytes(32 + STRETCH))
        self.key, self.left = stream[:32], stream[32:]

    def __call__(self, n):
        out = b""
        while len(out) < n:
            if not self.left:
                self.turn()
            taken = self.left[: n - len(out)]
            out, self.left = out + taken, self.left[len(taken) :]
        return out


@given(st.integers(0, 1 << 64), st.lists(st.one_of(st.none(), st.integers(0, 3 * STRETCH)), max_size=30))
def test_it_is_the_stream_of_the_specification(seed, steps):
    """None: a second has passed."""
    mine, twin = RandomStream(random.Random(seed).randbytes), Twin(random.Random(seed).randbytes)
    for step in steps:
        if step is None:
            mine.renew()
            twin.renew()
        else:
            assert mine(step) == twin(step)


def test_nothing_that_was_handed_out_stays(rng):
    stream = RandomStream(rng.randbytes)
    for size in (1, 12, 32, 500, 5000):
        given_out = stream(size)
        state = stream._state.tobytes()
        assert all(given_out[at : at + 8] not in state for at in range(0, size - 8, 8))


def test_two_processes_and_two_seconds_share_nothing(rng):
    one, other = RandomStream(rng.randbytes), RandomStream(rng.randbytes)
    blocks = [one(32), other(32), one(32)]
    one.renew()
    blocks.append(one(32))
    assert len(set(blocks)) == 4


def test_a_source_that_fails_takes_nothing_away():
    stream, never = RandomStream(random.Random(1).randbytes), RandomStream(random.Random(1).randbytes)
    stream._source = bytes
    stream.renew()
    assert stream(32) != never(32)
    stream.renew()
    assert stream(32) != bytes(32)
