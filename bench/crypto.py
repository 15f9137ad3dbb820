"""What the cryptography of one packet costs, beside libsodium's bare AEAD in the same run.

Claim: with AEGIS-128L a layer costs about three passes over the cell, sealing and opening about one, and all that a relay
does to a packet (unmask, open, filter, one layer, seal, mask) about 700 ns on a processor with AES instructions.

    python bench/crypto.py [--json] [--rounds N]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from nyx.columns import allocate
from nyx.crypto import sodium
from nyx.crypto.scratch import SCRATCH_NONCE, new_scratch
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA, SUITE_NAMES
from nyx.kernel import PLAIN, address, kernel
from nyx.link.seal import open_packets, seal_packets
from nyx.link.session import SESSION_LIVE, session_columns
from nyx.onion.filter import FILTER, filter_columns, filter_fetch, filter_seen, filter_value, start_filter
from nyx.onion.layer import layer_batch, unlayer_batch
from nyx.wire.geometry import AD_SIZE, LAYER_KEY_MAX, LINK_PAYLOAD_SIZE, PACKET_CELL, PACKET_PAYLOAD, PACKET_SIZE, PACKET_TAG

BATCH = 48


@kernel("i8", "i8", "i8", "u1[]", "u1[]", "i8", "u1[]")
def bare(suite: int, way: int, pool: Any, key: Any, n: int, scratch: Any) -> int:
    """The AEAD of libsodium over the link payload of n packets, with nothing around it; returns 0 when all is well."""
    bad = 0
    nonce = address(scratch) + SCRATCH_NONCE
    for i in range(n):
        packet = address(pool) + i * PACKET_SIZE
        data, tag = packet + PACKET_PAYLOAD, packet + PACKET_TAG
        if suite == SUITE_AEGIS128L and way == 0:
            bad += sodium.aegis128l_encrypt(data, tag, 0, data, LINK_PAYLOAD_SIZE, packet, AD_SIZE, 0, nonce, address(key))
        elif suite == SUITE_AEGIS128L:
            bad += sodium.aegis128l_decrypt(data, 0, data, LINK_PAYLOAD_SIZE, tag, packet, AD_SIZE, nonce, address(key))
        elif way == 0:
            bad += sodium.chacha20poly1305_encrypt(data, tag, 0, data, LINK_PAYLOAD_SIZE, packet, AD_SIZE, 0, nonce, address(key))
        else:
            bad += sodium.chacha20poly1305_decrypt(data, 0, data, LINK_PAYLOAD_SIZE, tag, packet, AD_SIZE, nonce, address(key))
    return bad


@kernel("i8", FILTER, "u4[]", "u1[]", "i8[]", "i8", "i8[]", "u1[]")
def filter_batch(state: Any, table: Any, pool: Any, ats: Any, n: int, values: Any, scratch: Any) -> int:
    """As `process_cells` asks it: hash all, then look all up."""
    found = 0
    for i in range(n):
        values[i] = filter_value(state, 7, 0, pool, np.int64(ats[i]), scratch)
        filter_fetch(state, table, np.int64(values[i]))
    for i in range(n):
        found += filter_seen(state, table, np.int64(values[i]), 1)
    return found


class Bench:
    """One suite's batch of packets, two ends of a session, a filter; every method is one timed step over the batch."""

    def __init__(self, suite: int) -> None:
        rng = np.random.default_rng(suite)
        self.suite = suite
        self.rng = rng
        self.pool = rng.integers(0, 256, BATCH * PACKET_SIZE).astype(np.uint8)
        self.slots, self.rows, self.codes = np.arange(BATCH), np.zeros(BATCH, np.int64), np.zeros(BATCH, np.int64)
        self.ats = self.slots * PACKET_SIZE + PACKET_CELL
        self.values = np.zeros(BATCH, np.int64)
        self.zero, self.suites = np.zeros(BATCH, np.int64), np.full(BATCH, suite)
        self.keys = rng.integers(0, 256, LAYER_KEY_MAX).astype(np.uint8)
        self.scratch = new_scratch()
        self.filter = allocate(filter_columns(1 << 14))
        start_filter(self.filter, rng.bytes)
        self.ends = allocate(session_columns(1)), allocate(session_columns(1))
        for end, columns in enumerate(self.ends):
            session = columns["sessions"][0]
            session["suite"], session["initiator"], session["state"] = suite, 1 - end, SESSION_LIVE

    def seal(self) -> None:
        """Seal at the sending end."""
        seal_packets(self.pool, self.slots, self.rows, BATCH, self.ends[0]["sessions"], 1, self.scratch)

    def open(self) -> None:
        """Open at the receiving end."""
        c = self.ends[1]
        if (
            open_packets(
                self.pool, self.slots, self.rows, BATCH, c["sessions"], c["session_windows"], self.codes, 1, self.scratch
            )
            != BATCH
        ):
            raise SystemExit(f"packets did not open: {self.codes}")

    def bare(self, way: int) -> None:
        """Encrypt (0) or decrypt (1) with the AEAD alone."""
        if bare(self.suite, way, self.pool, self.keys, BATCH, self.scratch) != 0:
            raise SystemExit("the bare AEAD does not verify")

    def layer(self, run: Callable[..., int]) -> None:
        """Apply or undo a layer."""
        run(self.pool, self.ats, self.zero, self.suites, *[self.zero] * 4, BATCH, self.keys, self.scratch)

    def filter_(self) -> None:
        """Ask the replay filter."""
        filter_batch(self.filter["filter"], self.filter["filter_table"], self.pool, self.ats, BATCH, self.values, self.scratch)

    def relay(self) -> None:
        """What a relay does to packets that the other end has sealed."""
        self.open()
        self.filter_()
        self.layer(layer_batch)
        seal_packets(self.pool, self.slots, self.rows, BATCH, self.ends[1]["sessions"], 1, self.scratch)


