"""The documents that `nyxctl --json` prints and the control process answers with: named, versioned, one dataclass each.

A document is a JSON object that begins with "schema" and "version". Within a version fields are only added; a field that is
renamed, removed or changes its meaning makes the next version. `json_schema` gives the JSON Schema of a document.

Size: every document that a program may rely on stands in this one file, without logic, so that a change to any of them is seen.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

T = TypeVar("T")


class Document:
    """Base of all documents."""

    SCHEMA: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def to_json(self) -> dict[str, Any]:
        """The object, its name and version first."""
        return {"schema": self.SCHEMA, "version": self.VERSION, **dataclasses.asdict(self)}  # type: ignore[call-overload]


# ---------------------------------------------------------------- a running node


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a node."""

    name: str  # "supervisor", "control", "worker 0", "keeper 0"
    pid: int | None
    restarts: int
    state: str  # "running", "unreachable" (does not answer) or "down"
    sealed: list[str] | None = None  # names of nyx.sealing.Seal that took effect; null: not told yet
    config: int | None = None  # version of the configuration that a worker runs


@dataclass(frozen=True, slots=True)
class Status(Document):
    """How the node is. `ready`: it can do what its role is for."""

    SCHEMA: ClassVar[str] = "nyx.status"
    alias: str
    role: str
    address: str
    port: int
    release: str
    ready: bool
    stage: str  # "starting", "links", "circuits", "ready": of the worker that is furthest behind
    progress: int  # per cent
    started: int | None  # Unix seconds
    uptime: float  # seconds since the node started
    proxy: str | None  # address:port
    links: int
    circuits: int
    circuits_ready: int
    streams: int
    upgrades: int  # times that the node has replaced its code since it started
    processes: list[Process]
    warnings: list[str]
    config: int | None = None  # version of the configuration in force
    waiting: list[str] = field(default_factory=list)  # keys whose new values need a restart
    memory_used: int | None = None  # bytes that count against the cap; null: no worker has told
    memory_cap: int | None = None  # limits.memory in bytes


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Counters of one worker."""

    worker: int
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of one kind, in seconds; percentiles are null without any. The last of `counts` is what exceeded all `bounds`."""

    count: int
    sum: float
    p50: float | None
    p90: float | None
    p99: float | None
    bounds: list[float]  # upper bound of each bucket but the last
    counts: list[int]  # not cumulative


@dataclass(frozen=True, slots=True)
class Stats(Document):
    """Counters since the node's start; they name no peer, address, circuit or stream.

    `units` names the unit of each counter that is no number of things.
    """

    SCHEMA: ClassVar[str] = "nyx.stats"
    alias: str
    total: dict[str, int]
    workers: list[WorkerStats]
    units: dict[str, str] = field(default_factory=dict)
    latencies: dict[str, Latency] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event(Document):
    """Something that happened; control/feed/events.py lists the kinds."""

    SCHEMA: ClassVar[str] = "nyx.events"
    kind: str
    worker: int | None = None
    count: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event with its number within this life of the control process, from 1, and when it was told (Unix seconds)."""

    seq: int
    time: float
    kind: str
    worker: int | None
    count: int | None
    text: str | None


@dataclass(frozen=True, slots=True)
class EventLog(Document):
    """Events that are kept, oldest first; `complete`: none between the number asked for and the first is lost."""

    SCHEMA: ClassVar[str] = "nyx.event_log"
    alias: str
    life: str  # of the control process: another one numbers from 1 again
    last: int  # number of the newest event, whether or not it is here; 0: there was none
    complete: bool
    events: list[NumberedEvent]


@dataclass(frozen=True, slots=True)
class Hop:
    """One relay of an own circuit."""

    node: str  # node id, hex
    alias: str | None


@dataclass(frozen=True, slots=True)
class Circuit:
    """One circuit; `hops` are known for the node's own circuits only."""

    id: int
    worker: int
    role: str
    state: str
    hops: list[Hop] | None
    age: float
    streams: int | None
    cells_in: int
    cells_out: int


