"""The keeper of one worker: shares its descriptor table, starts it, and starts it again on the same memory and sockets.

    supervisor --fork--> keeper i --clone(CLONE_FILES)--> worker i, again and again

Why a process of its own: descriptors of a killed worker live on only in a table it shared. If all workers shared the
supervisor's table, nobody could tell a dead worker's half-open sockets from a live one's, and each could touch all sockets.
A keeper does nothing else: no socket is read here, no packet is seen. Killed itself, it takes its worker along, and the
supervisor makes both again (connections of the proxy and the exit are lost then, links and circuits are not). Told to hand over
(`shards/handover.py`), it ends its worker at rest and gives everything that is open to the next keeper.
"""

import faulthandler
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from shards import handover
from shards.context import WorkerContext
from shards.health import Conditions, birth_condition
from shards.poller import fine_timers
from shards.process import (
    Child,
    Watch,
    clone_shared,
    close_all_but,
    default_signals,
    die_with,
    name_process,
    open_descriptors,
)
from shards.say import say_exception, speak_as
from shards.seal import seal_keeper, seal_worker

Main = Callable[[WorkerContext], int]

_EXITED: Final = 256  # node_workers.killed_by: exit codes lie above signals
_UNSEEN: Final = handover.REST + 1.0  # seconds after which a worker that was told to end is killed


class _HandOverError(Exception):
    """The supervisor wants the descriptors."""


def keep(
    context: WorkerContext, main: Main, parent: int, end: socket.socket, received: Mapping[int, int] | None = None
) -> NoReturn:
    """The whole life of a keeper, in a fresh child of the supervisor.

    `end` is its end of the pair with the supervisor, `received` descriptors of the keeper before it: number there -> here.
    """
    code = 1
    try:
        die_with(parent)
        name_process(f"keeper {context.index}", context.config.node.alias)
        speak_as(f"keeper {context.index}")
        _Keeper(context, main, end, dict(received or {})).run()
        code = 0
    except BaseException:  # noqa: BLE001 (the last frame of a forked process: whatever it is, it must not reach the parent's code)
        say_exception("this keeper ends by a bug")
    finally:
        os._exit(code)


class _Keeper:
    """Its worker, and its ear for the supervisor."""

    def __init__(self, context: WorkerContext, main: Main, end: socket.socket, received: Mapping[int, int]) -> None:
        self._context = context
        self._main = main
        close_all_but({*_needed(context), end.fileno(), *received.values()})
        self._end = socket.socket(fileno=handover.place(received, end.detach()))
        self._end.settimeout(handover.PATIENCE)
        gc.freeze()
        self._row: Any = context.shared["node_workers"][context.index : context.index + 1]
        context.life = int(self._row["restarts"][0]) + 1 if self._row["keeper"][0] else 0
        self._row["keeper"] = os.getpid()
        self._conditions = Conditions()
        self._row["keeper_sealed"] = seal_keeper(context.filters)
        self._worker = Child("worker", self._start, self._changed)
        self._watch = Watch([self._worker], [signal.SIGTERM])
        self._watch.listen(self._end.fileno(), self._on_order)
        self._kill_at = 0.0  # of a worker that was told to end
        context.inherited = open_descriptors() - set(received)

    def run(self) -> None:
        """Until SIGTERM, or the descriptors have been handed over."""
        try:
            self._watch.run(self._tick)
            self._watch.stop()
        except _HandOverError:
            self._watch.stop(_UNSEEN, signal.SIGUSR1)
            handover.send(self._end, open_descriptors() - self._context.inherited)

    def _start(self) -> int:
        keeper, pid = os.getpid(), clone_shared()
        if pid == 0:
            _live(self._context, self._main, keeper)
        return pid

    def _changed(self, child: Child) -> None:
        self._row["pid"], self._row["unborn"] = child.pid, child.refused
        self._conditions.judge("birth", birth_condition(f"worker {self._context.index}", child.refused))
        self._kill_at = 0.0
        if child.refused:
            return
        if child.pid:
            self._row["restarts"] = self._context.life
            self._context.life += 1
        else:
            ended = child.status
            self._row["killed_by"] = os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else _EXITED + os.waitstatus_to_exitcode(ended)

    def _on_order(self) -> None:
        order = self._end.recv(64)
        if order == handover.HAND_OVER:
            raise _HandOverError
        if order == handover.RESTART and self._worker.pid:
            self._worker.replace()
            os.kill(self._worker.pid, signal.SIGUSR1)
            self._kill_at = time.monotonic() + _UNSEEN
        elif order == handover.DRAIN:
            self._context.draining = True
            if self._worker.pid:
                os.kill(self._worker.pid, signal.SIGUSR2)
        elif not order:
            self._watch.forget(self._end.fileno())

    def _tick(self) -> float | None:
        """A worker that was told to end and does not (it hangs, or is stopped) is killed."""
        if not self._kill_at:
            return None
        left = self._kill_at - time.monotonic()
        if left <= 0 and self._worker.pid:
            os.kill(self._worker.pid, signal.SIGKILL)
        return max(left, 0.1)


def _needed(context: WorkerContext) -> set[int]:
    sockets = (context.udp, *context.proxy, *context.sdk, context.control)
    return {*(sock.fileno() for sock in sockets), *context.events, context.stop}


def _live(context: WorkerContext, main: Main, keeper: int) -> NoReturn:
    """One life of the worker."""
    code = 1
    try:
        die_with(keeper)
        default_signals()
        context.listen_to_signals()
        name_process(f"worker {context.index}", context.config.node.alias)
        speak_as(f"worker {context.index}")
        faulthandler.enable()
        fine_timers()
        if context.config.workers.pin:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[context.index % len(cores)]})
        sealed = seal_worker(context.filters, context.columns, lock=context.config.node.lock_memory)
        context.shared["node_workers"]["sealed"][context.index] = sealed
        code = main(context)
    except BaseException:  # noqa: BLE001 (as above)
        say_exception("this worker ends by a bug")
    finally:
        os._exit(code)
