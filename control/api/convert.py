"""Documents of the control process as messages of the API: the same values under the API's names."""

import json
from collections.abc import Iterable
from typing import Any

from control import schemas
from control.api.generated import nyx_v1_pb2 as pb

# Fields that are None stay unset: the constructors of messages take None for that.


def node_info(status: schemas.Status) -> pb.NodeInfo:
    """How the node is."""
    supervisor = next((p.pid for p in status.processes if p.name == "supervisor"), None)
    return pb.NodeInfo(
        alias=status.alias, role=status.role, release=status.release, pid=supervisor, start_time=status.started,
        uptime=status.uptime, ready=status.ready, stage=status.stage, progress=status.progress, active_streams=status.streams,
        connected_peers=status.links, circuits=status.circuits, circuits_ready=status.circuits_ready, proxy=status.proxy,
        address=status.address, port=status.port, config=status.config, waiting=status.waiting, upgrades=status.upgrades,
        warnings=status.warnings, processes=[
            pb.Process(name=p.name, pid=p.pid, restarts=p.restarts, state=p.state, sealed=p.sealed or (), config=p.config)
            for p in status.processes
        ],
    )  # fmt: skip


def circuit(row: schemas.Circuit) -> pb.Circuit:
    """One circuit."""
    hops = [pb.Hop(node=hop.node, alias=hop.alias) for hop in row.hops or ()]
    return pb.Circuit(
        id=row.id, worker=row.worker, role=row.role, state=row.state, hops=hops, age=row.age, streams=row.streams,
        cells_in=row.cells_in, cells_out=row.cells_out,
    )  # fmt: skip


def peer(row: schemas.Peer) -> pb.Peer:
    """One link."""
    return pb.Peer(
        node=row.node, alias=row.alias, worker=row.worker, initiator=row.initiator, state=row.state, sessions=row.sessions,
        suite=row.suite, round_trip=None if row.rtt is None else row.rtt / 1e3, packets_in=row.packets_in,
        packets_out=row.packets_out,
    )  # fmt: skip


def stream(row: schemas.Stream) -> pb.StreamInfo:
    """One stream."""
    whole = None not in {row.id, row.circuit}
    return pb.StreamInfo(
        ref=pb.StreamRef(worker=row.worker, circuit=row.circuit or 0, id=row.id or 0) if whole else None,
        role=row.role, state=row.state, target=row.target, age=row.age, bytes_in=row.bytes_in, bytes_out=row.bytes_out,
        reason=row.reason,
    )  # fmt: skip


def latency(row: schemas.Latency) -> pb.Latency:
    """Times of one kind."""
    return pb.Latency(count=row.count, sum=row.sum, p50=row.p50, p90=row.p90, p99=row.p99)


def changes(rows: Iterable[schemas.ConfigChange]) -> list[pb.Change]:
    """Keys that differ."""
    return [
        pb.Change(key=row.key, old_json=to_json(row.old), new_json=to_json(row.new), live=row.live, effect=row.effect)
        for row in rows
    ]


def config(found: schemas.RunningConfig) -> pb.Config:
    """Every key in force."""
    settings = [pb.Setting(key=s.key, value_json=to_json(s.value), origin=s.origin, about=s.about) for s in found.settings]
    return pb.Config(
        file=found.file, version=found.config, time=found.time, origin=found.origin, settings=settings,
        waiting=changes(found.waiting),
    )  # fmt: skip


def reload(found: schemas.Reload) -> pb.ReloadResponse:
    """What a reload did."""
    return pb.ReloadResponse(
        version=found.config, previous=found.previous, changed=found.changed, applied=changes(found.applied),
        waiting=changes(found.waiting), workers=[pb.WorkerVersion(worker=w.worker, version=w.config) for w in found.workers],
    )  # fmt: skip


def to_json(value: Any) -> str:
    """A setting as JSON."""
    return json.dumps(value, ensure_ascii=False)
