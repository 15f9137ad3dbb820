"""What clients do to the API of a real control process: any message, leaving at any time, not reading. Nothing of it harms."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from control.api import generate
from control.api.generated import nyx_v1_pb2 as pb
from control.api.generated import nyx_v1_pb2_grpc as services
from control.api.server import REQUEST_MAX
from nyx.wire import admin
from tests.control.api.dial import TIME, api_of, descriptors, dialled, failing, private, tcp
from tests.control.nodes import node
from tests.control.workers import answers, stream

METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
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
