"""The SDK's side: applications that connect to run_dir/sdk.sock and open streams in memory that they share with this worker.

    Lobby: accept, HELLO -> a Guest --OPEN in a slot--> Waiting --circuit--> Opening --answer 0--> a row with a slot
                                                           |                    |
                                                           +-- refused, too slow, given up --> the slot has ENDED

A request stays in its slot until it is answered, so a worker that dies while it waits for a circuit or for the exit is followed
by one that goes on with it. Applications are this node's own user or root; still each costs a bounded amount, none can stop the
worker, and one whose words or messages are wrong is dropped with its streams. Protocol: nyx/wire/sdk.py.
"""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from nyx.errors import LocalProtocolError
from nyx.wire import sdk
from nyx.wire.sdk import STATE, Note, Outcome, Phase, Verb, read_state, read_verb
from shards.edge import table as edge
from shards.edge.contract import KIND_TCP, NEVER, SECOND, OpenCircuit
from shards.edge.core import Core, Deadlines
from shards.edge.guest import Guest
from shards.edge.lobby import Lobby
from shards.edge.reasons import Reason, reason_of_reply
from shards.edge.request import FORM_NAME, Host, Refused, parse_host
from shards.edge.slots import SlotPumps, outcome_of
from shards.edge.table import guest_fds
from shards.kernels import tcp

CIRCUIT_TIME: Final = 15 * SECOND
OPEN_TIME: Final = 30 * SECOND
GONE_TIME: Final = 60 * SECOND  # what a closed application may still be sending
LOOK_TIME: Final = SECOND // 4  # how often the number of ready circuits is looked at

_DEAD: Final = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP


@dataclass(frozen=True, slots=True)
class Welcoming:
    """What the edge needs to serve applications."""

    listeners: Sequence[socket.socket] = ()
    boot: str = ""
    worker: int = 0
    max_streams: int = 256
    ready: Callable[[], int] = lambda: 0  # circuits that are


@dataclass(slots=True)
class Waiting:
    """A request without a circuit."""

    guest: Guest
    slot: int
    generation: int
    host: Host
    port: int
    isolation: bytes
    since: int
    until: int


