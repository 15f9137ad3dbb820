"""nyxctl top: the node live on a terminal: processes, traffic, streams, circuits, links, latencies, warnings."""

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

import click

from control.cli.node import ask
from control.cli.output import duration, print_json, size
from control.cli.state import State, json_option
from control.schemas import Load, Top

_OPS: Final = ("status", "stats", "circuits", "peers")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_COUNTERS: Final = ("packets_in", "packets_out")


@dataclass
class Look:
    """What the node said at one moment, and the processor time and memory of its processes."""

    time: float
    documents: dict[str, dict[str, Any]]
    cpu: dict[int, float] = field(default_factory=dict)  # seconds, by pid
    memory: dict[int, int] = field(default_factory=dict)  # bytes


@click.command()
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Show one look, of --interval seconds, and end; so it is without a terminal.")
@json_option
@click.pass_obj
def command(state: State, *, interval: float, once: bool) -> None:
    """Show the node live; q or Ctrl-C ends it. --json: one document, of one look."""
    before = look(state)
    if once or state.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        time.sleep(interval)
        found = summary(before, look(state))
        if state.json:
            print_json(found)
        else:
            from rich.console import Console

            Console(highlight=False).print(frame(found))
        return
    _live(state, before, interval)


def _live(state: State, before: Look, interval: float) -> None:
    import select
    import termios
    import tty

    from rich.live import Live

    kept = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        with Live(frame(summary(before, before)), screen=True, auto_refresh=False) as live:
            while True:
                if select.select([0], [], [], interval)[0] and os.read(0, 16).lower() in (b"q", b""):
                    return
                now = look(state)
                live.update(frame(summary(before, now)), refresh=True)
                before = now
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, kept)


# ---------------------------------------------------------------- looking


def look(state: State) -> Look:
    """Ask the node and /proc. Raises Failure."""
    found = Look(time.monotonic(), {op: ask(state, op) for op in _OPS})
    for process in found.documents["status"]["processes"]:
        if pid := process["pid"]:
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # many a second
                    words = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has ended
            found.cpu[pid] = (int(words[11]) + int(words[12])) / _TICKS
            found.memory[pid] = int(words[21]) * _PAGE
    return found


def summary(before: Look, now: Look) -> Top:
    """What happened between two looks."""
    status, stats = now.documents["status"], now.documents["stats"]
    seconds = max(now.time - before.time, 1e-9)
    past, total = before.documents["stats"]["total"], stats["total"]
    loads = []
    for process in status["processes"]:
        pid = process["pid"]
        known = pid in now.cpu and pid in before.cpu
        cpu = max(0.0, now.cpu[pid] - before.cpu[pid]) / seconds if known else None
        loads.append(Load(process["name"], pid, process["state"], process["restarts"], cpu, now.memory.get(pid)))
    return Top(
        alias=status["alias"],
        role=status["role"],
        ready=status["ready"],
        stage=status["stage"],
        uptime=status["uptime"],
        seconds=now.time - before.time,
        processes=loads,
        rates={name: max(0, value - past.get(name, 0)) / seconds for name, value in total.items()},
        units=stats["units"],
        streams=status["streams"],
        circuits=len(now.documents["circuits"]["circuits"]),
        circuits_ready=status["circuits_ready"],
        links=status["links"],
        round_trips=sorted(row["rtt"] / 1000 for row in now.documents["peers"]["peers"] if row["rtt"] is not None),
        latencies={n: {p: v[p] for p in ("p50", "p90", "p99")} for n, v in stats["latencies"].items() if v["count"]},
        warnings=status["warnings"],
    )


# ---------------------------------------------------------------- showing


def frame(top: Top) -> Any:
    """One picture, for rich."""
    from rich.console import Group
    from rich.text import Text

    state = Text("READY", "bold green") if top.ready else Text(f"NOT READY: {top.stage}", "bold yellow")
    head = Text.assemble((top.alias, "bold"), f"  {top.role}  up {duration(top.uptime)}  ", state)
    rtts = top.round_trips
    trips = f"  round trip {duration(rtts[0])} to {duration(rtts[-1])}" if rtts else ""
    counts = f"{top.streams} streams  {top.circuits} circuits ({top.circuits_ready} ready)  {top.links} links{trips}"
    warnings = [Text(f"! {text}", "yellow") for text in top.warnings]
    return Group(head, Text(counts), *warnings, Text(""), _processes(top), Text(""), _rates(top), Text(""), _latencies(top))


def _table(*heads: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    return table


def _processes(top: Top) -> Any:
    table = _table("process", "pid", "cpu", "memory", "restarts", "state")
    for load in top.processes:
        cpu = "-" if load.cpu is None else f"{100 * load.cpu:.0f} %"
        memory = "-" if load.memory is None else size(load.memory)
        table.add_row(load.name, str(load.pid or "-"), cpu, memory, str(load.restarts), load.state)
    return table


def _rates(top: Top) -> Any:
    """Every counter that moves, the traffic first and always."""
    table = _table("counter", "per second")
    moving = [name for name, rate in top.rates.items() if rate and name not in _COUNTERS and top.units.get(name) != "ns"]
    for name in [*_COUNTERS, *moving]:
        rate = top.rates.get(name, 0.0)
        table.add_row(name, f"{size(int(rate))}/s" if top.units.get(name) == "bytes" else f"{rate:.1f}")
    return table


def _latencies(top: Top) -> Any:
    table = _table("latency", "p50", "p90", "p99")
    for name, values in top.latencies.items():
        table.add_row(name, *("-" if value is None else duration(value) for value in values.values()))
    return table
