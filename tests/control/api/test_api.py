"""The gRPC API of a real control process beside stand-ins of workers: who is served, what is answered, what cannot harm it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.network import free_port
from control.api import generate
from control.api.front import CONNECTIONS_MAX
from control.api.generated import nyx_v1_pb2 as pb
from control.api.generated import nyx_v1_pb2_grpc as services
from control.api.server import REQUEST_MAX
from nyx.config import load
from nyx.errors import ConfigError
from nyx.wire import admin
from tests.control.api.certificates import authority
from tests.control.nodes import CONFIG, node
from tests.control.workers import answers, peer, status, stream

METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
TIME = 30


def api_of(running):
    path = running.socket.parent / "api.sock"
    until = time.monotonic() + TIME
    while not path.is_socket():
        assert time.monotonic() < until, "there is no api.sock"
        time.sleep(0.01)
    return path


@contextlib.contextmanager
def dialled(running):
    with grpc.insecure_channel(f"unix:{api_of(running)}") as channel:
        yield channel


@contextlib.contextmanager
def failing(code, status):
    with pytest.raises(grpc.RpcError) as found:
        yield found
    trailing: Any = found.value.trailing_metadata()
    assert (found.value.code(), dict(trailing)["nyx-error-code"]) == (status, code)
    told = pb.Error.FromString(dict(trailing)["nyx-error-bin"])
    assert (told.code, bool(told.advice)) == (code, True)


def descriptors(running):
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


# ---------------------------------------------------------------- what is made


def test_the_code_and_the_page_are_those_of_the_protocol_file(tmp_path):
    made = generate.code(tmp_path)
    kept = sorted((generate.ROOT / "control/api/generated").glob("nyx_v1_pb2*"))
    assert [(file.name, file.read_text()) for file in made] == [(file.name, file.read_text()) for file in kept], "run: make api"
    page = generate.PAGE.read_text("utf-8")
    assert generate.page(page) == page, "run: make api"


# ---------------------------------------------------------------- what is answered


def test_the_node_is_told_as_nyxctl_tells_it(tmp_path):
    told = answers(0, 2) | {admin.Op.PEERS: ("peers", [peer(), peer(node=None, alias=None, rtt=None)])}
    with node(tmp_path, [told, answers(1)]) as running, dialled(running) as channel:
        client = services.NodeStub(channel)
        info = client.GetInfo(pb.GetInfoRequest(), timeout=TIME)
        assert (info.alias, info.ready, info.stage, info.pid, info.connected_peers) == ("alice", True, "ready", os.getpid(), 2)
        assert [process.name for process in info.processes] == ["supervisor", "control", "worker 0", "worker 1"]
        assert not info.HasField("config"), "this node has no versions: none may be invented"
        circuits = client.ListCircuits(pb.ListCircuitsRequest(), timeout=TIME)
        assert [(c.worker, c.id, len(c.hops)) for c in circuits.circuits] == [(0, 0, 3), (0, 1, 3), (1, 0, 3)]
        peers = client.ListPeers(pb.ListPeersRequest(), timeout=TIME).peers
        assert [p.HasField("node") for p in peers] == [True, False, True]
        assert [p.HasField("round_trip") for p in peers] == [True, False, True]
        assert peers[0].round_trip == pytest.approx(0.0004)
        client.CloseCircuit(pb.CloseCircuitRequest(worker=1, circuit=2), timeout=TIME)
        assert running.workers[1].asked[-1].args == {"circuit": 2}
        found = client.GetPerformance(pb.GetPerformanceRequest(over=0.1), timeout=TIME)
        assert found.counters["packets_out"] == 3
        assert not found.latencies["stream_open"].HasField("p50")
        assert {use.role for use in found.processes} == {"supervisor", "control", "keeper", "worker"}
        assert found.processes[0].memory > 1 << 20


def test_rates_are_those_of_the_moment(tmp_path):
    with node(tmp_path) as running, dialled(running) as channel:
        client = services.NodeStub(channel)
        client.GetInfo(pb.GetInfoRequest(), timeout=TIME)
        call = client.GetPerformance.future(pb.GetPerformanceRequest(over=2), timeout=TIME)
        time.sleep(0.5)
        running.count(0, "packets_in", 1000)
        rates = call.result().rates
        assert rates.packets_in * rates.seconds == pytest.approx(1000)
        assert rates.bytes_in == pytest.approx(1280 * rates.packets_in)
        assert rates.packets_out == 0


def test_streams_are_told_with_their_targets_on_demand_only(tmp_path):
    told = answers() | {admin.Op.STREAMS: ("streams", [stream(3), stream(None, circuit=None, state="closed", reason="policy")])}
    told[admin.Op.CLOSE_STREAM] = {"closed": True}
    with node(tmp_path, [told]) as running, dialled(running) as channel:
        client = services.StreamsStub(channel)
        first, failed = client.ListStreams(pb.ListStreamsRequest(), timeout=TIME).streams
        assert not first.HasField("target")
        assert not failed.HasField("ref")
        assert failed.reason == "policy"
        one = client.GetStream(pb.GetStreamRequest(ref=first.ref, show_target=True), timeout=TIME)
        assert (one.target, one.ref) == ("secret.example:80", first.ref)
        with failing("not_found", grpc.StatusCode.NOT_FOUND):
            client.GetStream(pb.GetStreamRequest(ref=pb.StreamRef(circuit=1, id=4)), timeout=TIME)
        figures = client.StreamStats(pb.StreamStatsRequest(ref=first.ref, interval=0.1), timeout=TIME)
        assert not next(figures).streams[0].HasField("rate_in")
        told[admin.Op.STREAMS] = ("streams", [stream(3, bytes_in=1 << 40)])
        while not next(figures).streams[0].rate_in > 0:
            pass
        told[admin.Op.STREAMS] = ("streams", [])
        for last in figures:
            assert last.streams
        assert figures.code() is grpc.StatusCode.OK, "the end of its stream ends the call"
        client.CloseStream(pb.CloseStreamRequest(ref=first.ref), timeout=TIME)
        assert running.workers[0].asked[-1].args == {"circuit": 1, "stream": 3}


def test_events_go_on_where_a_client_left_them(tmp_path):
    told = answers()
    with node(tmp_path, [told], config=CONFIG + "[monitor]\ninterval = 1\n") as running, dialled(running) as channel:
        client = services.NodeStub(channel)
        everything = client.SubscribeEvents(pb.SubscribeEventsRequest(after=pb.Position()), timeout=TIME)
        assert next(everything).WhichOneof("what") == "gap"
        first = next(everything).event
        assert first.kind == "ready"
        running.count(0, "links_opened", 2)
        told[admin.Op.STATUS] = status(stage="links", warnings=["no way to canary.example:443"])
        call = client.SubscribeEvents(pb.SubscribeEventsRequest(after=first.position), timeout=TIME)
        found: list[pb.Event] = []
        while {"links_opened", "not_ready", "warning_set"} - {event.kind for event in found}:
            found.append(next(call).event)
        call.cancel()
        numbers = [event.position.sequence for event in found]
        assert numbers == list(range(first.position.sequence + 1, first.position.sequence + 1 + len(found)))
        kinds = {event.kind: event for event in found}
        assert kinds["links_opened"].count == 2
        assert kinds["not_ready"].text == "links"
        assert not kinds["links_opened"].HasField("worker")
        assert "canary" not in str(found)
        again = client.SubscribeEvents(pb.SubscribeEventsRequest(after=found[0].position), timeout=TIME)
        assert [next(again).event for _ in found[1:]] == found[1:]
        chosen = client.SubscribeEvents(pb.SubscribeEventsRequest(after=first.position, kinds=["links_opened"]), timeout=TIME)
        assert next(chosen).event == kinds["links_opened"]
        other = client.SubscribeEvents(pb.SubscribeEventsRequest(after=pb.Position(life="another", sequence=9)), timeout=TIME)
        assert next(other).WhichOneof("what") == "gap"
        assert next(other).event.position.sequence == 1
        early = pb.Position(life=first.position.life, sequence=1 << 40)
        with failing("bad_request", grpc.StatusCode.INVALID_ARGUMENT):
            next(client.SubscribeEvents(pb.SubscribeEventsRequest(after=early), timeout=TIME))


def test_the_feed_and_the_api_number_the_same_events(tmp_path):
    import json

    import zmq

    config = CONFIG + "[monitor]\ninterval = 1\nfeed = true\n"
    with node(tmp_path, config=config) as running, dialled(running) as channel, zmq.Context() as context:
        with context.socket(zmq.SUB) as reader:
            reader.setsockopt(zmq.LINGER, 0)
            reader.subscribe("nyx.events")
            reader.connect(f"ipc://{running.socket.parent}/feed.sock")
            assert reader.poll(TIME * 1000)
            fed = json.loads(reader.recv_multipart()[1])
        after = pb.Position(life=fed["life"], sequence=fed["seq"] - 1)
        event = next(services.NodeStub(channel).SubscribeEvents(pb.SubscribeEventsRequest(after=after), timeout=TIME)).event
        assert (event.kind, event.time, event.position.sequence) == (fed["data"]["kind"], fed["time"], fed["seq"])


def test_shutdown_is_an_order_to_the_supervisor(tmp_path):
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(1))  # this process is the supervisor of the stand-in
    try:
        with node(tmp_path) as running, dialled(running) as channel:
            assert services.NodeStub(channel).Shutdown(pb.ShutdownRequest(), timeout=TIME).pid == os.getpid()
            until = time.monotonic() + TIME
            while not told and time.monotonic() < until:
                time.sleep(0.01)
            assert told == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_a_node_without_supervisor_and_sdk_cannot_do_is_said(tmp_path):
    with node(tmp_path, config=CONFIG + "[sdk]\nenabled = false\n") as running, dialled(running) as channel:
        with failing("unknown_operation", grpc.StatusCode.FAILED_PRECONDITION):
            services.ConfigurationStub(channel).Reload(pb.ReloadRequest(), timeout=TIME)
        with failing("sdk_off", grpc.StatusCode.FAILED_PRECONDITION):
            services.StreamsStub(channel).OpenStream(pb.OpenStreamRequest(host="a.example", port=80), timeout=TIME)
        with failing("bad_request", grpc.StatusCode.INVALID_ARGUMENT):
            services.NodeStub(channel).GetPerformance(pb.GetPerformanceRequest(over=1e9), timeout=TIME)
        assert services.NodeStub(channel).GetInfo(pb.GetInfoRequest(), timeout=TIME).ready


# ---------------------------------------------------------------- who is served


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


def tcp(port, **keys):
    lines = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    return CONFIG + f'[api]\nlisten = "127.0.0.1:{port}"\n{lines}'


def private(path, data):
    path.touch(0o600)
    path.write_bytes(data)
    return path


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


# ---------------------------------------------------------------- what cannot harm it

FUZZED = [(path, method) for path, method in METHODS if method.name != "Shutdown"]  # any bytes may be a valid Shutdown


NUMBERS = st.integers(-(1 << 31), (1 << 31) - 1)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "double": st.floats(),
    "int64": st.integers(-(1 << 63), (1 << 63) - 1),
    "uint64": st.integers(0, (1 << 64) - 1),
    "int32": NUMBERS,
    "uint32": st.integers(0, (1 << 32) - 1),
    "bool": st.booleans(),
    "string": st.text(max_size=20) | st.sampled_from(["127.0.0.1", "path.hops", '"x"', "3", "[" * 9000]),
    "bytes": st.binary(max_size=64),
}


def messages_of(kind: Any) -> st.SearchStrategy[Any]:
    """Messages of a type, with any fields set to anything that they can hold."""

    def one(field: Any) -> st.SearchStrategy[Any]:
        if field.message_type and field.message_type.GetOptions().map_entry:
            return st.dictionaries(VALUES["string"], VALUES["string"], max_size=3)
        value = messages_of(field.message_type) if field.message_type else VALUES[generate.SCALARS[field.type]]
        return st.lists(value, max_size=3) if field.is_repeated else value

    fields = {field.name: one(field) for field in kind.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: GetMessageClass(kind)(**values))


def calls(target):
    """Attempts at a method: messages of its own, or any bytes."""
    own = messages_of(target[1].input_type).map(lambda message: message.SerializeToString())
    return st.tuples(st.just(target), st.lists(own | st.binary(max_size=64), min_size=1, max_size=3))


def test_no_message_and_no_client_that_vanishes_does_harm(tmp_path):
    told = answers() | {admin.Op.CLOSE_STREAM: {"closed": True}}
    with node(tmp_path, [told]) as running, dialled(running) as channel:
        client = services.NodeStub(channel)
        client.GetInfo(pb.GetInfoRequest(), timeout=TIME)
        before = descriptors(running)

        @settings(max_examples=200)
        @given(st.sampled_from(FUZZED).flatmap(calls), st.booleans())
        def attack(attempt, vanish):
            (path, method), messages = attempt
            if method.client_streaming:
                call = channel.stream_stream(path)(iter(messages), timeout=TIME)
            elif method.server_streaming:
                call = channel.unary_stream(path)(messages[0], timeout=TIME)
            else:
                call = channel.unary_unary(path).future(messages[0], timeout=TIME)
            if vanish or method.server_streaming:
                call.cancel()
                return
            assert call.code() not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}, (path, messages, call.details())

        attack()
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/nyx.v1.Node/GetInfo")(bytes(REQUEST_MAX + 1), timeout=TIME)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/nyx.v1.Node/Invented")(b"", timeout=TIME)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        for _ in range(5):
            vanish(running)
        until = time.monotonic() + TIME
        while descriptors(running) > before and time.monotonic() < until:
            time.sleep(0.02)
        assert descriptors(running) <= before
        assert client.GetInfo(pb.GetInfoRequest(), timeout=TIME).alias == "alice"


def vanish(running):
    """A client that is killed while it listens to events and to figures."""
    code = """
