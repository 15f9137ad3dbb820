"""Claim: a node under kills, restarts, upgrades and traffic holds as much after hours as after minutes, and loses no stream.

The network, the applications and the judgement of `bench.kills`, but slower and longer, with an operator beside them who asks
`nyxctl`, starts workers anew, replaces the code of whole nodes and loads their configuration again. What the nodes hold is looked
at all the time; a straight line through each series after the first third gives its growth an hour, with the bound that chance
would break once in two hundred runs. Ends with 1 when something grows by more than that bound and by more than one unit in all,
or when anything of `bench.kills`'s list is so.

    python -m bench.soak [--minutes 30] [--gap 5] [--fill 120] [--pause 5] [--seed 1] [--json]
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any, Final

from bench.chaos.look import Holding, Member, counters, holding, slope
from bench.chaos.scene import Scene, judge, scene, settled, summary
from bench.network import nyxctl

_LOOK: Final = 5.0  # seconds between two looks at what the nodes hold
_ASKED: Final = (("status",), ("stats",), ("circuits",), ("streams", "--show-targets"), ("peers",), ("stats", "--json"))
_DISTURBING: Final = {"restart", "upgrade"}
_CONTROL_BACK: Final = 3.0  # seconds: a control process that was killed answers again
_UNITS: Final = {"memory": float(1 << 20)}  # one unit, where it is not 1


class Operator:
    """Whoever sits at `nyxctl`: `calls` counts what was done, `failed` what did not work even a moment later."""

    def __init__(self, stage: Scene) -> None:
        self.stage = stage
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._reloads = "reload" in nyxctl("--help").stdout

    def act(self) -> None:
        """One thing, mostly a question."""
        dice, node = self.stage.rng.random(), self.stage.rng.choice(self.stage.nodes)
        if dice < 0.6:
            self._call(node, *self.stage.rng.choice(_ASKED))
        elif dice < 0.8:
            self._call(node, "restart", "worker", str(self.stage.rng.randrange(2)))
        elif dice < 0.9 or not self._reloads:
            self._call(node, "upgrade", "--no-drain")
        else:
            self._call(node, "reload")

    def _call(self, node: Member, *command: str) -> None:
        for patience in (_CONTROL_BACK, 0.0):
            began = time.monotonic()
            with suppress(subprocess.TimeoutExpired):
                done = nyxctl("--socket", node.control, *command, check=False, timeout=120).returncode == 0
                if command[0] in _DISTURBING:
                    self.stage.disturbed.append((began, time.monotonic()))  # requests may be refused, as by a kill
                if done:
                    self.calls[command[0]] += 1
                    return
            time.sleep(patience)
        self.failed[" ".join(command)] += 1


class Series:
    """What the nodes held, over time."""

    def __init__(self, stage: Scene) -> None:
        self.looks: list[tuple[float, Holding]] = []
        self._stage = stage
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stage.stop.wait(_LOOK):
            with suppress(OSError):  # a control process is being started again
                self.looks.append((time.monotonic(), holding(self._stage.nodes)))

    def growth(self) -> dict[str, dict[str, float]]:
        """Growth an hour of each thing, the bound of chance, and the level, in units."""
        late = self.looks[len(self.looks) // 3 :]
        found = {}
        for name in Holding._fields:
            unit = _UNITS.get(name, 1.0)
            line = slope([(at / 3600, getattr(look, name) / unit) for at, look in late])
            hours = (late[-1][0] - late[0][0]) / 3600 if late else 0.0
            found[name] = {
                "per_hour": line.slope,
                "bound": min(line.bound, 1e9),
                "level": line.level,
                "in_all": line.slope * hours,
            }
        return found


def growing(growth: dict[str, dict[str, float]]) -> list[str]:
    """What grows by more than chance and by more than one unit in all."""
    return [
        f"{name} grows by {line['per_hour']:.2f} an hour (chance: {line['bound']:.2f})"
        for name, line in growth.items()
        if line["per_hour"] > line["bound"] and line["in_all"] > 1
    ]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One soak and what came of it."""
    with scene(options.seed, capture=False) as stage:
        stage.fill(options.fill)
        stage.begin(bulk=2, mixed=2, size=64 << 20, rate=2 << 20)
        series, operator = Series(stage), Operator(stage)
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until:
            time.sleep(stage.rng.uniform(options.gap / 2, options.gap * 3 / 2))
            if stage.rng.random() < 0.6:
                stage.kill()
            else:
                operator.act()
        stage.finish()
        after = settled(stage.nodes, 150, stage.before)
        gained = counters(stage.nodes) - stage.counted
        growth = series.growth()
        found = judge(stage, after, None, gained, pause=options.pause) + growing(growth)
        found += [f"nyxctl {command}: failed {count} times" for command, count in operator.failed.items()]
        return {"seed": options.seed, "minutes": options.minutes, "growth": growth, "nyxctl": dict(operator.calls),
                **summary(stage, after, None, gained), "failures": found}  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The result for people."""
    streams = result["streams"]
    print(f"{result['minutes']} minutes, seed {result['seed']}: kills {result['kills']}, nyxctl {result['nyxctl']}")
    print(f"streams right {sum(streams['right'].values())}, wrong {streams['wrong']}, lost {streams['lost']}, "
          f"hung {streams['hung']}, false ends {streams['false_ends']}; longest pause {result['pause']} s")  # fmt: skip
    print(f"requests {result['requests']}; repairs {result['repairs']}")
    print(f"{'':14}{'an hour':>12}{'chance':>12}{'level':>12}")
    for name, line in result["growth"].items():
        print(
            f"{name + (' MiB' if name == 'memory' else ''):14}{line['per_hour']:12.2f}{line['bound']:12.2f}{line['level']:12.1f}"
        )
    print("\n".join(f"FAILED: {text}" for text in result["failures"]) or "all is well")


def main() -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--gap", type=float, default=5, help="mean seconds between two kills or commands")
    parser.add_argument("--fill", type=float, default=120, help="seconds at most to make as many circuits as there will be")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds: a longer pause of a stream is a failure")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(options)
    if options.json:
        print(json.dumps({"schema": "nyx.bench.soak", "version": 1, **result}))
    else:
        show(result)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
