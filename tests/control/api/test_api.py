"""The gRPC API of a real control process beside stand-ins of workers: what is made, and what is answered."""

import os
import signal
import time

import grpc
import pytest

from control.api import generate
from control.api.generated import nyx_v1_pb2 as pb
from control.api.generated import nyx_v1_pb2_grpc as services
from nyx.wire import admin
from tests.control.api.dial import TIME, dialled, failing
from tests.control.nodes import CONFIG, node
from tests.control.workers import answers, peer, status, stream

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