def best(step: Callable[[], None], rounds: int, before: Callable[[], None] | None = None) -> float:
    """Least ns per packet of `step` over many batches; `before` is not timed."""
    found = float("inf")
    for _ in range(rounds):
        if before:
            before()
        start = time.perf_counter_ns()
        step()
        found = min(found, time.perf_counter_ns() - start)
    return found / BATCH


def measure(suite: int, rounds: int) -> dict[str, float]:
    b = Bench(suite)
    return {
        "aead_encrypt": best(lambda: b.bare(0), rounds),
        "aead_decrypt": best(lambda: b.bare(1), rounds, lambda: b.bare(0)),
        "seal": best(b.seal, rounds),
        "open": best(b.open, rounds, b.seal),
        "layer": best(lambda: b.layer(layer_batch), rounds),
        "unlayer": best(lambda: b.layer(unlayer_batch), rounds),
        "filter": best(b.filter_, rounds, lambda: b.layer(layer_batch)),
        "relay": best(b.relay, rounds, b.seal),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=1000, help=f"batches of {BATCH} packets to take the least of")
    options = parser.parse_args()
    rounds = 3 if PLAIN else options.rounds
    found = {SUITE_NAMES[s]: measure(s, rounds) for s in (SUITE_AEGIS128L, SUITE_CHACHA)}
    if options.json:
        report = {"schema": "nyx.bench.crypto", "version": 1, "unit": "ns per packet, least of batches", "batch": BATCH}
        print(json.dumps(report | {"mode": "plain" if PLAIN else "compiled", "suites": found}))
        return
    for suite, steps in found.items():
        print(f"{suite}: ns a packet, ratio to libsodium's AEAD encryption in this run")
        for step, ns in steps.items():
            print(f"  {step:<14}{ns:9.1f}{ns / steps['aead_encrypt']:8.2f}")


if __name__ == "__main__":
    main()
