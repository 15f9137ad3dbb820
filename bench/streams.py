"""What streams cost: ns a cell for sending, receiving and acknowledging, over an in-memory pair of ends, at several loss rates.

    python bench/streams.py [--megabytes 200] [--batch 96] [--loss 0,1,5] [--json]

One process plays both ends, one after the other, and time is simulated, so that nothing waits: the figures are CPU time of the
kernels and of the Python around each batch. The window is held at one size: this is about cost, not about congestion. `send` is
packetising at the sender, `receive` is parsing and reassembly at the receiver, `acks` is everything on the way back (writing
and applying ACKs, loss detection). Data is copied once each side.
"""

import argparse
import json
import random
import sys
from time import thread_time_ns
from typing import Any

import numpy as np

from nyx.columns import allocate
from nyx.stream.columns import OPENED, STREAM_WINDOW, stream_columns
from nyx.stream.engine import Streams
from nyx.wire.geometry import PACKET_CELL, PACKET_FRAMES, PACKET_SIZE, STREAM_DATA_MAX

RING = STREAM_WINDOW
ROUND_TRIP = 300_000  # ns, simulated


class Pair:
    """A sender and a receiver with one stream between them."""

    def __init__(self, batch: int, cells: int) -> None:
        self.batch, self.window, self.now = batch, cells, 10**9
        self.ends = [Streams(allocate(stream_columns(1, 4, RING)), RING) for _ in range(2)]
        for client, end in zip((True, False), self.ends, strict=True):
            end.open_connection(client=client, now=self.now, max_cells=cells, rtt=ROUND_TRIP)
        self.pool = np.zeros(batch * PACKET_SIZE, np.uint8)
        self.slots = np.arange(batch, dtype=np.int64)
        self.owners = np.zeros(batch, np.int64)
        self.rows = np.zeros(batch, np.int64)
        self.spent = {"send": 0, "receive": 0, "acks": 0}
        self.row = self.ends[0].open_stream(0, 1, "127.0.0.1", 80, self.now)

    def carry(self, source: int, names: tuple[str, str], loss: float, rng: random.Random) -> int:
        """One batch from one end to the other; returns how many cells there were."""
        start = thread_time_ns()
        made = self.ends[source].transmit(self.pool, self.slots, self.batch, self.now, self.owners)
        self.spent[names[0]] += thread_time_ns() - start
        kept = self.slots[:made]
        if loss:
            kept = kept[[rng.random() >= loss for _ in range(made)]]
        cells = self.pool.reshape(self.batch, PACKET_SIZE)[kept, PACKET_CELL : PACKET_CELL + 8]
        sequences = cells.copy().view(">i8").ravel().astype(np.int64)
        offsets = kept * PACKET_SIZE + PACKET_FRAMES
        start = thread_time_ns()
        self.ends[1 - source].receive(self.pool, offsets, self.rows, sequences, len(kept), self.now)
        self.spent[names[1]] += thread_time_ns() - start
        return made

    def turn(self, loss: float, rng: random.Random) -> int:
        """Fill the sender's ring, carry one batch, read, carry what answers."""
        sender, receiver = self.ends
        s = sender.streams[self.row]
        s["tx_head"] = s["tx_base"] + RING
        sender.connections[0]["cwnd"] = self.window
        cells = self.carry(0, ("send", "receive"), loss, rng)
        for event in iter(receiver.next_event, None):
            if event.kind == OPENED:
                receiver.answer_open(event.stream, 0)
        r = receiver.streams[0]
        r["rx_tail"] = r["rx_ready"]
        self.now += ROUND_TRIP // 2
        for end in self.ends:
            if end.next_timeout() <= self.now:
                end.on_timeout(self.now)
        while self.carry(1, ("acks", "acks"), loss, rng):
            pass
        for _ in iter(sender.next_event, None):
            pass
        self.now += ROUND_TRIP // 2
        return cells


def measure(loss: float, size: int, batch: int, cells: int) -> dict[str, Any]:
    """Carry `size` bytes at this loss rate."""
    rng = random.Random(1)
    pair = Pair(batch, cells)
    for _ in range(20):
        pair.turn(loss, rng)
    pair.spent = dict.fromkeys(pair.spent, 0)
    receiver = pair.ends[1].streams[0]
    start, sent = int(receiver["rx_ready"]), 0
    while int(receiver["rx_ready"]) - start < size:
        sent += pair.turn(loss, rng)
    delivered = (int(receiver["rx_ready"]) - start) / STREAM_DATA_MAX
    c = pair.ends[0].connections[0]
    parts = {name: round(spent / delivered, 1) for name, spent in pair.spent.items()}
    return {
        "loss": loss,
        "batch": batch,
        **parts,
        "total": round(sum(pair.spent.values()) / delivered, 1),
        "cells_per_cell": round(sent / delivered, 3),
        "spurious": int(c["spurious"]),
        "bytes": int(receiver["rx_ready"]) - start,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--batch", type=int, default=96, help="cells a batch")
    parser.add_argument("--window", type=int, default=192, help="cells in flight")
    parser.add_argument("--loss", default="0,1,5", help="per cent, each way")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [
        measure(float(loss) / 100, options.megabytes << 20, options.batch, options.window) for loss in options.loss.split(",")
    ]
    if options.json:
        print(json.dumps({"schema": "nyx.bench.streams", "version": 1, "unit": "ns a delivered cell", "rows": found}))
        return 0
    print("ns a delivered cell of 1198 bytes: loss, send + receive + acks = total, and cells sent for each")
    for row in found:
        parts = f"{row['send']:6.0f} + {row['receive']:4.0f} + {row['acks']:4.0f} = {row['total']:5.0f}"
        print(f"  {row['loss']:5.1%}  {parts}   {row['cells_per_cell']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
