"""The table of all metrics: name, kind, unit, labels and meaning; nothing else is ever exported.

Labels are closed sets: `worker` is the number of a worker, `role` the role of a process, `reason` one of the node's own names for
why something was dropped or refused. None names a peer, an address, a target, a circuit or a stream. docs/monitoring.md holds
this table for people, and a test compares the two. Source: prometheus.io, "Metric and label naming".
"""

from typing import Final, NamedTuple

from nyx.stats import Counter, Latency

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"

ROLES: Final = ("supervisor", "control", "keeper", "worker")
_NANO: Final = 1e-9


class Family(NamedTuple):
    """One metric: `name` as it is exported but for the endings of a histogram; `factor` turns what is counted into its unit."""

    name: str
    kind: str
    about: str
    labels: tuple[str, ...] = ()
    factor: float = 1.0

    @property
    def samples(self) -> tuple[str, ...]:
        """Names under which its samples stand in an expression."""
        if self.kind == HISTOGRAM:
            return tuple(self.name + ending for ending in ("_bucket", "_sum", "_count"))
        return (self.name,)


def _counted(name: str, about: str, factor: float = 1.0) -> Family:
    return Family(f"nyx_{name}_total", COUNTER, about, ("worker",), factor)


WORKER: Final[dict[Counter, Family]] = {
    Counter.PACKETS_IN: _counted("packets_received", "UDP packets received, before any check."),
    Counter.PACKETS_OUT: _counted("packets_sent", "UDP packets given to the kernel."),
    Counter.BYTES_IN: _counted("stream_sent_bytes", "Application bytes that went into streams at this node."),
    Counter.BYTES_OUT: _counted("stream_received_bytes", "Application bytes that came out of streams at this node."),
    Counter.CELLS_RELAYED: _counted("cells_relayed", "Cells passed on for others."),
    Counter.CELLS_DELIVERED: _counted("cells_delivered", "Cells opened at their end."),
    Counter.CELLS_SENT: _counted("cells_sent", "Cells made at this node."),
    Counter.HANDSHAKES_STARTED: _counted("handshakes_started", "Link handshakes begun, each try counted."),
    Counter.HANDSHAKES_ANSWERED: _counted("handshakes_answered", "Link handshakes of others answered."),
    Counter.LINKS_OPENED: _counted("links_opened", "Links that came up."),
    Counter.LINKS_CLOSED: _counted("links_closed", "Links that ended after they were up."),
    Counter.BUILDS_STARTED: _counted("circuit_builds_started", "Circuit builds begun as the client."),
    Counter.BUILDS_READY: _counted("circuit_builds_ready", "Circuit builds that succeeded as the client."),
    Counter.BUILDS_FAILED: _counted("circuit_builds_failed", "Circuit builds that failed as the client."),
    Counter.BUILDS_PASSED: _counted("circuit_builds_passed", "Circuit builds served as a hop."),
    Counter.CIRCUITS_CLOSED: _counted("circuits_closed", "Circuits that ended, of any role."),
    Counter.STREAMS_OPENED: _counted("streams_opened", "Streams opened as the client or as the exit."),
    Counter.STREAMS_REFUSED: _counted("streams_refused", "Streams refused or failed while being opened."),
    Counter.STREAMS_CLOSED: _counted("streams_closed", "Streams that ended."),
    Counter.PROXY_CLIENTS: _counted("proxy_clients", "Connections that the proxy accepted."),
    Counter.PROXY_REFUSED: _counted("proxy_clients_refused", "Connections to the proxy without room or a good greeting in time."),
    Counter.HANDED_OVER: _counted("packets_handed_over", "Packets given to another worker of this node."),
    Counter.TAKEN_OVER: _counted("packets_taken_over", "Packets taken from another worker of this node."),
    Counter.RING_FULL: _counted("ring_full", "Packets lost because another worker's ring was full."),
    Counter.CONTROL_RETRANSMITTED: _counted("control_packets_retransmitted", "Control packets of links sent again."),
    Counter.SEND_FAILED: _counted("send_failed", "Packets that the kernel refused for good."),
    Counter.SEND_BLOCKED: _counted("send_blocked", "Times the UDP send buffer was full."),
    Counter.GSO_REFUSED: _counted("segmentation_refused", "Times the kernel refused a segmented send."),
    Counter.ODD_SIZE: _counted("odd_size_datagrams", "Datagrams that are no packet by their size."),
    Counter.POOL_EMPTY: _counted("pool_empty", "Times no packet slot was free to receive into."),
    Counter.TURNS: _counted("worker_turns", "Turns of the worker's loop."),
    Counter.BUSY: _counted("worker_busy_seconds", "CPU time of the worker's loop, over restarts too.", _NANO),
    Counter.REPAIRS: _counted("repairs", "Things that a new life of a worker found torn and mended."),
    Counter.REPAIRED_POSITIONS: _counted("repaired_positions", "Of those: sockets whose positions differed from the kernel's."),
    Counter.CONTROL_REPEATED: _counted("control_packets_repeated", "Control packets that came again."),
    Counter.COOKIES_SENT: _counted("cookies_sent", "Cookies sent to strangers who had to prove their address, under load."),
    Counter.COOKIES_TAKEN: _counted("cookies_taken", "Cookies of loaded relays, each answered by a new handshake."),
    Counter.BUILDS_WORKED: _counted("circuit_builds_worked", "Circuit builds begun again with the proof of work that was asked."),
    Counter.STREAMS_EVICTED: _counted("streams_evicted", "Streams ended because the node's memory was used up."),
    Counter.CIRCUITS_EVICTED: _counted("circuits_evicted", "Circuits of others ended because the node's memory was used up."),
    Counter.FILTER_EARLY: _counted("replay_filter_early", "Times the replay filter forgot before its time because it was full."),
    Counter.LAYER_MOVES: _counted("layer_moves", "Layer epochs begun, of each circuit and direction."),
    Counter.REFRESHES_DONE: _counted("circuit_refreshes", "Refreshes of own circuits that all hops answered."),
    Counter.REFRESHES_PASSED: _counted("circuit_refreshes_passed", "Refreshes of others' circuits answered and passed on."),
    Counter.CELLS_MISSING: _counted("cells_missing", "Cells of own circuits lost between two hops, as refreshes tell."),
}

