"""A real client, curl, through both edges to a real web server: SOCKS5 with names, HTTP CONNECT, refusals it can explain."""

import hashlib
import http.server
import shutil
import subprocess
import threading

import pytest

from shards.edge.request import isolation_key
from tests.shards.edge.bench import Bench, bench
from tests.shards.edge.real import RealBench

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")

SIZE = 3_000_000


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives bytes, and the digest of what it is given."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._answer(b"0123456789" * (SIZE // 10))

    def do_PUT(self):
        self._answer(hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode())

    def log_message(self, *_args):
        pass


@pytest.fixture
def web():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def curl(net: Bench, *arguments: str, give: bytes = b"") -> tuple[int, bytes]:
    """Run curl while both workers turn; its exit code and output."""
    command = ["curl", "--silent", "--show-error", "--max-time", "30", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        found: list[bytes] = []

        def talk() -> None:
            found.append(process.communicate(give)[0])

        thread = threading.Thread(target=talk)
        thread.start()
        net.until(lambda: not thread.is_alive(), turns=10_000_000)
        return process.returncode, found[0]


@pytest.fixture(params=[Bench, RealBench])
def wide(request):
    with bench(request.param, ring=1 << 16) as made:
        yield made


@pytest.mark.parametrize("proxy", ["socks5h", "http"])
def test_download_and_upload(wide, web, proxy):
    url = f"http://localhost:{web}/"
    through = ["--proxytunnel", "--proxy", f"{proxy}://me:secret@127.0.0.1:{wide.port}"]
    code, body = curl(wide, *through, url)
    assert (code, len(body)) == (0, SIZE)
    assert body == b"0123456789" * (SIZE // 10)
    given = bytes(range(256)) * (SIZE // 256)
    code, answer = curl(wide, *through, "-X", "PUT", "--data-binary", "@-", url, give=given)
    assert (code, answer) == (0, hashlib.sha256(given).hexdigest().encode())
    assert {a[0] for a in wide.asked} == {isolation_key(b"me", b"secret")}
    assert {a[1] for a in wide.asked} == {"localhost"}
    wide.until(wide.idle)


def test_curl_is_told_why(wide):
    code, text = curl(wide, "--proxy", f"socks5h://127.0.0.1:{wide.port}", "http://10.0.0.1/")
    assert code == 97
    assert b"(2)" in text
    code, text = curl(wide, "--proxytunnel", "--proxy", f"http://127.0.0.1:{wide.port}", "http://nowhere.test/")
    assert code in (7, 56)
    assert b"502" in text
    code, text = curl(wide, "--proxy", f"http://127.0.0.1:{wide.port}", "http://localhost/")
    assert b"socks5h" in text


def test_many_at_once(web):
    with bench(ring=1 << 14, rows=64, half_open=64, max_clients=64) as net:
        url = f"http://localhost:{web}/"
        through = ["--proxy", f"socks5h://127.0.0.1:{net.port}"]
        many = [arg for _ in range(20) for arg in ("--output", "/dev/null", url)]
        code, _ = curl(net, *through, "--parallel", "--parallel-immediate", "--fail", *many)
        assert code == 0
        assert net.client.edge.collect()["streams_opened"] == 20
        net.until(net.idle)