import os, sys
import grpc
from control.api.generated import nyx_v1_pb2 as pb, nyx_v1_pb2_grpc as services
channel = grpc.insecure_channel("unix:" + sys.argv[1])
events = services.NodeStub(channel).SubscribeEvents(pb.SubscribeEventsRequest(after=pb.Position(life="none")))
figures = services.StreamsStub(channel).StreamStats(pb.StreamStatsRequest(interval=0.1))
next(events), next(figures), next(figures)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(api_of(running))], check=False, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_clients_that_do_not_read_cost_little_and_others_nothing(tmp_path):
    told = answers() | {admin.Op.STREAMS: ("streams", [stream(i) for i in range(1000)])}
    with node(tmp_path, [told]) as running, dialled(running) as channel:
        client = services.NodeStub(channel)
        client.GetInfo(pb.GetInfoRequest(), timeout=TIME)

        def memory():
            return int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]) * 4096

        with contextlib.ExitStack() as stack:
            stalled = []
            client_of_streams = services.StreamsStub(channel)
            for _ in range(10):  # on connections of their own: calls of one share its window
                options = [("grpc.use_local_subchannel_pool", 1)]
                one = stack.enter_context(grpc.insecure_channel(f"unix:{api_of(running)}", options=options))
                stalled.append(services.StreamsStub(one).StreamStats(pb.StreamStatsRequest(interval=0.1)))
                assert len(next(stalled[-1]).streams) == 1000
            before = memory()
            figures = client_of_streams.StreamStats(pb.StreamStatsRequest(interval=0.1), timeout=TIME)
            for _ in range(10):
                assert len(next(figures).streams) == 1000
            assert memory() - before < 64 << 20
            for call in [*stalled, figures]:
                call.cancel()


