"""Congestion control: how many cells may be in flight, and when the next may leave.

CUBIC (RFC 9438) with HyStart++ (RFC 9406), in cells, plus two bounds: `max_cells`, what the first neighbour's buffer holds,
and a guard that stops a standing queue: when even the least round trip of a round exceeds the path's least by 25 ms, the
window shrinks, though never below 512 cells. The guard is that high because processes that share cores add several
milliseconds to every round trip that no smaller window would remove. For the same reason a probe timeout changes nothing
here, and a loss event that proves spurious is undone. Source: docs/protocol.md, "Congestion control".
"""

from typing import Final

import numpy as np

from nyx.kernel import Int, called, inline
from nyx.stream.columns import Record

INITIAL_WINDOW: Final = 32.0  # cells
MINIMUM_WINDOW: Final = 4.0
BETA: Final = 0.7
CUBIC_C: Final = 0.4  # cells / s^3
RENO_GAIN: Final = 3 * (1 - BETA) / (1 + BETA)
HYSTART_WINDOW: Final = 128.0  # cells; below it rising delay says little
HYSTART_SAMPLES: Final = 8
HYSTART_ROUNDS: Final = 5
HYSTART_MIN: Final = 4_000_000  # ns
HYSTART_MAX: Final = 16_000_000
GUARD_DELAY: Final = 25_000_000  # ns
GUARD_WINDOW: Final = 512.0  # cells
GUARD_SAMPLES: Final = 4
MIN_RTT_LIFE: Final = 10_000_000_000  # ns
BURST: Final = 48  # cells that may leave together: one segmented message
BURST_TIME: Final = 2_000_000  # ns of pacing credit: a worker may wake that late
UNLIMITED: Final = 1e18
SECOND: Final = 1e9


@called
def reset_congestion(c: Record) -> None:
    """A connection begins, or begins anew after a restart."""
    c["cwnd"] = min(INITIAL_WINDOW, float(c["max_cells"]))
    c["ssthresh"] = UNLIMITED
    c["w_max"] = 0.0
    c["epoch_at"] = 0
    c["recovery_next"] = c["sequence_next"]
    c["undo_left"] = 0
    c["cwnd_round"] = c["sequence_next"]
    c["round_min"] = 0
    c["round_last"] = 0
    c["round_samples"] = 0
    c["round_flight"] = 0
    c["css_left"] = 0
    c["next_send"] = 0
    c["interval"] = 0
    c["pace_at"] = 0


@called
def sample_rtt(c: Record, rtt: Int, delay: Int, now: Int) -> None:
    """A round trip was measured; `delay` is what the peer says it waited (RFC 9002, section 5)."""
    rtt = max(rtt, 1)
    c["latest_rtt"] = rtt
    if c["min_rtt"] == 0 or rtt <= c["min_rtt"] or now - c["min_at"] > MIN_RTT_LIFE:
        c["min_rtt"] = rtt
        c["min_at"] = now
    if c["srtt"] == 0:
        c["srtt"] = rtt
        c["rttvar"] = rtt >> 1
    else:
        adjusted = rtt - delay if rtt - delay >= c["min_rtt"] else rtt
        c["rttvar"] += (abs(c["srtt"] - adjusted) - c["rttvar"]) >> 2
        c["srtt"] += (adjusted - c["srtt"]) >> 3
    c["round_min"] = rtt if c["round_min"] == 0 else min(c["round_min"], rtt)
    c["round_samples"] += 1


