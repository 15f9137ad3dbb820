"""The keeper of one worker: shares its descriptor table, starts it, and starts it again on the same memory and sockets.

    supervisor --fork--> keeper i --clone(CLONE_FILES)--> worker i, again and again

Why a process of its own: descriptors of a killed worker live on only in a table it shared. If all workers shared the
supervisor's table, nobody could tell a dead worker's half-open sockets from a live one's, and each could touch all sockets.
A keeper does nothing else: no socket is read here, no packet is seen. Killed itself, it takes its worker along, and the
supervisor makes both again (connections of the proxy and the exit are lost then, links and circuits are not).
"""

import faulthandler
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Final

from nyx.kernel import PLAIN
from shards.context import WorkerContext
from shards.memory import keep_from_swap
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
    refuse_new_code,
)

Main = Callable[[WorkerContext], int]

_SECRETS: Final = frozenset({"sessions", "layer_keys"})  # columns with keys
_EXITED: Final = 256  # node_workers.killed_by: exit codes lie above signals


def keep(context: WorkerContext, main: Main, parent: int) -> None:
    """The whole life of a keeper, in a fresh child of the supervisor. Does not return."""
    code = 1
    try:
        die_with(parent)
        name_process(f"keeper {context.index}", context.config.node.alias)
        close_all_but(_needed(context))
        gc.freeze()
        context.inherited = open_descriptors()
        row = context.shared["node_workers"][context.index : context.index + 1]
        context.life = int(row["restarts"][0]) + 1 if row["keeper"][0] else 0
        row["keeper"] = os.getpid()

        def changed(child: Child) -> None:
            row["pid"] = child.pid
            if child.pid:
                row["restarts"] = context.life
                context.life += 1
            else:
                ended = child.status
                row["killed_by"] = os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else _EXITED + os.waitstatus_to_exitcode(ended)

        def start() -> int:
            keeper, pid = os.getpid(), clone_shared()
            if pid == 0:
                _live(context, main, keeper)
            return pid

        watch = Watch([Child("worker", start, changed)], [signal.SIGTERM])
        watch.run()
        watch.stop()
        code = 0
    except BaseException:  # noqa: BLE001 (the last frame of a forked process: whatever it is, it must not reach the parent's code)
        traceback.print_exc()
    finally:
        os._exit(code)


def _needed(context: WorkerContext) -> set[int]:
    sockets = (context.udp, *context.proxy, context.control)
    return {*(sock.fileno() for sock in sockets), *context.events, context.stop}


def _live(context: WorkerContext, main: Main, keeper: int) -> None:
    """One life of the worker. Does not return."""
    code = 1
    try:
        die_with(keeper)
        default_signals()
        context.stop_on_sigterm()
        name_process(f"worker {context.index}", context.config.node.alias)
        faulthandler.enable()
        fine_timers()
        if context.config.workers.pin:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[context.index % len(cores)]})
        for name in _SECRETS & context.columns.keys():
            keep_from_swap(context.columns[name])
        if not PLAIN:
            refuse_new_code()
        code = main(context)
    except BaseException:  # noqa: BLE001 (as above)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
