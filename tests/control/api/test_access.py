"""Who is served by the API of a real control process: by the unix socket its own user, by TCP who has a key."""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bench.network import free_port
from control.api.front import CONNECTIONS_MAX
from control.api.generated import nyx_v1_pb2 as pb
from control.api.generated import nyx_v1_pb2_grpc as services
from nyx.config import load
from nyx.errors import ConfigError
from nyx.wire import admin
from tests.control.api.certificates import authority
from tests.control.api.dial import TIME, api_of, descriptors, dialled, failing, private, tcp
from tests.control.nodes import CONFIG, node
from tests.control.workers import answers, status


def test_grpc_is_loaded_for_the_first_connection(tmp_path):
    with node(tmp_path) as running:
        api_of(running)
        maps = Path(f"/proc/{running.process.pid}/maps")
        assert "cygrpc" not in maps.read_text()
        with dialled(running) as channel:
            services.NodeStub(channel).GetInfo(pb.GetInfoRequest(), timeout=TIME)
        assert "cygrpc" in maps.read_text()
        folder = running.socket.parent
        assert [oct(path.stat().st_mode & 0o777) for path in (folder, folder / "api", api_of(running))] == [
            "0o700", "0o700", "0o600",
        ]  # fmt: skip
    assert not list(folder.glob("api*/*"))
    assert not (folder / "api.sock").exists()


