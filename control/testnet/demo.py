"""The demo: a web server of its own, one real fetch through the network, and what can be seen of it.

The fetch is curl's, or the few lines of SOCKS5 here where there is no curl. Nothing may slip past the proxy, so a user's
no_proxy and .curlrc are set aside.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from control.client import ClientError, ask
from control.places import load_record
from control.schemas import Demo, Hop
from control.testnet import processes
from control.testnet.network import TestnetError, node_environment, save_record
from control.testnet.plan import HOST, WEB_OFFSET
from nyx.files import private_folder

PAGE: Final = "hello from the far end of Nyx\n"
FETCH_TIMEOUT: Final = 30  # seconds
_WEB_TIMEOUT: Final = 10.0


def serve(folder: Path) -> str:
    """URL of the network's web server, started where it does not run yet. Raises TestnetError."""
    record = load_record(folder)
    if record is None:
        raise TestnetError(f"there is no test network in {folder}")
    web = record["web"]
    if web and processes.alive(processes.Identity(web["pid"], web["start"])):
        return str(web["url"])
    private_folder(folder / "web")
    (folder / "web" / "index.html").write_text(PAGE)
    port = _free_port(int(record["proxy"].rpartition(":")[2]) + WEB_OFFSET)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", HOST, "--directory", str(folder / "web")]
    with processes.uninterrupted():
        child = processes.start(command, folder / "web.log", node_environment())
        pid, start = child.identity
        record["web"] = {"pid": pid, "start": start, "port": port, "url": f"http://{HOST}:{port}/"}
        save_record(folder, record)
    until = time.monotonic() + _WEB_TIMEOUT
    while not _listens(port):
        if child.poll() is not None or time.monotonic() > until:
            raise TestnetError(f"the web server did not start; see {folder / 'web.log'}")
        time.sleep(0.02)
    return str(record["web"]["url"])


def fetch(folder: Path) -> Demo:
    """Fetch the web server's page through the first client's proxy. Raises TestnetError."""
    url = serve(folder)
    record = load_record(folder)
    assert record is not None
    proxy = str(record["proxy"])
    text, seconds = _curl(url, proxy) if shutil.which("curl") else _socks(url, proxy)
    if text != PAGE:
        raise TestnetError(f"the page that came back is not the page that was served: {text[:80]!r}")
    client = next(entry for entry in record["nodes"] if entry["role"] == "client")
    return Demo(url, proxy, text.strip(), seconds, _hops(Path(client["socket"])))


def _curl(url: str, proxy: str) -> tuple[str, float]:
    command = ["curl", "-q", "-sS", "--fail", "--noproxy", "", "--max-time", str(FETCH_TIMEOUT), "-w", "\n%{time_total}"]
    result = subprocess.run([*command, "--proxy", f"socks5h://{proxy}", url], capture_output=True, text=True, check=False)
    if result.returncode:
        raise TestnetError(f"the fetch failed: {result.stderr.strip()}")
    text, _, seconds = result.stdout.rpartition("\n")
    return text, float(seconds)


def _socks(url: str, proxy: str) -> tuple[str, float]:
    """What curl does, for a machine without it: SOCKS5 CONNECT by name, then HTTP/1.0."""
    parts = urlsplit(url)
    host, port = str(parts.hostname).encode(), parts.port or 80
    address, _, proxy_port = proxy.rpartition(":")
    began = time.monotonic()
    try:
        with (
            socket.create_connection((address, int(proxy_port)), FETCH_TIMEOUT) as connection,
            connection.makefile("rwb") as file,
        ):
            file.write(b"\x05\x01\x00")
            file.flush()
            if file.read(2) != b"\x05\x00":
                raise TestnetError("the fetch failed: the proxy wants credentials")
            file.write(b"\x05\x01\x00\x03" + bytes((len(host),)) + host + port.to_bytes(2, "big"))
            file.flush()
            _, code, _, form = file.read(4)
            file.read({1: 4, 4: 16}.get(form) or file.read(1)[0])
            file.read(2)
            if code:
                raise TestnetError(f"the fetch failed: the proxy answers {code}")
            file.write(f"GET {parts.path} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
            file.flush()
            answer = file.read()
    except (OSError, ValueError, IndexError) as error:
        raise TestnetError(f"the fetch failed: {error}") from error
    return answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace"), time.monotonic() - began


def _hops(client: Path) -> list[Hop]:
    """Hops of the circuit that the newest stream took, or of the busiest one where that stream is not listed any more."""
    try:
        circuits = [row for row in ask(client, "circuits")["circuits"] if row["hops"]]
        streams = [row for row in ask(client, "streams")["streams"] if row["circuit"] is not None]
    except ClientError:
        return []

    def rank(row: dict[str, Any]) -> tuple[bool, int]:
        newest = min(streams, key=lambda stream: stream["age"], default=None)
        return newest is not None and (newest["worker"], newest["circuit"]) == (row["worker"], row["id"]), row["cells_out"]

    best = max(circuits, key=rank, default=None)
    return [Hop(hop["node"], hop["alias"]) for hop in best["hops"]] if best else []


def _free_port(wanted: int) -> int:
    """`wanted` where it is free, else any."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError):
                continue
            return int(probe.getsockname()[1])
    raise TestnetError("no TCP port is free")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def next_commands(demo: Demo, nyxctl: str, folder_option: str) -> list[str]:
    """What to try next; `nyxctl` is how the command is called here, `folder_option` is empty for the user's own test network."""
    past = " --noproxy ''" if os.environ.get("no_proxy") or os.environ.get("NO_PROXY") else ""
    asking = [] if folder_option else [f"{nyxctl} status", f"{nyxctl} circuits", f"{nyxctl} streams --show-targets"]
    return [
        f"curl --proxy socks5h://{demo.proxy}{past} {demo.url}",
        *asking,
        f"{nyxctl} testnet status{folder_option}",
        f"{nyxctl} testnet down{folder_option}" + ("" if folder_option else "    (or: make demo-stop)"),
    ]