@dataclass(frozen=True, slots=True)
class Circuits(Document):
    """All circuits; `unreachable` are workers that did not answer."""

    SCHEMA: ClassVar[str] = "nyx.circuits"
    alias: str
    circuits: list[Circuit]
    unreachable: list[int]


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream; `target` is told for own streams on demand only, `reason` says why one ended or failed.

    One that failed has no `id` and no bytes any more.
    """

    id: int | None
    worker: int
    circuit: int | None
    role: str
    state: str
    target: str | None
    age: float
    bytes_in: int | None
    bytes_out: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Streams(Document):
    """All streams that begin or end here, the last closed ones among them."""

    SCHEMA: ClassVar[str] = "nyx.streams"
    alias: str
    streams: list[Stream]
    unreachable: list[int]


@dataclass(frozen=True, slots=True)
class Peer:
    """One link; the other end's identity is known when it is a relay. `rtt` is in milliseconds."""

    node: str | None
    alias: str | None
    worker: int
    initiator: bool
    state: str
    sessions: int
    suite: str | None
    rtt: float | None
    packets_in: int
    packets_out: int


@dataclass(frozen=True, slots=True)
class Peers(Document):
    """All links."""

    SCHEMA: ClassVar[str] = "nyx.peers"
    alias: str
    peers: list[Peer]
    unreachable: list[int]


@dataclass(frozen=True, slots=True)
class Closed(Document):
    """A circuit, or one stream on it, was closed on demand."""

    SCHEMA: ClassVar[str] = "nyx.closed"
    alias: str
    worker: int
    circuit: int
    stream: int | None = None


@dataclass(frozen=True, slots=True)
class Restarted(Document):
    """A worker was started anew on demand."""

    SCHEMA: ClassVar[str] = "nyx.restarted"
    alias: str
    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class Upgrading(Document):
    """The node has begun to replace its code."""

    SCHEMA: ClassVar[str] = "nyx.upgrading"
    alias: str
    release: str  # that was running
    upgrades: int  # before this one
    control: int  # pid of the control process that answers: another one belongs to the new code
    drained: bool  # the new code cannot take over what runs: nothing new is taken, then the node starts from nothing
    changes: list[str]  # why, as sentences


@dataclass(frozen=True, slots=True)
class Upgraded(Document):
    """The node runs the code that is installed."""

    SCHEMA: ClassVar[str] = "nyx.upgraded"
    alias: str
    before: str  # releases
    after: str
    drained: bool
    seconds: float
    streams: int  # that went on; after draining none


