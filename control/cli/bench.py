"""nyxctl bench: real bytes to a real target through the node: times to open a stream, throughput."""

import asyncio
import time
from typing import Any
from urllib.parse import SplitResult, urlsplit

import click

from control.cli.output import duration, echo, print_json, size
from control.cli.state import EXIT_FAILURE, EXIT_UNREACHABLE, Failure, State, json_option
from control.schemas import Bench


def _target(_ctx: click.Context, _param: click.Parameter, value: str | None) -> SplitResult | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value if "://" in value else f"tcp://{value}")
        known = parts.scheme == "http" or (parts.scheme == "tcp" and parts.port)
        if known and parts.hostname and parts.port != 0 and not parts.username:
            return parts
    except ValueError:
        pass  # said below
    raise click.BadParameter(f"{value!r} is no http:// address and no HOST:PORT")


@click.command()
@click.argument("target", required=False, callback=_target)
@click.option("--opens", type=click.IntRange(1, 1000), default=20, show_default=True, help="Streams to open, one after another.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="Time to fetch at most.")
@click.option("--via", type=click.Choice(["auto", "sdk", "proxy"]), default="auto", help="The way to the node.")
@json_option
@click.pass_obj
def command(state: State, *, target: SplitResult | None, opens: int, seconds: float, via: str) -> None:
    """Measure streams to TARGET through the node: times to open, and the rate of a fetch.

    TARGET is an http:// address, fetched again and again for --seconds, or HOST:PORT, to which streams are opened only. Without
    it the page of the running test network's web server is fetched. Use targets that are yours: every byte is a real one.
    """
    found = asyncio.run(_measure(state, target or _testnet(), opens, seconds, via))
    if state.json:
        print_json(found)
    else:
        echo(lines(found))


def _testnet() -> SplitResult:
    """The web server of the test network, started where it does not run. Raises Failure."""
    import os

    from control.places import program, testnet_dir
    from control.testnet.demo import serve
    from control.testnet.network import TestnetError

    try:
        return urlsplit(serve(testnet_dir(os.environ)))
    except TestnetError as error:
        text = f"name a target, or start a network to measure: {program()} testnet up ({error})"
        raise Failure(EXIT_UNREACHABLE, "unreachable", text) from error


async def _measure(state: State, target: SplitResult, opens: int, seconds: float, via: str) -> Bench:
    from control.cli.carrier import Carrier, reset

    host, port = str(target.hostname), target.port or 80
    times = []
    async with Carrier(state, via, 2) as carrier:
        for _ in range(opens):
            began = time.perf_counter()
            _, writer = await carrier.open(host, port)
            times.append(time.perf_counter() - began)
            reset(writer)
        count, took, fetches = await _fetch(carrier, target, seconds) if target.scheme == "http" else (0, 0.0, 0)
    times.sort()
    shares = {
        name: times[min(len(times) - 1, int(share * len(times)))] for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    }
    rate = count / took if took else None
    return Bench(carrier.way, target.geturl(), opens, {"min": times[0], **shares, "max": times[-1]}, fetches, count, took, rate)


async def _fetch(carrier: Any, target: SplitResult, seconds: float) -> tuple[int, float, int]:
    """Fetch the page over and over; bytes of answers, seconds, and answers that were begun. Raises Failure."""
    from control.cli.carrier import CHUNK, reset
    from nyx.sdk import SdkError

    host, port = str(target.hostname), target.port or 80
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    request = f"GET {path} HTTP/1.0\r\nHost: {target.netloc}\r\nUser-Agent: nyxctl\r\n\r\n".encode()
    count = fetches = 0
    began = time.perf_counter()
    while (left := began + seconds - time.perf_counter()) > 0:
        reader, writer = await carrier.open(host, port)
        head = b""
        try:
            async with asyncio.timeout(max(left, 1.0)):
                writer.write(request)
                while data := await reader.read(CHUNK):
                    count += len(data)
                    head = (head + data)[:16] if len(head) < 16 else head
        except TimeoutError:
            pass  # an answer that is longer than the time: what came of it counts
        except (SdkError, OSError) as error:
            raise Failure(EXIT_FAILURE, "reset", f"the stream to {target.netloc} broke: {error}") from error
        finally:
            reset(writer)
        fetches += 1
        if head[:5] != b"HTTP/" or not head[9:12].startswith(b"2"):
            said = head.decode("latin-1").partition("\r")[0] or "nothing"
            raise Failure(EXIT_FAILURE, "failure", f"{target.geturl()} answered {said!r}, not with a page")
    return count, time.perf_counter() - began, fetches


def lines(found: Bench) -> list[str]:
    """The figures for people."""
    times = "  ".join(f"{name} {duration(value)}" for name, value in found.open_seconds.items())
    rows = [f"target   {found.target}  by {found.way}", f"open     {times}  ({found.opens} streams)"]
    if found.bytes_per_second is not None:
        rate = f"{size(int(found.bytes_per_second))}/s ({found.bytes_per_second * 8 / 1e6:.1f} Mbit/s)"
        rows.append(f"fetch    {rate}  {size(found.bytes)} in {duration(found.seconds)}, {found.fetches} answers")
    return rows
