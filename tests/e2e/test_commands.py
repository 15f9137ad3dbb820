"""Commands of nyxctl that carry data or judge a running node, on a network of real nodes."""

import contextlib
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.network import ROOT, Network, command_environment, free_port, nyxctl
from tests.e2e.conftest import blob

pytestmark = pytest.mark.timeout(180)

CODE = "import sys; sys.argv[0] = 'nyxctl'; from control.cli import main; main()"
WAYS = ["sdk", "proxy"]


@pytest.fixture(scope="module")
def control(network: Network) -> str:
    return str(next(node["socket"] for node in network.nodes() if node["role"] == "client"))


@contextlib.contextmanager
def echo(last: bytes = b"") -> Iterator[int]:
    """A server that answers what it gets, and after the end of that `last` and its own end; its port."""

    def one(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)
            client.sendall(last)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def everything(connection: socket.socket) -> bytes:
    """All bytes to the other side's end."""
    found = b""
    while data := connection.recv(65536):
        found += data
    return found


def start(*arguments: str, stdin: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:

    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        env=command_environment(),
        cwd=ROOT,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is ended with the block whatever happens."""
    with start(*arguments) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("way", WAYS)
def test_bytes_and_both_ends_go_through_a_stream(control: str, way: str) -> None:
    data = bytes(blob(1 << 20))
    with echo(b"the end") as port:
        process = start("--socket", control, "connect", "--via", way, "127.0.0.1", str(port), "--json")
        out, err = process.communicate(data, timeout=60)
    assert process.returncode == 0, err
    assert out == data + b"the end"
    told = json.loads(err)
    assert (told["schema"], told["way"], told["bytes_out"], told["bytes_in"]) == ("nyx.connected", way, len(data), len(data) + 7)


def test_stdin_may_be_a_file_and_the_targets_end_is_seen_before_ours(control: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    with echo() as port, (tmp_path / "in").open("rb") as file:
        out, err = start("--socket", control, "connect", "127.0.0.1", str(port), stdin=file).communicate(timeout=60)
    assert (out, err) == (b"from a file", b"")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        start("--socket", control, "connect", "127.0.0.1", str(server.getsockname()[1])) as process,
    ):
        server.settimeout(60)
        client = server.accept()[0]
        client.shutdown(socket.SHUT_WR)
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.read() == b""  # its end, while stdin is open
        process.stdin.write(b"still heard")
        process.stdin.close()
        client.settimeout(60)
        assert everything(client) == b"still heard"
        client.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_stream_is_code_1_and_told(control: str, way: str) -> None:
    port = free_port()
    process = start("--socket", control, "connect", "--via", way, "127.0.0.1", str(port), "--json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, b"")
    told = json.loads(err)
    assert (told["schema"], told["code"]) == ("nyx.error", "refused")
    assert "refused" in told["message"]


def test_a_reset_is_code_1(control: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = start("--socket", control, "connect", "127.0.0.1", str(server.getsockname()[1]))
        server.settimeout(60)
        client = server.accept()[0]
        client.sendall(b"!")
        assert process.stdout is not None
        assert process.stdout.read(1) == b"!", "the stream is open"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"broke" in err


@pytest.mark.parametrize("way", WAYS)
def test_forwarded_ports_serve_many_at_once_until_interrupted(control: str, way: str) -> None:
    with echo(b"!") as port, echo(b"?") as other:
        forwards = ["-L", f"0:127.0.0.1:{port}", "-L", f"[::1]:0:127.0.0.1:{other}", "-L", f"0:127.0.0.1:{free_port()}"]
        with running("--socket", control, "connect", "--via", way, *forwards, "--json") as process:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert (told["schema"], told["way"], len(told["ports"])) == ("nyx.forwards", way, 3)
            here = [(row["address"], row["port"]) for row in told["ports"]]
            connections = [socket.create_connection(here[i % 2], 60) for i in range(10)]
            for number, connection in enumerate(connections):
                connection.sendall(b"%d" % number * 1000)
            for number, connection in enumerate(connections):
                connection.shutdown(socket.SHUT_WR)
                assert everything(connection) == b"%d" % number * 1000 + b"!?"[number % 2 : number % 2 + 1]
                connection.close()
            with socket.create_connection(here[2], 60) as refused, pytest.raises(ConnectionResetError):
                refused.recv(1)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip().count(b"\n") == 0
    assert b"refused" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize("args", [["host"], [], ["-L", "80"], ["-L", "0:h:0"], ["-L", "0:h:80", "h", "80"], ["h", "70000"]])
def test_what_is_no_target_is_code_2(args: list[str]) -> None:
    assert nyxctl("connect", *args, check=False).returncode == 2


def test_a_doctor_finds_a_running_network_well(network: Network) -> None:
    for node in network.nodes():
        found = network.ask("doctor", alias=node["alias"])
        states = {check["name"]: check["state"] for check in found["checks"]}
        assert found["failures"] == 0, found
        assert {states[name] for name in ("node", "ready", "processes", "config", "config runs", "directory")} == {"ok"}
        if node["role"] == "client":
            assert {states[name] for name in ("guard", "proxy", "names", "dns leaks")} == {"ok"}


def test_events_are_told_as_they_come(control: str) -> None:
    before = [json.loads(line) for line in nyxctl("--socket", control, "events", "--json").stdout.splitlines()]
    assert before
    told = ("--socket", control, "--timeout", "60", "events", "--count", "1", "--kind", "worker_restarted", "--json")
    with running(*told) as follower, running("--socket", control, "events", "--follow") as people:
        assert people.stdout is not None
        people.stdout.readline()  # the last event: it follows
        nyxctl("--socket", control, "restart", "worker", "0")
        out, err = follower.communicate(timeout=60)
        event = json.loads(out)
        assert (event["schema"], event["version"], event["kind"], event["worker"]) == ("nyx.events", 1, "worker_restarted", 0), (
            err
        )
        assert event["seq"] > before[-1]["seq"]
        while b"worker_restarted  worker 0" not in (line := people.stdout.readline()):
            assert line
        people.send_signal(signal.SIGINT)
        assert people.wait(20) == 130


@pytest.mark.parametrize("way", WAYS)
def test_a_bench_fetches_real_bytes(control: str, web: str, way: str) -> None:
    bench = ("--socket", control, "bench", "--via", way, "--json")
    found = json.loads(nyxctl(*bench, "--opens", "5", "--seconds", "1", f"{web}/blob/300000").stdout)
    assert (found["schema"], found["way"], found["opens"]) == ("nyx.bench", way, 5)
    times = found["open_seconds"]
    assert 0 < times["min"] <= times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    assert found["bytes"] >= found["fetches"] > 0
    assert found["bytes_per_second"] == pytest.approx(found["bytes"] / found["seconds"])
    found = json.loads(nyxctl(*bench, "--opens", "2", web.removeprefix("http://")).stdout)
    assert (found["opens"], found["fetches"], found["bytes_per_second"]) == (2, 0, None)


def test_a_bench_of_nothing_fails(control: str) -> None:
    failed = nyxctl("--socket", control, "bench", f"http://127.0.0.1:{free_port()}/", check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "refused" in failed.stderr
    assert nyxctl("bench", "ftp://127.0.0.1/", check=False).returncode == 2


# ---------------------------------------------------------------- run


def _namespaces() -> bool:
    return subprocess.run(["unshare", "-Urnm", "true"], capture_output=True, check=False).returncode == 0


confined = pytest.mark.skipif(not shutil.which("unshare") or not _namespaces(), reason="needs user namespaces")


def confine(control: str, *application: str) -> subprocess.CompletedProcess[str]:
    return nyxctl("--socket", control, "run", "--", *application, check=False)


@confined
def test_a_confined_application_reaches_targets_through_nyx(control: str, web: str) -> None:
    fetch = ("curl", "-sS", "--max-time", "30", "-o", "/dev/null", "-w", "%{size_download}")
    found = confine(control, *fetch, f"{web}/blob/300000")
    assert (found.returncode, found.stdout, found.stderr) == (0, "300000", "")
    many = f"for i in 1 2 3 4 5 6; do curl -sS --max-time 30 {web}/blob/50000 | wc -c & done; wait"
    assert confine(control, "sh", "-c", many).stdout.split() == ["50000"] * 6


@confined
def test_a_confined_application_reaches_nothing_else(control: str, web: str) -> None:
    direct = ("curl", "-sS", "--noproxy", "*", "--max-time", "5")
    assert (
        subprocess.run([*direct, f"{web}/blob/10"], capture_output=True, check=False).returncode == 0
    )  # from outside it is there
    assert confine(control, *direct, f"{web}/blob/10").returncode == 7
    assert confine(control, *direct, "http://example.org/").returncode == 6  # the name is found by nobody
    look = "import socket; print([name for _, name in socket.if_nameindex()]); print(open('/etc/resolv.conf').read())"
    assert confine(control, sys.executable, "-c", look).stdout.split() == ["['lo']"]
    names = confine(control, "sh", "-c", "echo $ALL_PROXY $https_proxy; echo $NO_PROXY$no_proxy")
    assert names.stdout == "socks5h://127.0.0.1:9750 socks5h://127.0.0.1:9750\n\n"


@confined
def test_a_confined_application_decides_the_exit_code(control: str) -> None:
    assert confine(control, "sh", "-c", "exit 7").returncode == 7
    assert confine(control, "sh", "-c", "kill -9 $$").returncode == 137
    missing = confine(control, "no-such-program")
    assert (missing.returncode, missing.stderr) == (127, "there is no program 'no-such-program'\n")
    assert confine(control, "/").returncode == 126


@confined
def test_a_confined_application_ends_with_nyxctl(control: str) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        with running("--socket", control, "run", "--", "sh", "-c", "echo $$; exec sleep 100") as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            assert Path(f"/proc/{pid}").exists()
            process.send_signal(number)
            assert process.wait(20) == code
            until = time.monotonic() + 20
            while Path(f"/proc/{pid}").exists():
                assert time.monotonic() < until


@confined
def test_where_namespaces_are_not_allowed_it_says_so(control: str) -> None:
    command = (
        f"echo 0 > /proc/sys/user/max_user_namespaces; exec {sys.executable} -c {shlex.quote(CODE)} --socket {control} run true"
    )
    found = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", command],
        env=command_environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 5, found.stderr
    assert "lets no user make namespaces" in found.stderr
