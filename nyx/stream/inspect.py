"""Looking at connections and streams: figures for people, and the invariants that every test checks after each step."""

from typing import Any, Final

import numpy as np

from nyx.errors import InternalError
from nyx.stream.columns import DONE, FLIGHT, FREE, IN_FLIGHT, LIVE, WAITING
from nyx.stream.engine import Streams

CONNECTION_STATES: Final = ("free", "live", "closing", "", "closed")
STREAM_STATES: Final = ("free", "early", "opening", "open", "closed")
_SCALES: Final = {"srtt": "round_trip_ns", "min_rtt": "least_round_trip_ns", "cwnd": "window_cells", "flight": "in_flight_cells"}
_COUNTERS: Final = (
    "streams", "cells_in", "cells_out", "acks_in", "acks_out", "lost", "spurious", "probed", "resent", "dropped", "reductions",
    "bytes_in", "bytes_out", "max_cells",
)  # fmt: skip


def connection_stats(streams: Streams, row: int) -> dict[str, Any]:
    """One connection in numbers; the names are those of `nyxctl circuits`."""
    c = streams.connections[row]
    found: dict[str, Any] = {"state": CONNECTION_STATES[int(c["state"])], "client": bool(c["client"])}
    found |= {name: int(c[field]) for field, name in _SCALES.items()}
    return found | {name: int(c[name]) for name in _COUNTERS}


def stream_stats(streams: Streams, row: int) -> dict[str, Any]:
    """One stream in numbers."""
    s = streams.streams[row]
    return {
        "state": STREAM_STATES[int(s["state"])],
        "connection": int(s["connection"]),
        "id": int(s["id"]),
        "sent": int(s["tx_base"]),
        "unacknowledged": int(s["tx_next"]) - int(s["tx_base"]),
        "waiting": int(s["tx_head"]) - int(s["tx_next"]),
        "received": int(s["rx_ready"]),
        "unread": int(s["rx_ready"]) - int(s["rx_tail"]),
        "error": int(s["error"]),
    }


def _hold(condition: object, text: str) -> None:
    if not condition:
        raise InternalError(text)


def _check_stream(streams: Streams, row: int) -> None:
    s, ring = streams.streams[row], streams.ring
    at = f"stream row {row}"
    _hold(s["tx_base"] <= s["tx_next"] <= s["tx_head"], f"{at}: base {s['tx_base']}, next {s['tx_next']}, head {s['tx_head']}")
    _hold(s["tx_head"] - s["tx_base"] <= ring, f"{at}: {s['tx_head'] - s['tx_base']} bytes in a ring of {ring}")
    _hold(s["tx_next"] <= max(s["tx_top"], s["tx_base"]) <= s["tx_max"], f"{at}: sent beyond its limit")
    _hold(s["rx_tail"] <= s["rx_ready"] <= s["rx_top"] or s["rx_stop"], f"{at}: tail, ready, top out of order")
    _hold(s["rx_top"] <= s["rx_limit"] <= s["rx_tail"] + ring, f"{at}: promised more than the ring holds")
    _hold(s["rx_final"] == 0 or s["rx_top"] <= s["rx_final"] - 1, f"{at}: bytes beyond the final size")
    if not s["orphan"]:
        entry = streams.id_rows(int(s["connection"]))[int(s["id"]) >> 1]
        _hold(entry == row + 1, f"{at}: its id leads to {entry - 1}")


def _check_connection(streams: Streams, row: int) -> None:
    c = streams.connections[row]
    at = f"connection row {row}"
    records = streams.records(row)
    live = (records["state"] == IN_FLIGHT) & (records["sequence"] >= c["oldest"]) & (records["sequence"] < c["sequence_next"])
    _hold(int(c["flight"]) == int(live.sum()), f"{at}: {c['flight']} in flight, {live.sum()} records")
    _hold(c["sequence_next"] - c["oldest"] <= FLIGHT, f"{at}: more outstanding than can be remembered")
    _hold(c["data_sent"] <= c["data_max"], f"{at}: sent beyond its limit")
    _hold(c["data_in"] <= c["data_limit"], f"{at}: received beyond its limit")
    _hold(0 <= c["lost_tail"] - c["lost_head"] <= WAITING, f"{at}: lost pieces out of bounds")
    _hold(4 <= c["cwnd"] <= c["max_cells"], f"{at}: window {c['cwnd']} of {c['max_cells']}")
    mine = (streams.streams["connection"] == row) & (streams.streams["state"] != FREE) & (streams.streams["orphan"] == 0)
    _hold(int(c["streams"]) == int(mine.sum()), f"{at}: counts {c['streams']} streams, has {mine.sum()}")
    working = np.flatnonzero(mine & (streams.streams["working"] == 1)).tolist()
    circle: list[int] = []
    at_row = int(c["work"])
    while at_row and len(circle) <= len(working):
        circle.append(at_row - 1)
        at_row = int(streams.streams[at_row - 1]["work_next"])
        if at_row == int(c["work"]):
            break
    _hold(sorted(circle) == working, f"{at}: the circle has {circle}, working are {working}")


def check_invariants(streams: Streams) -> None:
    """Raises InternalError when the state contradicts itself."""
    for row in np.flatnonzero(streams.connections["state"] == LIVE).tolist():
        _check_connection(streams, row)
    used = (streams.streams["state"] != FREE) & (streams.streams["state"] != DONE)
    for row in np.flatnonzero(used).tolist():
        _check_stream(streams, row)
    rows = np.flatnonzero(streams.streams["state"] != FREE)
    _hold(not len(rows) or int(rows[-1]) < streams.top, "a live row lies beyond the top")
    _hold(streams.free_rows == int((streams.streams["state"] == FREE).sum()), "free rows are not what the desk counts")