STRANGER = """
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[1])
try:
    s.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    print("got", s.recv(999))
except OSError as error:
    print("refused", error.errno)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_nothing_though_the_folder_is_open(tmp_path):
    become = "os.setgroups([]);os.setgid(65534);os.setuid(65534)"
    code = f"import socket,sys,os\n{become}\n" + STRANGER
    with tempfile.TemporaryDirectory() as short, node(tmp_path) as running:
        path = api_of(running)
        Path(short).chmod(0o755)
        path.chmod(0o666)
        os.link(path, Path(short, "s"))

        def said(program):
            return subprocess.run(
                [sys.executable, "-c", program, f"{short}/s"], check=True, capture_output=True, text=True
            ).stdout

        assert said(code) in {"got b''\n", "refused 104\n", "refused 32\n"}
        assert "cygrpc" not in Path(f"/proc/{running.process.pid}/maps").read_text(), "it never came as far as gRPC"
        own = said(code.replace(become, ""))
        assert own.startswith("got b'")
        assert own != "got b''\n"
        Path(short, "s").unlink()


def test_connections_are_counted_and_let_go(tmp_path):
    with node(tmp_path) as running:
        with dialled(running) as channel:
            services.NodeStub(channel).GetInfo(pb.GetInfoRequest(), timeout=TIME)
        before = descriptors(running)
        held = [socket.socket(socket.AF_UNIX) for _ in range(CONNECTIONS_MAX + 10)]
        for connection in held:
            connection.settimeout(TIME)
            connection.connect(str(api_of(running)))
        assert held[-1].recv(1) == b"", "one more than there may be is closed"
        for connection in held:
            connection.close()
        until = time.monotonic() + TIME
        while descriptors(running) > before and time.monotonic() < until:
            time.sleep(0.02)
        assert descriptors(running) <= before
        with dialled(running) as channel:
            assert services.NodeStub(channel).GetInfo(pb.GetInfoRequest(), timeout=TIME).alias == "alice"


def test_health_and_reflection_on_the_unix_socket(tmp_path):
    with (
        node(tmp_path, [answers(stage="links")], config=CONFIG + "[monitor]\ninterval = 1\n") as running,
        dialled(running) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)

        def state(name):
            return health.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIME).status

        serving, waiting = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert [state(name) for name in ("", "nyx.v1.Node", "nyx.v1.Streams")] == [waiting, serving, waiting]
        running.workers[0].told[admin.Op.STATUS] = status()
        until = time.monotonic() + TIME
        while state("nyx.v1.Streams") != serving:
            assert time.monotonic() < until
            time.sleep(0.05)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked])))
        listed = {service.name for service in answer.list_services_response.service}
        assert {"nyx.v1.Node", "nyx.v1.Streams", "nyx.v1.Configuration", "grpc.health.v1.Health"} <= listed


def test_by_tcp_only_a_token_lets_in(tmp_path):
    port, token = free_port(), "0123456789abcdef" * 2
    file = private(tmp_path / "token", f"{token}\n".encode())
    with node(tmp_path, config=tcp(port, token_file=file)), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = services.NodeStub(channel)
        asked = pb.GetInfoRequest()
        right = (("authorization", f"Bearer {token}"),)
        assert client.GetInfo(asked, metadata=right, timeout=TIME, wait_for_ready=True).alias == "alice"
        for metadata in ((), (("authorization", "Bearer 0123456789abcdef"),), (("authorization", token),)):
            with failing("unauthenticated", grpc.StatusCode.UNAUTHENTICATED):
                client.GetInfo(asked, metadata=metadata, timeout=TIME)
            with failing("unauthenticated", grpc.StatusCode.UNAUTHENTICATED):
                next(client.SubscribeEvents(pb.SubscribeEventsRequest(), metadata=metadata, timeout=TIME))
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=right, timeout=TIME
        )
        with pytest.raises(grpc.RpcError) as error:
            next(reflected)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with socket.create_connection(("127.0.0.1", port), TIME) as browser:
            browser.sendall(
                f"POST /nyx.v1.Node/Shutdown HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            said = b""
            with contextlib.suppress(OSError):
                while data := browser.recv(4096):
                    said += data
            assert not said.startswith(b"HTTP/")


def test_by_tcp_only_a_signed_certificate_lets_in(tmp_path):
    port = free_port()
    ours, other = authority("ours"), authority("other")
    server, mine, stranger = ours.issue("localhost"), ours.issue("desk"), other.issue("desk")
    keys = {
        "tls_cert": private(tmp_path / "cert", server.chain), "tls_key": private(tmp_path / "key", server.key),
        "client_ca": private(tmp_path / "ca", ours.chain),
    }  # fmt: skip

    def asked(key, chain):
        credentials = grpc.ssl_channel_credentials(ours.chain, key, chain)
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            return services.NodeStub(channel).GetInfo(pb.GetInfoRequest(), timeout=TIME, wait_for_ready=bool(key == mine.key))

    with node(tmp_path, config=tcp(port, **keys)):
        assert asked(mine.key, mine.chain).alias == "alice"
        for key, chain in ((None, None), (stranger.key, stranger.chain)):
            with pytest.raises(grpc.RpcError) as error:
                asked(key, chain)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def warned(running, word):
    """Wait for a warning with this word; all warnings."""
    until = time.monotonic() + TIME
    with dialled(running) as channel:
        client = services.NodeStub(channel)
        while True:
            found = list(client.GetInfo(pb.GetInfoRequest(), timeout=TIME).warnings)
            if any(word in text for text in found):
                return found
            assert time.monotonic() < until, found
            time.sleep(0.05)


def test_a_new_token_holds_from_the_next_call_on_and_a_bad_one_never(tmp_path):
    port, one, other = free_port(), "0123456789abcdef", "fedcba9876543210"
    file = private(tmp_path / "token", one.encode())
    with node(tmp_path, config=tcp(port, token_file=file)) as running, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = services.NodeStub(channel)

        def lets_in(token):
            metadata = (("authorization", f"Bearer {token}"),)
            called = client.GetInfo.future(pb.GetInfoRequest(), metadata=metadata, timeout=TIME, wait_for_ready=True)
            refused: grpc.StatusCode | None = called.code() if called.exception() else None
            return {None: True, grpc.StatusCode.UNAUTHENTICATED: False}[refused]

        assert (lets_in(one), lets_in(other)) == (True, False)
        file.write_text(other)
        assert (lets_in(one), lets_in(other)) == (False, True)
        file.write_text("short")
        assert (lets_in("short"), lets_in(other)) == (False, True)
        [text] = [text for text in warned(running, "a token has") if "a token has" in text]
        assert "what was read before stays in force" in text
        assert "short" not in text
        file.write_text(one)
        assert (lets_in(one), lets_in(other)) == (True, False)


def test_a_renewed_certificate_is_shown_to_the_next_connection_and_half_a_pair_to_none(tmp_path):
    port = free_port()
    ours = authority("ours")
    first, second, mine = ours.issue("localhost"), ours.issue("localhost"), ours.issue("desk")
    keys = {
        "tls_cert": private(tmp_path / "cert", first.chain), "tls_key": private(tmp_path / "key", first.key),
        "client_ca": private(tmp_path / "ca", ours.chain),
    }  # fmt: skip
    files = {name: private(tmp_path / f"{name}.pem", data) for name, data in (("key", mine.key), ("chain", mine.chain))}

    def shown():
        context = ssl.create_default_context(cadata=ours.chain.decode())
        context.load_cert_chain(files["chain"], files["key"])
        with (
            socket.create_connection(("127.0.0.1", port), TIME) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"").split()

    with node(tmp_path, config=tcp(port, **keys)) as running:
        until = time.monotonic() + TIME
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                assert shown() == first.chain.decode().split()
                break
            assert time.monotonic() < until
            time.sleep(0.05)
        keys["tls_cert"].write_bytes(second.chain)
        assert shown() == first.chain.decode().split()
        assert "not the key of the certificate" in "\n".join(warned(running, "not the key"))
        keys["tls_key"].write_bytes(second.key)
        assert shown() == second.chain.decode().split()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('listen = "127.0.0.1:9753"', "api.client_ca or api.token_file"),
        ('listen = "127.0.0.1:9753"\ntls_cert = "a"\ntls_key = "b"', "api.client_ca or api.token_file"),
        ('listen = "0.0.0.0:9753"\ntoken_file = "t"', "a token needs api.tls_cert and api.tls_key"),
        ('listen = "127.0.0.1:9753"\ntls_cert = "a"\ntoken_file = "t"', "need each other"),
        ('client_ca = "a"', "needs api.tls_cert"),
    ],
)
def test_a_door_without_a_lock_is_no_configuration(tmp_path, keys, problem):
    file = tmp_path / "nyx.toml"
    file.write_text(f"{CONFIG}[api]\n{keys}\n")
    with pytest.raises(ConfigError, match=problem):
        load(file)


def test_a_token_that_others_can_read_is_not_used(tmp_path):
    file = private(tmp_path / "token", b"0123456789abcdef" * 2)
    file.chmod(0o644)
    with node(tmp_path, config=tcp(free_port(), token_file=file)) as running, dialled(running) as channel:
        client = services.NodeStub(channel)
        until = time.monotonic() + TIME
        while not (found := client.GetInfo(pb.GetInfoRequest(), timeout=TIME).warnings) and time.monotonic() < until:
            time.sleep(0.05)
        assert [("api.listen" in text, "not served" in text) for text in found] == [(True, True)]