def test_a_worker_that_does_not_answer_ends_no_figures(tmp_path):
    told = answers() | {admin.Op.STREAMS: ("streams", [stream(3)])}
    with node(tmp_path, [told, {}]) as running, dialled(running) as channel:
        client = services.StreamsStub(channel)
        figures = client.StreamStats(pb.StreamStatsRequest(ref=pb.StreamRef(worker=1, circuit=1, id=1), interval=0.1))
        found = next(figures)
        assert (list(found.streams), list(found.unreachable)) == ([], [1])
        with failing("timeout", grpc.StatusCode.UNAVAILABLE):
            client.GetStream(pb.GetStreamRequest(ref=pb.StreamRef(worker=1, circuit=1, id=1)), timeout=TIME)
        figures.cancel()


def test_a_run_folder_of_any_name_and_a_port_that_becomes_free(tmp_path):
    folder = tmp_path / "a %41 #b"
    folder.mkdir()
    file = private(folder / "token", b"0123456789abcdef" * 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with node(folder, config=tcp(port, token_file=file)) as running:
            with grpc.insecure_channel(f"unix:{quote(str(api_of(running)))}") as channel:
                client = services.NodeStub(channel)
                until = time.monotonic() + TIME
                while not (found := client.GetInfo(pb.GetInfoRequest(), timeout=TIME).warnings) and time.monotonic() < until:
                    time.sleep(0.05)
                assert ["api.listen" in text for text in found] == [True]
                taken.close()
                while client.GetInfo(pb.GetInfoRequest(), timeout=TIME).warnings and time.monotonic() < until:
                    time.sleep(0.1)
            right = (("authorization", f"Bearer {file.read_text()}"),)
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                info = services.NodeStub(channel).GetInfo(pb.GetInfoRequest(), metadata=right, timeout=TIME, wait_for_ready=True)
            assert (info.alias, list(info.warnings)) == ("alice", [])