@called
def _end_round(c: Record) -> None:
    """A round trip's worth of cells was acknowledged: look at its least delay."""
    least: Int = np.int64(c["round_min"])
    before: Int = np.int64(c["round_last"])
    rise = min(max(before >> 3, HYSTART_MIN), HYSTART_MAX)
    if c["cwnd"] < c["ssthresh"]:
        if c["css_left"] > 0:
            if least < c["css_min"]:
                c["css_left"] = 0  # the rise was noise
            else:
                c["css_left"] -= 1
                if c["css_left"] == 0:
                    c["ssthresh"] = c["cwnd"]
        elif before > 0 and c["cwnd"] >= HYSTART_WINDOW and c["round_samples"] >= HYSTART_SAMPLES and least >= before + rise:
            c["css_left"] = HYSTART_ROUNDS
            c["css_min"] = before
    if c["round_samples"] >= GUARD_SAMPLES and least - c["min_rtt"] > max(GUARD_DELAY, c["min_rtt"]) and c["cwnd"] > GUARD_WINDOW:
        c["cwnd"] = max(GUARD_WINDOW, c["cwnd"] * 0.85)
        c["ssthresh"] = c["cwnd"]
        c["w_max"] = c["cwnd"]
        c["epoch_at"] = 0
    if c["round_samples"] > 0:
        c["round_last"] = least
    c["round_min"] = 0
    c["round_samples"] = 0
    c["round_flight"] = c["flight"]
    c["cwnd_round"] = c["sequence_next"]


@called
def _cubic(c: Record, count: Int, now: Int) -> None:
    if c["epoch_at"] == 0:
        c["epoch_at"] = now
        c["w_est"] = c["cwnd"]
        c["w_max"] = max(c["w_max"], c["cwnd"])
        c["k"] = ((c["w_max"] - c["cwnd"]) / CUBIC_C) ** (1.0 / 3.0)
    t = (now - c["epoch_at"] + c["srtt"]) / SECOND - c["k"]
    target = min(max(CUBIC_C * t * t * t + c["w_max"], c["cwnd"]), 1.5 * c["cwnd"])
    c["w_est"] += (RENO_GAIN if c["w_est"] < c["w_max"] else 1.0) * count / c["cwnd"]
    c["cwnd"] = max(c["cwnd"] + (target - c["cwnd"]) / c["cwnd"] * count, c["w_est"])


@called
def grow(c: Record, count: Int, before: Int, now: Int) -> None:
    """`count` cells in flight were acknowledged when `before` were in flight."""
    c["round_flight"] = max(c["round_flight"], before)
    if c["round_flight"] * 2 >= c["cwnd"]:  # else the application limits, and the window was not tried
        if c["cwnd"] < c["ssthresh"]:
            c["cwnd"] += count / 4.0 if c["css_left"] > 0 else float(count)
        else:
            _cubic(c, count, now)
        c["cwnd"] = min(c["cwnd"], float(c["max_cells"]))
    if c["acked_next"] > c["cwnd_round"]:
        _end_round(c)
    gain = 2.0 if c["cwnd"] < c["ssthresh"] else 1.25
    c["interval"] = np.int64(c["srtt"] / (gain * c["cwnd"]))


@called
def reduce(c: Record, largest: Int, count: Int, persistent: Int) -> None:
    """`count` cells are lost, the largest sequence among them is `largest`; one reduction a round trip."""
    if largest >= c["recovery_next"]:
        c["undo_cwnd"] = c["cwnd"]
        c["undo_ssthresh"] = c["ssthresh"]
        c["undo_left"] = 0
        c["w_max"] = c["cwnd"] * (1 + BETA) / 2 if c["cwnd"] < c["w_max"] else c["cwnd"]
        c["cwnd"] = max(MINIMUM_WINDOW, c["cwnd"] * BETA)
        c["ssthresh"] = c["cwnd"]
        c["css_left"] = 0
        c["epoch_at"] = 0
        c["recovery_next"] = c["sequence_next"]
        c["reductions"] += 1
    c["undo_left"] += count
    if persistent:
        c["cwnd"] = MINIMUM_WINDOW
        c["epoch_at"] = 0


@inline
def undo_one(c: Record) -> None:
    """A cell of the last loss event was acknowledged after all; when all were, there was no loss."""
    if c["undo_left"] > 0:
        c["undo_left"] -= 1
        if c["undo_left"] == 0:
            c["cwnd"] = max(c["cwnd"], c["undo_cwnd"])
            c["ssthresh"] = max(c["ssthresh"], c["undo_ssthresh"])
            c["epoch_at"] = 0


@inline
def pace(c: Record, now: Int) -> None:
    """A cell leaves: the next follows at the pace, with credit for a burst or for a late wake-up."""
    credit = max(BURST_TIME, BURST * c["interval"])
    c["next_send"] = max(c["next_send"], now - credit) + c["interval"]
