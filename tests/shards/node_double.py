"""A node whose workers and control process are doubles: what the supervisor gives them shows in what they answer.

As a program: `python -m tests.shards.node_double CONFIG`. Worker: a packet with byte 12 = 1 is counted in the worker's columns,
one with 2 is answered with the count, the life and the pid; a connection to the proxy is kept in the columns and echoed, over
deaths. Control: a connection to the control socket is answered with the node's rows and what each worker said on its channel; one
that says "upgrade" orders that, and is answered by the supervisor. The new code would drain; of the node "patient" it never ends.
"""

import json
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from nyx.columns import Column
from nyx.config import Config, load
from nyx.errors import NyxError
from nyx.path.directory import Snapshot
from nyx.stats import Counter, node_columns, statistics_columns, statistics_row
from nyx.wire.geometry import PACKET_SIZE, PACKET_TYPE
from nyx.wire.orders import Message, Order
from shards.context import Asked, WorkerContext
from shards.memory import Memory
from shards.poller import Poller, drain
from shards.pool import Pool
from shards.ring import Rings
from shards.supervisor import Plan, Supervisor
from shards.udp import Udp

COUNT, QUERY, CRASH = 1, 2, 3
FD, COUNTED, SWEPT = 0, 1, 2  # words of the double's column
OTHER = """print('{"release": "other", "memory": {}, "kept": {}}')"""
PATIENT = "import time; time.sleep(600)"


def columns(_config: Config) -> list[Column]:
    return [Column("double", np.dtype(np.int64), 8)]


def worker(context: WorkerContext) -> int:
    if context.config.node.alias == "broken":
        raise RuntimeError("this worker never starts")
    words = context.columns["double"]
    words[SWEPT] += context.sweep([int(words[FD]) - 1] if words[FD] else [])
    row = statistics_row(context.shared["statistics"], context.index)
    rings = Rings(context.shared, context.index, context.workers, context.events)
    udp = Udp(context.udp, Pool(context.shared, context.index, context.workers, rings.in_use()), offload=context.offload)
    poller = Poller()
    for fd in (udp.fileno(), context.stop, context.control.fileno(), context.events[context.index]):
        poller.register(fd, select.EPOLLIN)
    for sock in context.proxy:
        poller.register(sock.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
    if words[FD]:
        poller.register(int(words[FD]) - 1, select.EPOLLIN)
    context.shared["node_workers"]["load"][context.index] = 1
    context.ready()
    while True:
        ready = set(poller.fds[: poller.wait(-1)].tolist())
        if context.stop in ready:
            if context.asked is not Asked.NOTHING:
                return 0
            drain(context.stop)
        if udp.fileno() in ready:
            serve_packets(context, udp, words, row)
        if context.control.fileno() in ready:
            context.control.recv(100)
            context.control.send(json.dumps({"index": context.index, "pid": os.getpid(), "life": context.life}).encode())
        if words[FD] and int(words[FD]) - 1 in ready:
            data = os.read(int(words[FD]) - 1, 100)
            os.write(int(words[FD]) - 1, data.upper())
        for sock in context.proxy:
            if sock.fileno() in ready:
                fd, _ = sock._accept()  # type: ignore[attr-defined]
                words[FD] = fd + 1
                poller.register(fd, select.EPOLLIN)
        drain(context.events[context.index])


def serve_packets(context: WorkerContext, udp: Udp, words: Any, row: Any) -> None:
    n = udp.receive()
    for k in range(n):
        at = int(udp.slots[k]) * PACKET_SIZE
        kind = int(udp.pool.packets[at + PACKET_TYPE])
        if kind == COUNT:
            words[COUNTED] += 1
            row[Counter.PACKETS_IN] += 1
        elif kind == CRASH:
            os._exit(3)
        elif kind == QUERY:
            said = {"index": context.index, "count": int(words[COUNTED]), "life": context.life, "pid": os.getpid()}
            said["swept"], said["draining"] = int(words[SWEPT]), context.draining
            udp.send_raw(udp.source(k), json.dumps(said).encode().ljust(PACKET_SIZE))
    udp.pool.give(udp.slots[:n])


def control() -> None:
    given = json.loads(os.environ["NYX_CONTROL_FDS"])
    count = len(given["workers"])
    statistics = Memory.attach(given["statistics"], statistics_columns(count), writable=False).columns["statistics"]
    node = Memory.attach(given["node"], node_columns(count), writable=False).columns
    admin = socket.socket(fileno=given["admin"])
    channels = [socket.socket(fileno=fd) for fd in given["workers"]]
    orders = socket.socket(fileno=given["supervisor"])
    while True:
        asker, _ = admin.accept()
        if asker.recv(100) == b"upgrade":
            orders.send(Message(1, Order.UPGRADE, {"drain": 600}).encode())
            asker.sendall(orders.recv(4096))
            asker.close()
            continue
        said = []
        for channel in channels:
            channel.send(b"who are you")
            said.append(json.loads(channel.recv(100)))
        names = {name: node["node"][name].tolist()[0] for name in node["node"].dtype.names or ()}
        workers = {name: node["node_workers"][name].tolist() for name in node["node_workers"].dtype.names or ()}
        packets = [int(statistics_row(statistics, worker)[Counter.PACKETS_IN]) for worker in range(count)]
        answer = {"node": names, "workers": workers, "said": said, "packets": packets, "config": given["config"]}
        asker.sendall(json.dumps(answer | {"pid": os.getpid()}).encode())
        asker.close()


def main(file: Path) -> int:
    config = load(file)
    if config.node.alias == "no-control":
        command = [sys.executable, "-c", "raise SystemExit(7)"]
    else:
        command = [sys.executable, "-m", "tests.shards.node_double", "control"]
    plan = Plan(
        config=config,
        config_file=file,
        keys=None,
        snapshot=cast("Snapshot", None),
        main=worker,
        columns=columns(config),
        control=command,
        entropy=os.urandom,
        wall=int(time.time()),
        command=sys.orig_argv,
        preflight=[sys.executable, "-c", PATIENT if config.node.alias == "patient" else OTHER],
    )
    try:
        Supervisor(plan).run(lambda line: print(line, flush=True))
    except NyxError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "control":
        control()
    else:
        sys.exit(main(Path(sys.argv[1])))
