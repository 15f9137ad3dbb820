"""Claim: a node takes over the code that is installed while streams run through it, and none of them ends.

The network, the applications and the judgement of `bench.kills`; instead of kills `nyxctl upgrade --no-drain`, on one node after
the other. Reported: how long an upgrade takes from the end of its preparation to the answer of the new code, the longest pause of
a stream, and requests that were refused while they were being opened. Ends with 1 when a stream was lost or anything else of
`bench.kills`'s list is so.

    python -m bench.upgrades [--upgrades 20] [--mib 32] [--rate 4] [--pause 1.0] [--settle 150] [--seed 1] [--json]
"""

import argparse
import json
import sys
import time
from collections import Counter
from statistics import median
from typing import Any

from bench.chaos.look import counters
from bench.chaos.scene import Scene, judge, scene, settled, summary
from bench.network import nyxctl


def upgrade(stage: Scene, number: int) -> float:
    """One upgrade of a node, in turn; the seconds that its workers and its control process took to be new."""
    node = stage.nodes[number % len(stage.nodes)]
    began = time.monotonic()
    document = json.loads(nyxctl("--socket", node.control, "upgrade", "--no-drain", "--json", timeout=400).stdout)
    stage.disturbed.append((began, time.monotonic()))
    return float(document["seconds"])


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One network, so many upgrades, and what came of it."""
    with scene(options.seed, capture=not options.no_tap) as stage:
        stage.begin(bulk=2, mixed=4, size=options.mib << 20, rate=int(options.rate * (1 << 20)))
        seconds = [upgrade(stage, number) for number in range(options.upgrades)]
        stage.finish()
        after = settled(stage.nodes, options.settle, stage.before)
        gained = counters(stage.nodes) - stage.counted
        tap = stage.tap.stop() if stage.tap else None
        nothing_torn = gained + Counter(repairs=1)  # an upgrade need not tear anything
        failures = judge(stage, after, tap, nothing_torn, pause=options.pause)
        times = {"median": round(median(seconds), 3), "longest": round(max(seconds), 3)}
        return {"upgrades": len(seconds), "seconds": times, **summary(stage, after, tap, gained), "failures": failures}


def show(result: dict[str, Any]) -> None:
    """The result for people."""
    streams, requests, seconds = result["streams"], result["requests"], result["seconds"]
    print(f"{result['upgrades']} upgrades, {seconds['median']} s each (median; longest {seconds['longest']})")
    print(f"streams right: {sum(streams['right'].values())} {streams['right']}")
    print(f"wrong {streams['wrong']}, lost {streams['lost']}, hung {streams['hung']}, false ends {streams['false_ends']}")
    print(f"longest pause {result['pause']} s; refused while opening: {requests['refused_then_tried_again']}")
    print(f"tap: {result['tap']}\nbefore {result['before']}\nafter  {result['after']}")
    print("\n".join(f"FAILED: {text}" for text in result["failures"]) or "all is well")


def main() -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrades", type=int, default=20)
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
        print(json.dumps({"schema": "nyx.bench.upgrades", "version": 1, **result}))
    else:
        show(result)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