DROPPED: Final = Family("nyx_packets_dropped_total", COUNTER, "Packets and cells dropped, by reason.", ("worker", "reason"))
REFUSED: Final = Family(
    "nyx_requests_refused_total",
    COUNTER,
    "Requests of applications and streams of clients refused, by reason.",
    ("worker", "reason"),
)

LATENCY: Final[dict[Latency, Family]] = {
    Latency.STREAM_OPEN: Family(
        "nyx_stream_open_seconds", HISTOGRAM, "Time from an application's request to the reply that its stream stands.", (), _NANO
    ),
    Latency.LINK_ROUND_TRIP: Family(
        "nyx_link_round_trip_seconds", HISTOGRAM, "Round trips of control packets to neighbours, their 2 ms of waiting included.",
        (), _NANO,
    ),
}  # fmt: skip

BUILD: Final = Family("nyx_build_info", GAUGE, "What is installed; the value is 1.", ("version", "protocol", "python"))
STARTED: Final = Family("nyx_start_time_seconds", GAUGE, "Unix time of the node's start.")
READY: Final = Family("nyx_ready", GAUGE, "1 when the node can do what its role is for, else 0.")
PROGRESS: Final = Family("nyx_bootstrap_ratio", GAUGE, "How far the start has come, 1 when ready.")
WARNINGS: Final = Family("nyx_warnings", GAUGE, "Warnings that nyxctl status shows.")
LINKS: Final = Family("nyx_links", GAUGE, "Links that are up.")
CIRCUITS: Final = Family("nyx_circuits", GAUGE, "Circuits through or from this node.")
CIRCUITS_READY: Final = Family("nyx_circuits_ready", GAUGE, "Own circuits that are ready.")
STREAMS: Final = Family("nyx_streams", GAUGE, "Streams that begin or end here.")
MEMORY_USED: Final = Family("nyx_memory_used_bytes", GAUGE, "Memory of the node that counts against its cap.")
MEMORY_CAP: Final = Family("nyx_memory_cap_bytes", GAUGE, "The cap, limits.memory.")
WORKER_UP: Final = Family("nyx_worker_up", GAUGE, "1 when the worker answers, else 0.", ("worker",))

_PROCESS: Final = ("role", "worker")
RESTARTS: Final = Family("nyx_process_restarts_total", COUNTER, "Times a process was started again.", _PROCESS)
CPU: Final = Family("nyx_process_cpu_seconds_total", COUNTER, "CPU time of a process.", _PROCESS)
MEMORY: Final = Family(
    "nyx_process_resident_memory_bytes", GAUGE, "Resident memory of a process, shared pages included.", _PROCESS
)
DESCRIPTORS: Final = Family("nyx_process_open_fds", GAUGE, "Open descriptors of a process.", _PROCESS)

FAMILIES: Final[tuple[Family, ...]] = (
    BUILD, STARTED, READY, PROGRESS, WARNINGS, LINKS, CIRCUITS, CIRCUITS_READY, STREAMS, MEMORY_USED, MEMORY_CAP, WORKER_UP,
    *LATENCY.values(), DROPPED, REFUSED, *WORKER.values(),
    RESTARTS, CPU, MEMORY, DESCRIPTORS,
)  # fmt: skip


def table() -> list[str]:
    """The table as Markdown, as docs/monitoring.md holds it."""
    rows = [f"| `{f.name}` | {f.kind} | {', '.join(f'`{label}`' for label in f.labels)} | {f.about} |" for f in FAMILIES]
    return ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |", *rows]
