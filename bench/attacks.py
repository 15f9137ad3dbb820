"""Every defence attacked: what was done, that it happened, the figure, its bound, and a verdict.

    python -m bench.attacks [--share 1.0] [--seed 1] [--only NAME,...] [--json]

Rows of cells and replays run over whole nodes of this process with their real kernels and keys; the others start a test network
each. `--share` scales the counts: 0.01 looks whether everything works. Exit 1 when a row does not hold, or its attack did not
happen.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import hostile
from bench.attack import cells, flooded, probes, replays, sockets, wiped
from bench.attack.peer import ground_of
from bench.chaos.look import members
from bench.network import ROOT, command_environment, running_network
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_CHACHA

REPLAYS: Final = 10_000_000
SOCKET_REPLAYS: Final = 1_000_000
PROBES: Final = 1_000_000
PACKETS: Final = 10_000_000
FALSE_DROPS: Final = 1e-6
KEPT: Final = 0.9  # of a circuit's rate, under a flood
GROWN: Final = 16 << 10  # KiB of a node, under a flood


class Row(NamedTuple):
    """One line of the table: `happened` counts the attack, `figure` is what came of it, as `bound` allows or not."""

    attack: str
    happened: int
    figure: str
    bound: str
    holds: bool
    details: dict[str, Any]


def _cells(name: str, found: cells.Found) -> Row:
    figure = f"{found.delivered} delivered, {found.distinguishable} distinguishable"
    holds = found.attacked > 0 and not found.delivered and not found.distinguishable
    details = {"untouched_delivered": found.twins, "outcomes": sorted(found.outcomes)}
    return Row(name, found.attacked, figure, "0, 0", holds, details)


def flipped(share: float, seed: int) -> list[Row]:
    """Single bits of cells at each hop, both ways."""
    part = min(1.0, share)
    return [
        _cells(f"bit flips, {hops} hops, {name}", cells.flips(hops, seed, share=part, suite=suite))
        for name, suite in (("AEGIS", SUITE_AEGIS128L), ("ChaCha20", SUITE_CHACHA))
        for hops in (3, 7)
    ]


def mixed(share: float, seed: int) -> list[Row]:
    """Cells exchanged, spliced, doubled, re-ordered; records equal in two slots."""
    count = max(4, int(cells.CHUNK // 2 * min(1.0, share)))
    rows = [
        _cells(f"cells {name}, {hops} hops", one)
        for hops in (3, 7)
        for name, one in cells.mixtures(hops, seed, count=count).items()
    ]
    return [*rows, _cells("equal records in two slots", cells.equal_records(seed))]


def repeated(share: float, seed: int) -> list[Row]:
    """Packets and cells that come again, and fresh ones beside them."""
    found = replays.replays(int(REPLAYS * share), seed)
    sent, accepted = sum(found.sent.values()), sum(found.accepted.values())
    rate = found.false_drops
    return [
        Row("replays", sent, f"{accepted} accepted", "0", sent > 0 and not accepted, {"sent": found.sent, "drops": found.drops}),
        Row(
            "fresh cells beside replays", found.fresh, f"{rate:.1e} dropped", "1e-06", found.fresh > 0 and rate <= FALSE_DROPS, {}
        ),
    ]


def repeated_at_sockets(share: float, seed: int) -> list[Row]:
    """Packets that come again at a running relay whose workers are killed meanwhile."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_network(Path(folder) / "net", "--workers", "2", nodes=5) as network,
        ground_of(network, seed) as ground,
    ):
        found = sockets.again(ground, members(network), int(SOCKET_REPLAYS * share))
    happened = found.arrived > 0 and found.kills > 0
    details = {"arrived_once": found.arrived, "kills": found.kills, "drops": found.drops}
    holds = happened and not found.accepted
    return [Row("replays at sockets, workers killed", found.copies, f"{found.accepted} accepted", "0", holds, details)]


