"""Scratch: the one small vector in which kernels keep keystream, tags and nonces while they work on a packet.

Every worker (or test) has its own. Whoever leaves a secret in it wipes it before returning, so between two kernel calls
the scratch is all zeros but for nonces and tweaks, which are not secret. Offsets in bytes, each part 64-byte aligned.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.wire.geometry import CELL_RIGHT_SIZE

SCRATCH_STREAM: Final = 0  # keystream of the layer's middle pass
SCRATCH_TAG: Final = -(-CELL_RIGHT_SIZE // 64) * 64  # 32 bytes: tag of a hash pass
SCRATCH_SHORT: Final = SCRATCH_TAG + 64  # 32 bytes: output of a short hash, or the stream's key
SCRATCH_MASK: Final = SCRATCH_SHORT + 64  # 8 bytes: header mask
SCRATCH_NONCE: Final = SCRATCH_MASK + 64  # 32 bytes; public
SCRATCH_TWEAK: Final = SCRATCH_NONCE + 64  # 16 bytes; public
SCRATCH_CONSTANT: Final = SCRATCH_TWEAK + 64  # 16 bytes: HChaCha20's constant with the tweak; public
SCRATCH_SIZE: Final = SCRATCH_CONSTANT + 64


def new_scratch() -> NDArray[np.uint8]:
    """A fresh scratch of zeros."""
    return np.zeros(SCRATCH_SIZE, np.uint8)