# ---------------------------------------------------------------- the configuration of a running node


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One key that differs; `effect` says from when a change holds, or that it needs a restart."""

    key: str
    old: Any
    new: Any
    live: bool
    effect: str


@dataclass(frozen=True, slots=True)
class WorkerVersion:
    """The version that a worker says it runs; 0: it does not answer."""

    worker: int
    config: int


@dataclass(frozen=True, slots=True)
class Reload(Document):
    """What a reload did: `config` is the version in force, `waiting` is wanted by the files and needs a restart."""

    SCHEMA: ClassVar[str] = "nyx.reload"
    alias: str
    file: str
    config: int
    previous: int
    changed: bool
    applied: list[ConfigChange]
    waiting: list[ConfigChange]
    workers: list[WorkerVersion]


@dataclass(frozen=True, slots=True)
class Setting:
    """One key with its value and where that comes from."""

    key: str
    value: Any
    origin: str
    about: str


@dataclass(frozen=True, slots=True)
class RunningConfig(Document):
    """Every key as the node runs with it, and what waits for a restart."""

    SCHEMA: ClassVar[str] = "nyx.running-config"
    alias: str
    file: str
    config: int  # version
    time: int  # Unix seconds at which it came into force
    origin: str  # what asked for it
    settings: list[Setting]
    waiting: list[ConfigChange]
    state_dir: str


@dataclass(frozen=True, slots=True)
class ConfigDiff(Document):
    """Keys whose value in the files is another than in the version that runs."""

    SCHEMA: ClassVar[str] = "nyx.config-diff"
    alias: str
    file: str
    config: int
    changes: list[ConfigChange]


@dataclass(frozen=True, slots=True)
class ConfigVersion:
    """One version that was in force, and what it changed."""

    config: int
    time: int
    origin: str
    changes: list[ConfigChange]


@dataclass(frozen=True, slots=True)
class ConfigHistory(Document):
    """The versions that are kept, newest first; `running` is null where no node runs."""

    SCHEMA: ClassVar[str] = "nyx.config-history"
    state_dir: str
    running: int | None
    versions: list[ConfigVersion]


@dataclass(frozen=True, slots=True)
class ConfigKept(Document):
    """All of one kept version."""

    SCHEMA: ClassVar[str] = "nyx.config-kept"
    config: int
    settings: dict[str, Any]
    origins: dict[str, str]


# ---------------------------------------------------------------- what needs no running node


@dataclass(frozen=True, slots=True)
class ConfigCheck(Document):
    """Whether a configuration can be used, and everything that is wrong with it."""

    SCHEMA: ClassVar[str] = "nyx.config-check"
    file: str
    valid: bool
    problems: list[str]


@dataclass(frozen=True, slots=True)
class ConfigShow(Document):
    """Every key in force."""

    SCHEMA: ClassVar[str] = "nyx.config"
    file: str
    settings: list[Setting]


@dataclass(frozen=True, slots=True)
class ConfigValue(Document):
    """One key: its value, where that comes from, what it may be and what a change of it needs."""

    SCHEMA: ClassVar[str] = "nyx.config-value"
    key: str
    value: Any
    origin: str
    about: str
    allowed: str
    live: str  # empty: needs a restart


@dataclass(frozen=True, slots=True)
class ConfigEdit(Document):
    """Files that were written, what they say now, and what a running node made of it (null: none runs)."""

    SCHEMA: ClassVar[str] = "nyx.config-edit"
    files: list[str]
    changes: list[ConfigChange]
    reload: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Paths(Document):
    """Where Nyx looks and keeps things, for this user."""

    SCHEMA: ClassVar[str] = "nyx.paths"
    config: str
    state: str
    run: str
    cache: str
    socket: str
    testnet: str


@dataclass(frozen=True, slots=True)
class Version(Document):
    """What is installed."""

    SCHEMA: ClassVar[str] = "nyx.version"
    release: str
    protocol: str
    python: str


@dataclass(frozen=True, slots=True)
class Keys(Document):
    """The public side of a key file."""

    SCHEMA: ClassVar[str] = "nyx.keys"
    file: str
    node: str  # node id, hex


@dataclass(frozen=True, slots=True)
class FeedReaders(Document):
    """Who may read the monitoring feed by TCP: the node's public key, and the readers' by name, all in Z85."""

    SCHEMA: ClassVar[str] = "nyx.feed-readers"
    key: str
    folder: str
    readers: dict[str, str]


@dataclass(frozen=True, slots=True)
class MonitoringFile(Document):
    """A file that another program wants."""

    SCHEMA: ClassVar[str] = "nyx.monitoring-file"
    name: str
    content: str


@dataclass(frozen=True, slots=True)
class TestnetNode:
    """One node of a test network."""

    __test__: ClassVar[bool] = False

    alias: str
    role: str
    pid: int | None  # of its supervisor
    port: int
    socket: str
    config: str
    state: str  # "ready", a stage, "unreachable" or "down"


@dataclass(frozen=True, slots=True)
class Testnet(Document):
    """A test network on this machine."""

    __test__: ClassVar[bool] = False
    SCHEMA: ClassVar[str] = "nyx.testnet"
    dir: str
    state: str  # "up", "starting", "broken" or "down"
    proxy: str | None
    web: str | None  # URL of the demo's web server
    hops: int
    nodes: list[TestnetNode] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Demo(Document):
    """What the demo fetched, how long it took, and through whom."""

    SCHEMA: ClassVar[str] = "nyx.demo"
    url: str
    proxy: str
    text: str
    seconds: float
    hops: list[Hop]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that `nyxctl doctor` looked at; `fix` is empty where nothing is to do."""

    name: str
    state: str  # "ok", "warn" or "fail"
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Doctor(Document):
    """What is right and wrong with a node and its machine. `alias` is null where no node answers."""

    SCHEMA: ClassVar[str] = "nyx.doctor"
    alias: str | None
    warnings: int
    failures: int
    checks: list[Check]