def probed(share: float, seed: int) -> list[Row]:
    """Probes and recorded initiations at a running relay."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_network(Path(folder) / "net", nodes=5) as network,
        ground_of(network, seed) as ground,
    ):
        found = probes.probe(ground, "relay-1", members(network), int(PROBES * share))
    sent = found.sent.total()
    details = {"sent": dict(found.sent), "drops": found.drops, "fresh_answered": found.answered, "cookies": found.mac1_answered}
    there = found.answered > 0 and min(found.sent.values()) > 0
    return [
        Row("probes and replayed handshakes", sent, f"{found.heard} answers", "0", there and not found.heard, details),
        Row("bytes out over bytes in", sent, f"{found.ratio:.6f}", "1", there and found.ratio <= 1, {}),
    ]


def hostile_packets(share: float, seed: int) -> list[Row]:
    """Hostile packets over all stages."""
    found = hostile.measure(int(PACKETS * share), seed)
    worst = max(found["grown_bytes"].values()) >> 10
    figure = f"{len(found['findings'])} findings, +{worst} KiB"
    changed, wrong = sum(found["mangled"].values()), found["honest"]["wrong"]
    passing = Row("cells changed by a running relay", changed, f"{wrong} answers wrong", "0", changed > 0 and not wrong, {})
    return [
        passing,
        Row("hostile packets over all stages", found["packets"], figure, "0, 16384 KiB", not found["findings"], found),
    ]


def _told(module: str, *arguments: str) -> dict[str, Any]:
    """The document of another benchmark."""
    command = [sys.executable, "-m", module, *arguments, "--json"]
    ran = subprocess.run(command, cwd=ROOT, env=command_environment(), stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(ran.stdout))


def slow(share: float, _seed: int) -> list[Row]:
    """Sockets of the proxy that say a byte now and then."""
    sockets, seconds = max(300, int(5000 * share)), max(2, int(20 * min(1.0, share)))
    found = _told("bench.slow", "--sockets", str(sockets), "--seconds", str(seconds))
    left, worst = found["slow"]["left"], found["attacked"]["worst"]
    holds = not left and not found["attacked"]["failed"] and worst <= 1000
    return [Row("slow SOCKS sockets", found["slow"]["opened"], f"{left} left, open {worst:.0f} ms", "0, 1000 ms", holds, found)]


def floods(share: float, seed: int) -> list[Row]:
    """Floods at the guard of a running circuit: packets of strangers, and builds that never become whole."""
    part, full = min(1.0, share), flooded.Plan()
    plan = flooded.Plan(
        rate=max(2000, int(full.rate * part)),
        addresses=max(1000, int(full.addresses * part)),
        seconds=max(1.0, full.seconds * part),
        rounds=max(1, round(full.rounds * part)),
        links=max(5, int(full.links * part)),
        builds=max(500, int(full.builds * part)),
        warm=full.warm * part,
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, plan.addresses + 1024), hard))
    rows = []
    for found in flooded.run(seed, plan):
        holds = found.kept >= KEPT and not found.failed and found.p99 <= 1 and found.grown_kib <= GROWN
        figure = f"{found.kept:.0%} kept, p99 {1000 * found.p99:.0f} ms, +{max(0, found.grown_kib)} KiB"
        bound = f"{KEPT:.0%}, 1000 ms, {GROWN} KiB"
        there = found.sent > 0 and sum(found.drops.values()) > 0
        rows.append(Row(f"flood: {found.kind}", found.sent, figure, bound, there and holds, asdict(found)))
    return rows


def searched(_share: float, _seed: int) -> list[Row]:
    """All memory of a test network, after circuits and links have ended."""
    with tempfile.TemporaryDirectory() as folder, running_network(Path(folder) / "net", "--set", "node.inspect=true") as network:
        wiped.use(network)
        found = wiped.search(network)
    ended, copies = sum(found.ended.values()), found.copies.total()
    there = min(found.ended.values()) > 0
    return [Row("keys of ended circuits and links", ended, f"{copies} copies", "0", there and not copies, wiped.summary(found))]


ROWS: Final[dict[str, Callable[[float, int], list[Row]]]] = {
    "flips": flipped,
    "mixtures": mixed,
    "replays": repeated,
    "sockets": repeated_at_sockets,
    "probes": probed,
    "hostile": hostile_packets,
    "floods": floods,
    "slow": slow,
    "wiped": searched,
}


def show(row: Row) -> None:
    """One line."""
    verdict = "holds" if row.holds else "DOES NOT HOLD"
    print(f"{row.attack:34} {row.happened:>10} {row.figure:38} {row.bound:22} {verdict}", flush=True)


def main() -> int:
    """Attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows, of {','.join(ROWS)}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: list[Row] = []
    if not options.json:
        print(f"{'attack':34} {'happened':>10} {'figure':38} {'bound':22} verdict")
    for name in options.only.split(","):
        began = time.monotonic()
        rows = ROWS[name](options.share, options.seed)
        found += [row._replace(details=row.details | {"seconds": round(time.monotonic() - began, 1)}) for row in rows]
        if not options.json:
            for row in rows:
                show(row)
    if options.json:
        document = {"schema": "nyx.bench.attacks", "version": 1, "share": options.share, "seed": options.seed}
        print(json.dumps(document | {"rows": [row._asdict() for row in found]}, indent=1))
    return 0 if all(row.holds for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
