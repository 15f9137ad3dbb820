"""Real clients through three real relays: curl, many requests at once, git, ssh, a browser."""

import concurrent.futures
import getpass
import hashlib
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from bench.network import Network, free_port
from tests.e2e.conftest import blob, blob_digest, need

pytestmark = pytest.mark.timeout(600)

DOWNLOAD = 1 << 30
UPLOAD = 200 << 20


def test_curl_fetches_a_page_by_socks_with_the_name_resolved_at_the_exit(network: Network, web: str) -> None:
    port = web.rpartition(":")[2]
    assert network.curl(f"http://localhost:{port}/echo/hello").stdout == b"hello"


def test_curl_fetches_a_page_by_http_connect(network: Network, web: str) -> None:
    answer = subprocess.run(
        ["curl", "-sS", "--max-time", "60", "--proxytunnel",
         "--proxy", f"http://127.0.0.1:{network.proxy_port}", f"{web}/echo/tunnel"],
        capture_output=True, check=True, timeout=70,
    )  # fmt: skip
    assert answer.stdout == b"tunnel"


def test_a_gibibyte_comes_down_unchanged(network: Network, web: str) -> None:
    command = ["curl", "-sS", "--max-time", "500", "--proxy", network.proxy, f"{web}/blob/{DOWNLOAD}"]
    digest, size = hashlib.sha256(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as source:
        assert source.stdout is not None
        while part := source.stdout.read(1 << 20):
            digest.update(part)
            size += len(part)
    assert source.returncode == 0
    assert size == DOWNLOAD
    assert digest.hexdigest() == blob_digest(DOWNLOAD)


def test_an_upload_arrives_unchanged(network: Network, web: str, tmp_path: Path) -> None:
    file = tmp_path / "upload"
    file.write_bytes(blob(UPLOAD, seed=11))
    answer = network.curl("-T", str(file), "-H", "Expect:", f"{web}/upload", timeout=300)
    assert answer.stdout.decode() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_two_hundred_requests_at_once(network: Network, web: str) -> None:
    def fetch(number: int) -> bytes:
        return network.curl(f"{web}/echo/{number}").stdout

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(fetch, range(200)))
    assert answers == [str(n).encode() for n in range(200)]


def test_git_clones_a_repository(network: Network, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(source)]
    source.mkdir()
    subprocess.run(["git", "init", "-q", "-b", "main", str(source)], check=True)
    (source / "file").write_bytes(blob(3 << 20, seed=3))
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    port = free_port()
    server = subprocess.Popen(
        [
            "git",
            "daemon",
            "--reuseaddr",
            "--export-all",
            f"--base-path={tmp_path}",
            "--listen=127.0.0.1",
            f"--port={port}",
            str(tmp_path),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        proxy = f"nc -X 5 -x 127.0.0.1:{network.proxy_port} %h %p"
        script = tmp_path / "proxy"
        script.write_text(
            f"#!/bin/sh\nexec {proxy.replace('%h', chr(34) + '$1' + chr(34)).replace('%p', chr(34) + '$2' + chr(34))}\n"
        )
        script.chmod(0o700)
        need("nc")
        subprocess.run(
            ["git", "clone", "-q", f"git://127.0.0.1:{port}/source", str(copy)],
            env={**os.environ, "GIT_PROXY_COMMAND": str(script)}, check=True, timeout=120,
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait()
    assert (copy / "file").read_bytes() == (source / "file").read_bytes()


def wait_for(port: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.05)


def test_an_ssh_session(network: Network, tmp_path: Path) -> None:
    sshd = next((p for p in ("/usr/sbin/sshd", "/usr/local/sbin/sshd") if Path(p).exists()), None)
    assert sshd, "sshd is not installed: see the Debian packages in the README"
    need("nc")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    port = free_port()
    (tmp_path / "authorized").write_bytes((tmp_path / "user.pub").read_bytes())
    (tmp_path / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\nStrictModes no\n"
        f"PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(tmp_path / "config")], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        answer = subprocess.run(
            [
                "ssh", "-F", "none", "-p", str(port), "-i", str(tmp_path / "user"),
                "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
                "-o", f"ProxyCommand=nc -X 5 -x 127.0.0.1:{network.proxy_port} %h %p",
                f"{getpass.getuser()}@127.0.0.1", "echo through; cat",
            ],
            input=b"three relays\n", capture_output=True, timeout=90, check=False,
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait()
    assert answer.stdout == b"through\nthree relays\n", answer.stderr


def test_a_browser_loads_a_page(network: Network, web: str, tmp_path: Path) -> None:
    chromium = need("chromium")
    answer = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}/profile",
            f"--proxy-server=socks5://127.0.0.1:{network.proxy_port}",
            "--proxy-bypass-list=<-loopback>", "--dump-dom", f"{web}/page",
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert b"carried through three relays" in answer.stdout


def test_a_refused_target_gives_the_right_reply(network: Network) -> None:
    port = free_port()
    answer = network.curl(f"http://127.0.0.1:{port}/", check=False)
    assert answer.returncode == 97
    assert b"(5)" in answer.stderr or b"refused" in answer.stderr.lower()


def test_a_name_that_does_not_resolve_gives_the_right_reply(network: Network) -> None:
    answer = network.curl("http://no-such-host.invalid/", check=False)
    assert answer.returncode == 97
    assert b"(4)" in answer.stderr or b"unreachable" in answer.stderr.lower()


def test_statistics_count_streams_and_proxy_clients(network: Network, web: str) -> None:
    def totals() -> dict[str, int]:
        return dict(network.ask("stats")["total"])

    before = totals()
    for _ in range(3):
        network.curl(f"{web}/echo/x")
    network.curl(f"http://127.0.0.1:{free_port()}/", check=False)
    with socket.create_connection(("127.0.0.1", network.proxy_port), 10) as client:
        client.sendall(b"\x04 this is no SOCKS5")
        client.recv(100)
    deadline = time.monotonic() + 10
    wanted = {"proxy_clients": 5, "proxy_refused": 1, "streams_opened": 3, "streams_refused": 1, "streams_closed": 3}
    while any(totals()[name] - before[name] < count for name, count in wanted.items()):
        assert time.monotonic() < deadline, {name: totals()[name] - before[name] for name in wanted}
        time.sleep(0.2)
