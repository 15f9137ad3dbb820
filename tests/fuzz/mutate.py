"""Inputs without coverage: a corpus, changed as libFuzzer changes one, from a seeded generator, so that a run repeats."""

import random
from collections.abc import Iterator, Sequence
from typing import Final

LONGEST: Final = 1 << 14  # bytes of an input
_EDGES: Final = (0, 1, 0x20, 0x7F, 0x80, 0xFF)
_WORDS: Final = (
    b"\xff\xff",
    b"\x00\x00",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"1e999",
    b"-1",
    b"\xf4\x90\x80\x80",
    b"[" * 200,
    b"9" * 5000,
)


def inputs(corpus: Sequence[bytes], rng: random.Random, count: int) -> Iterator[bytes]:
    """So many inputs: most are one of the corpus with a few changes, some are random bytes."""
    for _ in range(count):
        if rng.random() < 0.1:
            yield rng.randbytes(rng.choice((0, 1, 3, 16, 300, 1280)))
            continue
        data = bytearray(rng.choice(corpus))
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            _change(data, corpus, rng)
        yield bytes(data[:LONGEST])


def _change(data: bytearray, corpus: Sequence[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    size = min(rng.choice((1, 1, 2, 4, 16, 100)), len(data) - at)
    match rng.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(data):
            data[at] = rng.choice(_EDGES)
        case 2:
            data[at:at] = rng.choice(_WORDS)
        case 3:
            data[at : at + size] = rng.randbytes(size)
        case 4:
            del data[at : at + size]
        case 5:
            data[at:at] = data[at : at + size]
        case 6:
            other = rng.choice(corpus)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        case _:
            data += rng.randbytes(1)
