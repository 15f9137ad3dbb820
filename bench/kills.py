"""Claim: workers and control processes may be killed at any moment; no stream loses or repeats a byte, and nothing leaks.

A network of five nodes with two workers each; downloads, uploads, half-closes, resets and closes by SOCKS5 and HTTP CONNECT,
greetings sent in halves or abandoned, new circuits for new isolation keys; and SIGKILL after SIGKILL at seeded random moments.
Reported: streams by kind and end, requests refused while they were being opened, the longest pause, what recovery
repaired, packet numbers seen at a tap on the loopback interface (none may come twice under one key), and what is left in the end.
Ends with 1 when anything is as it must not be.

    python -m bench.kills [--kills 1000] [--gap 0.6] [--mib 32] [--rate 4] [--pause 1.0] [--settle 150] [--seed 1] [--json]
"""

import argparse
import json
import sys
import time
from typing import Any

from bench.chaos.look import counters, slope
from bench.chaos.scene import judge, scene, settled, summary


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One network, so many kills, and what came of it."""
    with scene(options.seed, capture=not options.no_tap) as stage:
        stage.begin(bulk=2, mixed=4, size=options.mib << 20, rate=int(options.rate * (1 << 20)))
        began = time.monotonic()
        while sum(stage.kills.values()) < options.kills:
            time.sleep(stage.rng.uniform(options.gap / 2, options.gap * 3 / 2))
            stage.kill()
        seconds = time.monotonic() - began
        stage.finish()
        after = settled(stage.nodes, options.settle, stage.before)
        gained = counters(stage.nodes) - stage.counted
        tap = stage.tap.stop() if stage.tap else None
        late = stage.memory[len(stage.memory) // 3 :]
        growth = slope([(at - began, size / 2**20) for at, size in late])
        found = judge(stage, after, tap, gained, pause=options.pause)
        if growth.grows and growth.slope * seconds > 0.02 * growth.level:
            found.append(f"memory grew by {growth.slope * 60:.2f} MiB a minute")
        memory = {"mib": round(growth.level, 1), "mib_per_minute": round(growth.slope * 60, 3),
                  "error": round(min(growth.error * 60, 1e6), 3)}  # fmt: skip
        return {"seed": options.seed, "seconds": round(seconds, 1), **summary(stage, after, tap, gained),
                "memory": memory, "failures": found}  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The result for people."""
    streams, requests, tap = result["streams"], result["requests"], result["tap"]
    print(f"{sum(result['kills'].values())} kills in {result['seconds']} s {result['kills']}, seed {result['seed']}")
    print(f"streams right: {sum(streams['right'].values())} {streams['right']}")
    print(f"wrong {streams['wrong']}, lost {streams['lost']}, hung {streams['hung']}, false ends {streams['false_ends']}")
    print(f"longest pause {result['pause']} s; longest opening {requests['longest_opening']} s")
    print(f"refused while opening, tried again: {requests['refused_then_tried_again']}; without a kill near: "
          f"{requests['without_a_kill_near']}; greetings abandoned: {requests['abandoned']}")  # fmt: skip
    print(f"repairs {result['repairs']}, of those positions of sockets {result['repaired_positions']}")
    print(f"tap: {tap}" if tap else "tap: skipped, no right to capture on the loopback interface (run as root)")
    print(f"counters {result['counters']}")
    print(f"before {result['before']}\nafter  {result['after']}\nmemory {result['memory']}")
    print("\n".join(f"FAILED: {text}" for text in result["failures"]) or "all is well")


def main() -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--gap", type=float, default=0.6, help="mean seconds between two kills")
    parser.add_argument("--mib", type=int, default=32, help="size of the bulk streams")
    parser.add_argument("--rate", type=float, default=4, help="MiB/s of each bulk stream; 0: as fast as it goes")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds: a longer pause of a stream is a failure")
    parser.add_argument("--settle", type=float, default=150, help="seconds to wait until all is quiet, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-tap", action="store_true", help="do not capture packets")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(options)
    if options.json:
        print(json.dumps({"schema": "nyx.bench.kills", "version": 1, **result}))
    else:
        show(result)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
