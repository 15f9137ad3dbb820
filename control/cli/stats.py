"""nyxctl stats: counters, errors by reason, latencies; once, or again and again with rates."""

import itertools
import sys
import time
from typing import Any, Final

import click

from control.cli.node import ask
from control.cli.output import duration, echo, print_json, size, table
from control.cli.state import State, json_option

_ERRORS: Final = {"dropped_": "packet or cell dropped", "refused_": "request or stream refused"}
_CLEAR: Final = "\x1b[H\x1b[2J"


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Show counters that are zero too.")
@click.option("--workers", is_flag=True, help="A column for each worker.")
@click.option("--watch", is_flag=True, help="Show them again and again, with rates; --json: one document a line.")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--count", type=click.IntRange(1), help="End --watch after so many looks.")
@json_option
@click.pass_obj
def command(state: State, *, show_all: bool, workers: bool, watch: bool, interval: float, count: int | None) -> None:
    """Show counters since the node started, errors by reason, latencies. They name no peer, address, circuit or stream."""
    if not watch:
        document = ask(state, "stats")
        if state.json:
            print_json(document)
        else:
            echo(lines(document, show_all=show_all, workers=workers))
        return
    before: tuple[float, dict[str, Any]] | None = None
    for look in itertools.count(1):
        document, now = ask(state, "stats"), time.monotonic()
        _show(state, document, _rates(document, now, before), show_all=show_all, workers=workers)
        if look == count:
            return
        before = now, document
        time.sleep(interval)


def _show(state: State, document: dict[str, Any], rates: dict[str, float], *, show_all: bool, workers: bool) -> None:
    if state.json:
        import json

        click.echo(json.dumps(document, ensure_ascii=False))
        return
    text = lines(document, show_all=show_all, workers=workers, rates=rates)
    if sys.stdout is not None and sys.stdout.isatty():
        click.echo(_CLEAR, nl=False)
    echo([*text, ""])


def _rates(document: dict[str, Any], now: float, before: tuple[float, dict[str, Any]] | None) -> dict[str, float]:
    """Change of each counter in a second since the look before; a node that was started meanwhile counts from nothing."""
    if before is None:
        return {}
    past = before[1]["total"]
    return {n: max(v - past.get(n, 0), 0) / max(now - before[0], 1e-9) for n, v in document["total"].items()}


def lines(
    document: dict[str, Any], *, show_all: bool = False, workers: bool = False, rates: dict[str, float] | None = None
) -> list[str]:
    """The statistics for people."""
    total, units = document["total"], document.get("units", {})
    columns = [total, *(w["counters"] for w in document["workers"] if workers)]
    heads = ["total", *(["per second"] if rates else []), *(f"worker {w['worker']}" for w in document["workers"] if workers)]

    def cells(name: str) -> list[str]:
        values = [figure(column[name], units.get(name)) for column in columns]
        return [values[0], *([_rate(rates[name], units.get(name))] if rates else []), *values[1:]]

    shown = [name for name, value in total.items() if value or show_all]
    plain = [name for name in shown if not name.startswith(tuple(_ERRORS))]
    found = table(["counter", *heads], [[name, *cells(name)] for name in plain])
    for prefix, title in _ERRORS.items():
        rows = [[name.removeprefix(prefix), *cells(name)] for name in shown if name.startswith(prefix)]
        found += ["", *table([title, *heads], rows)] if rows else []
    times = [[name, *_times(latency)] for name, latency in document.get("latencies", {}).items() if latency["count"] or show_all]
    return found + (["", *table(["latency", "count", "p50", "p90", "p99", "mean"], times)] if times else [])


def figure(value: float, unit: str | None) -> str:
    """A counter with its unit."""
    if unit == "ns":
        return duration(value / 1e9)
    return size(int(value)) if unit == "bytes" else f"{value:.0f}"


def _rate(value: float, unit: str | None) -> str:
    if unit == "ns":  # of CPU time in a second: a share of one core
        return f"{value / 1e7:.1f} %"
    return f"{size(int(value))}/s" if unit == "bytes" else f"{value:.1f}"


def _times(latency: dict[str, Any]) -> list[str]:
    count = latency["count"]
    found = [latency[name] for name in ("p50", "p90", "p99")] + [latency["sum"] / count if count else None]
    return [str(count), *("-" if value is None else duration(value) for value in found)]
