"""Latencies in buckets that grow with the value: 32 to each power of two, so that none is wider than 3.2 % of what it holds."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_PARTS: Final = 32
_POWERS: Final = 40  # up to 2^40 ns, 18 minutes
BUCKETS: Final = _PARTS * _POWERS

Words = NDArray[np.int64]


def buckets(values: Words) -> Words:
    """The bucket of each value in ns."""
    mantissa, exponent = np.frexp(np.maximum(values, 1).astype(np.float64))  # value = mantissa * 2^exponent, mantissa in [0.5, 1)
    part = ((mantissa - 0.5) * 2 * _PARTS).astype(np.int64)
    found: Any = np.clip((exponent.astype(np.int64) - 1) * _PARTS + part, 0, BUCKETS - 1)
    return found  # type: ignore[no-any-return]


def upper(bucket: int) -> float:
    """The bound that all values of a bucket are below, in ns."""
    power, part = divmod(bucket, _PARTS)
    return float(2**power * (1 + (part + 1) / _PARTS))


def percentile(counts: Words, part: float) -> float:
    """The bound below which this part of all values lies, in ns; 0 of none."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    wanted = max(1, int(np.ceil(part * total)))
    return upper(int(np.searchsorted(np.cumsum(counts), wanted)))
