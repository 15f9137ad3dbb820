"""A transcript of what the kernels do to seeded inputs, one digest a line: equal in plain and in compiled mode.

`python -m tests.reference.transcript SEED` prints it for the mode that NYX_KERNELS names. Unlike its neighbours this is no
twin; it runs the product's own kernels, which is the point.
"""

import hashlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from nyx.columns import allocate
from nyx.crypto.scratch import new_scratch
from nyx.kernel import PLAIN
from nyx.link.seal import open_packets, seal_packets
from nyx.link.session import SESSION_LIVE, session_columns
from nyx.onion.layer import layer_batch, unlayer_batch
from nyx.wire.geometry import PACKET_CELL, PACKET_SIZE

ROWS, PACKETS, ROUNDS = 4, 24, 6


def _random(rng: random.Random, size: int) -> Any:
    return np.frombuffer(bytearray(rng.randbytes(size)), np.uint8)


def _digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def links(rng: random.Random) -> Iterator[str]:
    """Seal and open with damage, repetition, reordering and unknown rows, both suites; digests of packets, codes and rows."""
    ends = allocate(session_columns(ROWS)), allocate(session_columns(ROWS))
    for row in range(ROWS):
        secrets = [_random(rng, n) for n in (32, 32, 16, 16, 12, 12)]
        for end, columns in enumerate(ends):
            mine = secrets if end == 0 else [secrets[i ^ 1] for i in range(6)]
            session = columns["sessions"][row]
            fields = ("send_key", "receive_key", "send_mask", "receive_mask", "local_cid", "peer_cid")
            for field, value in zip(fields, mine, strict=True):
                session[field] = value
            session["suite"], session["initiator"], session["state"] = 1 + row % 2, 1 - end, SESSION_LIVE
            session["rekey_in"] = session["rekey_out"] = row
    ends[0]["sessions"][3]["send_next"] = (1 << 32) - 40
    ends[1]["sessions"][3]["received_next"] = (1 << 32) - 40
    scratch = new_scratch()
    for now in range(1, ROUNDS + 1):
        pool = _random(rng, PACKETS * PACKET_SIZE)
        slots = np.array(rng.sample(range(PACKETS), PACKETS), np.int64)
        rows = np.array([rng.randrange(-1, ROWS) for _ in range(PACKETS)], np.int64)
        wiped = seal_packets(pool, slots, rows, PACKETS, ends[0]["sessions"], now, scratch)
        yield f"seal {wiped} {_digest(pool, ends[0]['sessions'], scratch)}"
        for _ in range(rng.randrange(6)):
            pool[rng.randrange(pool.size)] ^= 1 << rng.randrange(8)
        twice = pool.copy()
        for packets in (pool, twice):
            order = np.array(rng.sample(range(PACKETS), PACKETS), np.int64)
            codes = np.zeros(PACKETS, np.int64)
            windows = ends[1]["session_windows"]
            good = open_packets(packets, slots[order], rows[order], PACKETS, ends[1]["sessions"], windows, codes, now, scratch)
            clear = packets.reshape(PACKETS, PACKET_SIZE)[slots[order][codes == 0]]
            yield f"open {good} {_digest(clear, codes, ends[1]['sessions'], windows, scratch)}"


def layers(rng: random.Random) -> Iterator[str]:
    """Layers and inverses of both suites, all kinds of tweaks."""
    scratch = new_scratch()
    for _ in range(ROUNDS):
        pool, keys = _random(rng, PACKETS * PACKET_SIZE), _random(rng, PACKETS * 176)
        ats = np.arange(PACKETS, dtype=np.int64) * PACKET_SIZE + PACKET_CELL
        key_ats = np.arange(PACKETS, dtype=np.int64) * 176
        columns = [
            np.array([rng.randrange(low, high) for _ in range(PACKETS)], np.int64)
            for low, high in ((1, 3), (0, 2), (0, 4), (0, 7), (0, 1 << 40))
        ]
        runs: list[Any] = [layer_batch, unlayer_batch, unlayer_batch]
        for run in runs:
            run(pool, ats, key_ats, *columns, PACKETS, keys, scratch)
            yield f"{'layer' if run is layer_batch else 'unlayer'} {_digest(pool, scratch)}"


def transcript(seed: int) -> list[str]:
    """Every line, in order."""
    rng = random.Random(seed)
    return [*links(rng), *layers(rng)]


if __name__ == "__main__":
    print("plain" if PLAIN else "compiled")
    print("\n".join(transcript(int(sys.argv[1]))))
