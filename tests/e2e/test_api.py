"""The gRPC API of real nodes: every method once, bytes through the network, changes of the configuration, deaths."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.network import ROOT, Network, command_environment, free_port, running_network
from control.api.generated import nyx_v1_pb2 as pb
from control.api.generated import nyx_v1_pb2_grpc as services
from tests.e2e.conftest import blob_digest
from tests.e2e.test_sdk import descendant, supervisor_of

pytestmark = pytest.mark.timeout(180)

SIZE = 4 << 20
TIME = 60


def socket_of(network: Network, alias: str) -> Path:
    return next(Path(node["socket"]).parent / "api.sock" for node in network.nodes() if node["alias"] == alias)


@contextlib.contextmanager
def dialled(path: Path) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.max_reconnect_backoff_ms", 200)]) as channel:
        yield channel


@pytest.fixture
def channel(network: Network) -> Iterator[grpc.Channel]:
    with dialled(socket_of(network, network.client())) as found:
        yield found


def code_of(error: "pytest.ExceptionInfo[grpc.RpcError]") -> tuple[Any, str]:
    return error.value.code(), told_by(error).code


def told_by(error: "pytest.ExceptionInfo[grpc.RpcError]") -> pb.Error:
    trailing: Any = error.value.trailing_metadata()
    return pb.Error.FromString(dict(trailing)["nyx-error-bin"])


def target(web: str, **options: Any) -> pb.OpenStreamRequest:
    return pb.OpenStreamRequest(host="127.0.0.1", port=int(web.rpartition(":")[2]), **options)


def get(first: pb.StreamRequest, size: int) -> Iterator[pb.StreamRequest]:
    yield first
    yield pb.StreamRequest(data=f"GET /blob/{size} HTTP/1.0\r\n".encode())
    yield pb.StreamRequest(data=b"\r\n")


def body(answers: Any) -> bytes:
    return b"".join(answer.data for answer in answers).partition(b"\r\n\r\n")[2]


def test_bytes_come_through_the_network_unchanged(channel: grpc.Channel, web: str) -> None:
    client = services.StreamsStub(channel)
    answers = client.Stream(get(pb.StreamRequest(open=target(web)), SIZE), timeout=TIME)
    assert hashlib.sha256(body(answers)).hexdigest() == blob_digest(SIZE)
    opened = client.OpenStream(target(web, isolation="desk"), timeout=TIME)
    kinds = [a.WhichOneof("what") for a in client.Stream(get(pb.StreamRequest(handle=opened.handle), 1000), timeout=TIME)]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("opened", "end", {"data"})
    with pytest.raises(grpc.RpcError) as again:
        next(client.Stream(iter([pb.StreamRequest(handle=opened.handle)]), timeout=TIME))
    assert code_of(again) == (grpc.StatusCode.NOT_FOUND, "not_found")


def test_an_upload_and_a_half_close(channel: grpc.Channel, web: str) -> None:
    data = os.urandom(SIZE)

    def requests() -> Iterator[pb.StreamRequest]:
        yield pb.StreamRequest(open=target(web))
        yield pb.StreamRequest(data=f"PUT / HTTP/1.0\r\nContent-Length: {SIZE}\r\n\r\n".encode())
        for start in range(0, SIZE, 1 << 18):
            yield pb.StreamRequest(data=data[start : start + (1 << 18)])
        yield pb.StreamRequest(end=pb.End())

    assert body(services.StreamsStub(channel).Stream(requests(), timeout=TIME)).decode() == hashlib.sha256(data).hexdigest()


def test_streams_are_seen_measured_and_closed_and_refusals_say_why(channel: grpc.Channel, web: str) -> None:
    client = services.StreamsStub(channel)

    def listed() -> dict[bytes, pb.StreamInfo]:
        rows = client.ListStreams(pb.ListStreamsRequest(show_targets=True), timeout=TIME).streams
        return {row.ref.SerializeToString(): row for row in rows}

    before = listed()  # streams of the tests before, which may end any moment
    opened = client.OpenStream(target(web), timeout=TIME)
    [mine] = [row for ref, row in listed().items() if ref not in before]
    assert (mine.state, mine.target.endswith(web.rpartition(":")[2])) == ("open", True)
    assert client.GetStream(pb.GetStreamRequest(ref=mine.ref), timeout=TIME).state == "open"
    figures = client.StreamStats(pb.StreamStatsRequest(ref=mine.ref, interval=0.1), timeout=TIME)
    next(figures)
    assert next(figures).streams[0].HasField("rate_out")
    call = client.Stream(iter([pb.StreamRequest(handle=opened.handle)]), timeout=TIME)
    assert next(call).opened.handle == opened.handle
    client.CloseStream(pb.CloseStreamRequest(ref=mine.ref), timeout=TIME)
    with pytest.raises(grpc.RpcError) as reset:
        list(call)
    assert code_of(reset) == (grpc.StatusCode.ABORTED, "stream_reset")
    assert all(row.streams for row in figures), "its figures end with it"
    with pytest.raises(grpc.RpcError) as gone:
        client.CloseStream(pb.CloseStreamRequest(ref=mine.ref), timeout=TIME)
    assert code_of(gone) == (grpc.StatusCode.NOT_FOUND, "not_found")
    second = client.OpenStream(target(web), timeout=TIME)
    client.CloseStream(pb.CloseStreamRequest(handle=second.handle), timeout=TIME)
    with pytest.raises(grpc.RpcError) as refused:
        client.OpenStream(pb.OpenStreamRequest(host="127.0.0.1", port=free_port()), timeout=TIME)
    assert code_of(refused) == (grpc.StatusCode.FAILED_PRECONDITION, "stream_refused")


def test_a_client_that_vanishes_takes_its_stream_with_it(network: Network, channel: grpc.Channel, web: str) -> None:
    client, control = services.StreamsStub(channel), Path(f"/proc/{descendant(supervisor_of(network), 'control')}/fd")

    def open_streams() -> int:
        return sum(
            row.state in {"open", "half-closed"} for row in client.ListStreams(pb.ListStreamsRequest(), timeout=TIME).streams
        )

    until = time.monotonic() + TIME
    while open_streams() and time.monotonic() < until:
        time.sleep(0.1)  # those of the tests before
    before, descriptors = open_streams(), len(list(control.iterdir()))
    for _ in range(5):
        call = client.Stream(get(pb.StreamRequest(open=target(web)), 1 << 30), timeout=TIME)
        while not next(call).data:
            pass
        assert open_streams() == before + 1, "the fault has happened"
        call.cancel()
        until = time.monotonic() + TIME
        while open_streams() > before and time.monotonic() < until:
            time.sleep(0.05)
        assert open_streams() == before
    assert len(list(control.iterdir())) <= descriptors


def test_the_node_tells_of_itself(channel: grpc.Channel) -> None:
    client = services.NodeStub(channel)
    info = client.GetInfo(pb.GetInfoRequest(), timeout=TIME)
    assert (info.ready, info.role, info.config >= 1) == (True, "client", True)
    control = next(process for process in info.processes if process.name == "control")
    assert "system_calls" in control.sealed, "gRPC runs in the sealed process"
    found = client.GetPerformance(pb.GetPerformanceRequest(over=0.2), timeout=TIME)
    assert found.latencies["link_round_trip"].p99 > 0
    assert all(use.memory for use in found.processes)
    assert any(peer.state == "up" for peer in client.ListPeers(pb.ListPeersRequest(), timeout=TIME).peers)
    circuits = [c for c in client.ListCircuits(pb.ListCircuitsRequest(), timeout=TIME).circuits if c.state == "ready"]
    assert all(len(circuit.hops) == 3 for circuit in circuits)
    first = circuits[0]
    client.CloseCircuit(pb.CloseCircuitRequest(worker=first.worker, circuit=first.id), timeout=TIME)
    events = client.SubscribeEvents(pb.SubscribeEventsRequest(after=pb.Position(), kinds=["circuits_closed"]), timeout=TIME)
    assert [next(events).WhichOneof("what") for _ in range(2)] == ["gap", "event"]
    worker = client.RestartWorker(pb.RestartWorkerRequest(worker=0), timeout=TIME)
    after = client.GetInfo(pb.GetInfoRequest(), timeout=TIME)
    assert worker.pid in {process.pid for process in after.processes}
    assert worker.pid not in {process.pid for process in info.processes}


def test_the_configuration_is_changed_as_a_whole_and_taken_back(channel: grpc.Channel) -> None:
    client = services.ConfigurationStub(channel)
    before = client.GetConfig(pb.GetConfigRequest(), timeout=TIME)
    file = Path(before.file)
    text = file.read_text()
    value = {setting.key: json.loads(setting.value_json) for setting in before.settings}["path.circuits_ahead"]
    request = pb.UpdateConfigRequest(set_json={"path.circuits_ahead": str(value + 1)}, if_version=before.version)
    request.dry_run = True
    dry = client.UpdateConfig(request, timeout=TIME)
    assert ([c.key for c in dry.changes], dry.HasField("reload"), file.read_text()) == (["path.circuits_ahead"], False, text)
    request.dry_run = False
    done = client.UpdateConfig(request, timeout=TIME)
    assert (list(done.files), done.reload.version, [c.new_json for c in done.reload.applied]) == (
        [str(file)], before.version + 1, [str(value + 1)],
    )  # fmt: skip
    with pytest.raises(grpc.RpcError) as stale:
        client.UpdateConfig(request, timeout=TIME)
    assert code_of(stale) == (grpc.StatusCode.ABORTED, "version_changed")
    changed = file.read_text()
    for bad in ({"path.circuits_ahead": "true"}, {"path.no_such": "1"}):
        with pytest.raises(grpc.RpcError) as wrong:
            client.UpdateConfig(pb.UpdateConfigRequest(set_json=bad), timeout=TIME)
        assert code_of(wrong) == (grpc.StatusCode.FAILED_PRECONDITION, "config")
    assert file.read_text() == changed
    file.write_text(changed + "\n[nonsense]\nx = 1\n")
    with pytest.raises(grpc.RpcError) as wrong:
        client.Reload(pb.ReloadRequest(), timeout=TIME)
    assert code_of(wrong) == (grpc.StatusCode.FAILED_PRECONDITION, "config")
    assert any("nonsense: unknown section" in problem for problem in told_by(wrong).problems)
    file.write_text(changed)
    assert not client.Reload(pb.ReloadRequest(), timeout=TIME).changed
    assert not client.DiffConfig(pb.DiffConfigRequest(), timeout=TIME).changes
    back = client.Rollback(pb.RollbackRequest(), timeout=TIME)
    assert [c.new_json for c in back.reload.applied] == [str(value)]
    history = client.GetHistory(pb.GetHistoryRequest(), timeout=TIME)
    assert [entry.origin for entry in history.versions[:2]] == ["rollback", "set"]
    kept = client.GetVersion(pb.GetVersionRequest(version=before.version + 1), timeout=TIME)
    assert kept.settings_json["path.circuits_ahead"] == str(value + 1)
    assert history.running == back.reload.version == before.version + 2


def test_a_killed_control_process_answers_again_with_the_same_state(network: Network, channel: grpc.Channel) -> None:
    client, settings = services.NodeStub(channel), services.ConfigurationStub(channel)

    def state() -> tuple[Any, ...]:
        circuits = client.ListCircuits(pb.ListCircuitsRequest(), timeout=TIME, wait_for_ready=True).circuits
        config = settings.GetConfig(pb.GetConfigRequest(), timeout=TIME, wait_for_ready=True)
        info = client.GetInfo(pb.GetInfoRequest(), timeout=TIME, wait_for_ready=True)
        own = {(c.worker, c.id, *(hop.node for hop in c.hops)) for c in circuits if c.state == "ready"}
        return own, config.version, [s.value_json for s in config.settings], info.pid, info.start_time

    events = client.SubscribeEvents(pb.SubscribeEventsRequest(after=pb.Position()), timeout=TIME)
    next(events)
    place = next(events).event.position
    before, pid = state(), descendant(supervisor_of(network), "control")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as lost:
        list(events)
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
    until = time.monotonic() + TIME
    after = None
    while after is None and time.monotonic() < until:
        with contextlib.suppress(grpc.RpcError):  # a call may still meet the connection that has just broken
            after = state()
    assert after == before
    assert descendant(supervisor_of(network), "control") != pid
    again = client.SubscribeEvents(pb.SubscribeEventsRequest(after=place), timeout=TIME, wait_for_ready=True)
    assert next(again).WhichOneof("what") == "gap"
    assert "control_restarted" in {next(again).event.kind for _ in range(2)}


def test_the_example_of_the_page(network: Network, web: str) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text("utf-8"), re.DOTALL)
    command = [sys.executable, "-c", code, str(socket_of(network, network.client())), "127.0.0.1", web.rpartition(":")[2]]
    done = subprocess.run(command, check=True, capture_output=True, timeout=TIME, env=command_environment())
    assert b"alice ready" in done.stdout
    assert b"HTTP/1.0 404" in done.stdout or b"HTTP/1.1 404" in done.stdout


def test_a_node_is_upgraded_and_stopped(tmp_path: Path) -> None:
    with running_network(tmp_path, "--hops", "2", nodes=4) as network:
        node = next(row for row in network.nodes() if row["role"] == "relay")
        with dialled(socket_of(network, node["alias"])) as channel:
            client = services.NodeStub(channel)
            before = client.GetInfo(pb.GetInfoRequest(), timeout=TIME)
            assert not client.Upgrade(pb.UpgradeRequest(), timeout=TIME).drained
            until, after = time.monotonic() + TIME, before
            while time.monotonic() < until:
                with contextlib.suppress(grpc.RpcError):
                    after = client.GetInfo(pb.GetInfoRequest(), timeout=TIME, wait_for_ready=True)
                    if after.upgrades > before.upgrades:
                        break
                time.sleep(0.1)
            assert (after.upgrades, after.pid) == (before.upgrades + 1, before.pid)
            assert client.Shutdown(pb.ShutdownRequest(), timeout=TIME).pid == before.pid
            until = time.monotonic() + TIME
            while Path(f"/proc/{before.pid}").exists() and time.monotonic() < until:
                time.sleep(0.1)
            assert not Path(f"/proc/{before.pid}").exists()
            assert not socket_of(network, node["alias"]).exists()