class SdkEdge:
    """Applications of the SDK at one worker."""

    def __init__(self, core: Core, pumps: SlotPumps, welcoming: Welcoming, open_circuit: OpenCircuit) -> None:
        self.core = core
        self.pumps = pumps
        self.welcoming = welcoming
        self.max_streams = welcoming.max_streams
        self.open_circuit = open_circuit
        self.lobby = Lobby(core, welcoming.listeners, self._enter)
        self._of_sock: dict[int, Guest] = {}
        self._of_wake: dict[int, Guest] = {}
        self._waiting: dict[int, Waiting] = {}
        self._opening: dict[int, Waiting] = {}  # by stream row
        self._circuit_by = Deadlines()
        self._answer_by = Deadlines()
        self._gone_by = Deadlines()
        self._next_look = 0
        self._ready = 0
        self._resting = False
        self.repaired = 0  # by `recover_row`

    def rest(self) -> None:
        """Take nothing new in this life: applications wait in the listener's queue, requests in their slots."""
        self._resting = True
        self.lobby.rest()

    def owns(self, fd: int) -> bool:
        """Whether the descriptor is one of this side's, listeners included."""
        return fd in self._of_wake or fd in self._of_sock or self.lobby.owns(fd)

    def held(self) -> set[int]:
        """Every descriptor of applications."""
        return self.lobby.held().union(*(guest_fds(guest.row) for guest in self.pumps.guests.values()))

    @property
    def opening(self) -> int:
        """How many requests have no answer yet."""
        return len(self._opening)

    @property
    def waiting(self) -> int:
        """How many requests have no circuit yet."""
        return len(self._waiting)

    # ---------------------------------------------------------------- descriptors

    def on_ready(self, fd: int, mask: int, now: int) -> None:
        """A listener has somebody, an application said something, moved something, or went away."""
        if fd in self._of_wake:
            self._woken(self._of_wake[fd], now)
        elif fd in self._of_sock:
            guest = self._of_sock[fd]
            if mask & _DEAD:
                self._gone(guest, now)
            else:
                self._drop(guest, now)  # after HELLO an application has nothing to say here
        else:
            self.lobby.on_ready(fd, now)

    def _enter(self, guest: Guest, theirs: int, now: int) -> None:
        self._look(now)
        self._adopt(guest)
        if guest.send_welcome(self.welcoming.boot, self.welcoming.worker, self._ready, theirs):
            self.core.counters["guests_accepted"] += 1
        else:
            self._gone(guest, now)

    def _adopt(self, guest: Guest) -> None:
        self.pumps.guests[guest.index] = guest
        self._of_wake[guest.wake] = guest
        if guest.sock is not None:
            self._of_sock[guest.sock.fileno()] = guest
            self.core.epoll.register(guest.sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        # never read: each signal is an edge, and the count of an application that fills it is its own
        self.core.epoll.register(guest.wake, select.EPOLLIN | select.EPOLLET)

    # ---------------------------------------------------------------- slots

    def _woken(self, guest: Guest, now: int) -> None:
        for slot in guest.changed():
            if not self._take_verb(guest, slot, now):
                self._drop(guest, now)
                return
        self.pumps.on_wake(guest)

    def _take_verb(self, guest: Guest, slot: int, now: int) -> bool:
        """Do what the slot's verb says; False when it cannot be right."""
        word = guest.look(slot, sdk.VERB)
        found, before = read_verb(word), read_verb(int(guest.seen[slot])) or (0, Verb.NONE)
        if found is None:
            return False
        generation, verb = found
        if self._resting and generation != before[0] and verb is Verb.OPEN:
            return True
        guest.seen[slot] = word
        if generation == before[0]:
            if verb is Verb.CLOSE and guest.look(slot, sdk.UP_END) == 0:
                verb = Verb.ABORT
            self._give_up(guest, slot, verb, now)
            return verb > before[1]
        if generation < before[0] or int(guest.bound[slot]) >= 0 or _key(guest, slot) in self._waiting:
            return False
        if verb is not Verb.OPEN:  # given up before anybody looked
            guest.tell(slot, generation, Phase.ENDED, Outcome.CANCELLED)
        elif guest.sock is not None:
            self._open(guest, slot, generation, now)
        return True

    def _give_up(self, guest: Guest, slot: int, verb: Verb, now: int) -> None:
        """CLOSE or ABORT, in whatever state the stream is; the slot may have ended long ago."""
        row, key = int(guest.bound[slot]), _key(guest, slot)
        if waiting := self._waiting.pop(key, None):
            self._circuit_by.clear(key)
            guest.tell(slot, waiting.generation, Phase.ENDED, Outcome.CANCELLED)
        elif row in self._opening:
            self._forget(row)
            self.core.give_up(row, Reason.CANCELLED, now)
            self.pumps.end(row, Outcome.CANCELLED)
        elif row >= 0 and verb is Verb.CLOSE:
            self.pumps.stop_reading(row)
        elif row >= 0:
            self.pumps.abort(row, Reason.CANCELLED, now)

    def _open(self, guest: Guest, slot: int, generation: int, now: int) -> None:
        for word in (sdk.UP_TAIL, sdk.DOWN_HEAD, sdk.DOWN_END, sdk.UP_STOP):
            guest.store(slot, word, 0)
        text, port, isolation = guest.request(slot)
        host = parse_host(text)
        if host is None or not 0 < port < 65536:
            self._refuse(guest, slot, generation, Reason.BAD_REQUEST, "", now)
            return
        if self._streams() >= self.max_streams:
            self._refuse(guest, slot, generation, Reason.BUSY, f"{host}:{port}", now)
            return
        guest.tell(slot, generation, Phase.TAKEN)
        waiting = Waiting(guest, slot, generation, host, port, isolation, now, now + CIRCUIT_TIME)
        self._wait(waiting)
        self._try(waiting, now)

    def _streams(self) -> int:
        return len(self._waiting) + sum(int(np.count_nonzero(g.bound >= 0)) for g in self.pumps.guests.values())

    def _refuse(self, guest: Guest, slot: int, generation: int, reason: Reason, target: str, now: int) -> None:
        self._count(reason)
        self.core.note(edge.GUEST, target, reason, now)
        guest.tell(slot, generation, Phase.ENDED, outcome_of(reason))

    def _count(self, reason: Reason) -> None:
        self.core.counters["streams_refused"] += 1
        self.core.refused(reason)

    def _wait(self, waiting: Waiting) -> None:
        key = _key(waiting.guest, waiting.slot)
        self._waiting[key] = waiting
        self._circuit_by.set(key, waiting.until)

    def _unwait(self, waiting: Waiting) -> None:
        key = _key(waiting.guest, waiting.slot)
        self._waiting.pop(key, None)
        self._circuit_by.clear(key)

    # ---------------------------------------------------------------- circuit and stream

    def on_circuit_ready(self, now: int) -> None:
        """Try every waiting request again, oldest first."""
        for waiting in list(self._waiting.values()):
            self._try(waiting, now)
        self._look(now)

    def _try(self, waiting: Waiting, now: int) -> None:
        host, port = waiting.host, waiting.port
        connection = self.open_circuit(waiting.isolation, str(host), port)
        if connection is None:
            return
        if isinstance(connection, Refused):
            self._unwait(waiting)
            self._refuse(waiting.guest, waiting.slot, waiting.generation, connection.reason, f"{host}:{port}", now)
            return
        target = host.address.decode("ascii") if host.form == FORM_NAME else host.address
        try:
            row = self.core.streams.open_stream(connection, KIND_TCP, target, port, now)
        except LocalProtocolError:
            return
        seat = (waiting.guest.index, waiting.slot, waiting.generation)
        self.core.table.begin(row, edge.GUEST, now, str(host), port, seat)
        self._unwait(waiting)
        self.pumps.bind(row, waiting.guest, waiting.slot)
        self.core.counters["streams_opened"] += 1
        self._opening[row] = waiting
        self._answer_by.set(row, now + OPEN_TIME)

    def on_result(self, row: int, code: int, now: int) -> None:
        """The exit answered."""
        waiting = self._forget(row)
        if waiting is None:
            return
        if code:
            reason = reason_of_reply(code)
            self._count(reason)
            self.core.give_up(row, reason, now, tell=False)
            self.core.streams.release(row)
            self.pumps.forget(row)
        else:
            self.core.opening.observe(now - waiting.since)
            self.core.table.move(row, edge.OPEN)
            self.pumps.attach(row)

    def on_lost(self, row: int, reason: Reason, now: int, *, again: bool) -> None:
        """The stream ended before its answer. `again`: its circuit closed, so that another may serve."""
        waiting = self._forget(row)
        if waiting is None:
            return
        self.core.table.fail(row, reason, now)
        if again and now < waiting.until:
            self.pumps.unbind(row)
            self._wait(waiting)
        else:
            self._count(reason)
            self.pumps.end(row, outcome_of(reason))

    def _forget(self, row: int) -> Waiting | None:
        self._answer_by.clear(row)
        return self._opening.pop(row, None)

    # ---------------------------------------------------------------- applications that leave

    def _gone(self, guest: Guest, now: int) -> None:
        """The application's socket ended: what it closed is still sent, the rest is given up."""
        for slot in guest.changed():
            if not self._take_verb(guest, slot, now):
                self._drop(guest, now)
                return
        for slot in range(guest.slots):
            closed = read_verb(int(guest.seen[slot]))
            if closed is None or closed[1] is not Verb.CLOSE:
                self._give_up(guest, slot, Verb.ABORT, now)
        if guest.sock is not None:
            self._unwatch(guest.sock.fileno())
            del self._of_sock[guest.sock.fileno()]
            guest.hang_up()
        self._gone_by.set(guest.index, now + GONE_TIME)
        self._settle_gone(now)

    def _settle_gone(self, now: int) -> None:
        for guest in [g for g in self.pumps.guests.values() if g.sock is None and not g.live]:
            self._drop(guest, now)

    def _drop(self, guest: Guest, now: int, reason: Reason = Reason.CANCELLED) -> None:
        """Give everything of an application up and let it go."""
        for waiting in [w for w in self._waiting.values() if w.guest is guest]:
            self._unwait(waiting)
        for row in guest.live:
            if self._forget(row):
                self.core.give_up(row, reason, now)
                self.pumps.end(row, outcome_of(reason))
            self.pumps.abort(row, reason, now)
        self._gone_by.clear(guest.index)
        if guest.sock is not None:
            self._of_sock.pop(guest.sock.fileno(), None)
            self._unwatch(guest.sock.fileno())
        self._of_wake.pop(guest.wake, None)
        self._unwatch(guest.wake)
        self.pumps.guests.pop(guest.index, None)
        self.pumps.broken.discard(guest.index)
        guest.close()

    def _unwatch(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self.core.epoll.unregister(fd)

    # ---------------------------------------------------------------- time

    def pump(self, now: int) -> None:
        """Move bytes, once; drop whose words were wrong, let go who is through."""
        self.pumps.pump()
        for index in list(self.pumps.broken):
            self.pumps.broken.discard(index)
            if index in self.pumps.guests:
                self.core.counters["guests_broken"] += 1
                self._drop(self.pumps.guests[index], now)
        if len(self._of_sock) < len(self.pumps.guests):
            self._settle_gone(now)

    def next_timeout(self) -> int:
        """When `on_timer` has something to do, in ns."""
        look = self._next_look if self._of_sock else NEVER
        return min(look, self.lobby.next_timeout(), self._circuit_by.next, self._answer_by.next, self._gone_by.next)

    def on_timer(self, now: int) -> None:
        """Give up whatever had time enough."""
        self.lobby.on_timer(now)
        for key in self._circuit_by.expired(now):
            waiting = self._waiting.pop(key)
            self._refuse(
                waiting.guest, waiting.slot, waiting.generation, Reason.NO_CIRCUIT, f"{waiting.host}:{waiting.port}", now
            )
        for row in self._answer_by.expired(now):
            self._opening.pop(row)
            self._count(Reason.TIMEOUT)
            self.core.give_up(row, Reason.TIMEOUT, now)
            self.pumps.end(row, Outcome.TIMEOUT)
        for index in self._gone_by.expired(now):
            if index in self.pumps.guests:
                self._drop(self.pumps.guests[index], now)
        if self._of_sock and now >= self._next_look:
            self._look(now)

    def _look(self, now: int) -> None:
        """Tell applications when the number of ready circuits is another."""
        self._next_look = now + LOOK_TIME
        ready = self.welcoming.ready()
        if ready != self._ready:
            self._ready = ready
            for guest in self._of_sock.values():
                guest.send(Note("circuits", ready).encode())

    def close(self, now: int) -> None:
        """The node is stopping."""
        self.lobby.close()
        for guest in list(self.pumps.guests.values()):
            self._drop(guest, now, Reason.SHUTDOWN)

    # ---------------------------------------------------------------- a new life

    def recover(self) -> None:
        """Take over the applications of a dead worker, before their rows."""
        for index, row in enumerate(self.core.table.guests):
            if int(row["state"]) == edge.FREE:
                continue
            guest = self._revive(index)
            if guest is None:
                continue
            self._adopt(guest)
            guest.note_life()
            for slot in range(guest.slots):
                verb = guest.look(slot, sdk.VERB)
                generation, phase, _ = read_state(guest.look(slot, STATE))
                if phase is Phase.ENDED and verb >> 8 == generation:
                    guest.seen[slot] = verb

    def _revive(self, index: int) -> Guest | None:
        """The application of this row, or None: its streams end, and it connects again."""
        row = self.core.table.guests[index]
        fds = guest_fds(row)  # none in another table of descriptors: they were closed with the keeper's
        with contextlib.suppress(OSError):
            if fds:
                return Guest(self.core.table.guests, index)
        row["state"] = edge.FREE
        for fd in fds:
            os.close(fd)
        return None

    def recover_row(self, row: int, now: int) -> bool:
        """Go on with a stream of a dead worker; False when it ends here."""
        entry, state = self.core.table.rows[row], self.core.table.state(row)
        guest = self.pumps.guests.get(int(entry["guest"]) - 1)
        slot, generation = int(entry["slot"]), int(entry["generation"])
        mine = guest is not None and slot < guest.slots and guest.look(slot, sdk.VERB) >> 8 == generation
        if guest is None or not mine:
            self._end_row(row, now)
            return False
        guest.seen[slot] = sdk.verb_word(generation, Verb.OPEN)
        if state == edge.CLOSING:
            self.pumps.bind(row, guest, slot)
            self.pumps.end(row, outcome_of(Reason(int(entry["reason"]))))
            guest.seen[slot] = guest.look(slot, sdk.VERB)
            self._end_row(row, now)
            return False
        if state == edge.OPEN:
            self.pumps.restore(row, guest)
            return True
        self.pumps.bind(row, guest, slot)
        host = parse_host(bytes(entry["target"][: int(entry["length"])])) or Host(FORM_NAME, b"")
        _, port, isolation = guest.request(slot)
        self._opening[row] = Waiting(guest, slot, generation, host, port, isolation, now, now + CIRCUIT_TIME)
        self._answer_by.set(row, now + OPEN_TIME)
        if result := int(self.pumps.rows[row]["result"]):
            self.on_result(row, result - 1, now)
        return True

    def _end_row(self, row: int, now: int) -> None:
        """As for a socket that is gone: what was finished is still delivered, the rest is given up."""
        state = self.core.table.state(row)
        if state == edge.CLOSING and int(self.pumps.rows[row]["tcp_state"]) & tcp.IN_EOF:
            self.core.streams.finish(row)
        else:
            self.core.give_up(row, Reason.RESTARTED, now)
        self.repaired += state != edge.CLOSING
        tcp.detach(self.pumps.rows, row)
        self.core.table.move(row, edge.CLOSING)

    def recovered(self, now: int) -> None:
        """All rows are taken over: look at what applications asked for meanwhile."""
        for guest in list(self.pumps.guests.values()):
            if guest.sock is None:
                self._gone(guest, now)
            else:
                self._woken(guest, now)


def _key(guest: Guest, slot: int) -> int:
    return guest.index << 16 | slot