@dataclass(frozen=True, slots=True)
class Connected(Document):
    """A stream that was carried to its end; `way` is sdk or proxy. `opening` and `seconds` follow each other."""

    SCHEMA: ClassVar[str] = "nyx.connected"
    way: str
    opening: float  # seconds until it stood
    seconds: float  # from then to its end
    bytes_out: int
    bytes_in: int


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A local port and where it leads."""

    address: str
    port: int
    target: str


@dataclass(frozen=True, slots=True)
class Forwards(Document):
    """Local ports that lead through Nyx as long as the command runs."""

    SCHEMA: ClassVar[str] = "nyx.forwards"
    way: str
    ports: list[Forwarded]


@dataclass(frozen=True, slots=True)
class Load:
    """One process: the cores it kept busy and its resident bytes, null where they cannot be seen."""

    name: str
    pid: int | None
    state: str
    restarts: int
    cpu: float | None
    memory: int | None


@dataclass(frozen=True, slots=True)
class Top(Document):
    """What a node did in `seconds`; `rates` are of its counters, a second. Round trips are of links, in seconds."""

    SCHEMA: ClassVar[str] = "nyx.top"
    alias: str
    role: str
    ready: bool
    stage: str
    uptime: float
    seconds: float
    processes: list[Load]
    rates: dict[str, float]
    units: dict[str, str]
    streams: int
    circuits: int
    circuits_ready: int
    links: int
    round_trips: list[float]
    latencies: dict[str, dict[str, float | None]]  # percentiles since the node's start, in seconds
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Bench(Document):
    """What streams to a target took and carried; `bytes_per_second` is null where nothing was fetched."""

    SCHEMA: ClassVar[str] = "nyx.bench"
    way: str
    target: str
    opens: int
    open_seconds: dict[str, float]  # min, p50, p90, p99, max
    fetches: int
    bytes: int  # of answers, their heads included
    seconds: float
    bytes_per_second: float | None


@dataclass(frozen=True, slots=True)
class Manual(Document):
    """Manual pages that were written."""

    SCHEMA: ClassVar[str] = "nyx.manual"
    files: list[str]


@dataclass(frozen=True, slots=True)
class Completion(Document):
    """A script for a shell."""

    SCHEMA: ClassVar[str] = "nyx.completion"
    shell: str
    script: str


@dataclass(frozen=True, slots=True)
class Schemas(Document):
    """The documents that there are, with their versions."""

    SCHEMA: ClassVar[str] = "nyx.schemas"
    documents: dict[str, int]


@dataclass(frozen=True, slots=True)
class Error(Document):
    """Why a command failed; `code` is stable, `message` is for people."""

    SCHEMA: ClassVar[str] = "nyx.error"
    code: str
    message: str


DOCUMENTS: Final[dict[str, type[Document]]] = {
    cls.SCHEMA: cls
    for cls in (
        Status, Stats, Circuits, Streams, Peers, Closed, Restarted, Upgrading, Upgraded, ConfigCheck, ConfigShow, ConfigValue,
        ConfigEdit, RunningConfig, Reload, ConfigDiff, ConfigHistory, ConfigKept, Paths, Version, Keys, Testnet, Demo,
        Schemas, MonitoringFile, FeedReaders, Event, EventLog, Doctor,
        Connected, Forwards, Top, Bench, Manual, Completion, Error,
    )
}  # fmt: skip


def row(cls: type[T], values: Mapping[str, Any]) -> T:
    """A row dataclass from a worker's object; fields it does not know are left out. Raises KeyError where one is missing."""
    return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a document. Raises KeyError."""
    from pydantic import TypeAdapter  # only where it is asked for: it takes longer to import than nyxctl takes to answer

    cls = DOCUMENTS[name]
    schema = TypeAdapter(cls).json_schema()
    head = {"schema": {"const": name}, "version": {"const": cls.VERSION}}
    schema["properties"] = head | schema.get("properties", {})
    schema["required"] = [*head, *schema.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
