"""What the service manager is told of the node, and the watchdog: the supervisor's word that every loop of the node turns.

Roles: looks at what `shards/pulse.py` saw of the workers, asks the control socket (`shards/probe.py`), speaks by
`shards/notify.py`.

    STATUS=      how far the start has come, who stands still, how many warnings there are; anybody on the machine may read it,
                 so it names no peer, no stream and no number of them
    READY=1      all processes run and the control socket answers; again at the end of a reload, and by new code after an upgrade
    WATCHDOG=1   a quarter of the period after the one before, while nobody stands still

A worker stands still when its loop has not turned for three looks, or when it has not begun for half a period; so does a control
process that does not answer. No WATCHDOG=1 is sent then. Who has stood still for `hung_after` seconds is started again, once: a
worker by its keeper, with its links, circuits and connections kept, as `nyxctl restart worker` does. What that does not mend,
the manager mends at the end of the period by starting the whole node anew. A worker that is not there is no hung loop: its
keeper tries again, and others' streams go on. Without a watchdog nobody is ended here. Looks are counted, as in
`shards/pulse.py`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nyx.columns import Columns
from nyx.wire.admin import Stage
from shards.notify import Notifier
from shards.probe import Probe, document
from shards.pulse import STILL
from shards.say import say

LOOK: Final = 1.0  # seconds between two looks, or a quarter of the period
ASK: Final = 15.0  # seconds between two questions to a node that is ready, or a quarter of the period
LATE: Final = 5.0  # seconds for the control process to answer: it gives a silent worker two
HUNG: Final = 10.0  # seconds, or a third of the period: then who stands still is started again

_STAGES: Final[Mapping[str, str]] = {
    Stage.STARTING: "starting",
    Stage.LINKS: "opening the first link",
    Stage.CIRCUITS: "building the first circuit",
    Stage.READY: "ready",
}


@dataclass(frozen=True, slots=True)
class Remedies:
    """What is done about who hangs; each may fail, and says so itself."""

    restart_worker: Callable[[int], None]
    end_control: Callable[[], None]


class Vigil:
    """One node's word to its service manager."""

    def __init__(self, notifier: Notifier, shared: Columns, workers: int, probe: Probe | None, remedies: Remedies) -> None:
        self._notifier = notifier
        self._node, self._rows = shared["node"], shared["node_workers"]
        self._workers = workers
        self._probe = probe
        self._remedies = remedies
        quarter = notifier.period / 4 if notifier.period else ASK
        self._pace = min(LOOK, quarter)
        self._quarter = quarter
        self._due = self._fed = self._ask_from = 0.0
        self._starting = [(0, 0)] * workers  # pid of a life that has not begun, and for how many looks
        self._unanswered = 0  # looks
        self._answered = 0  # pid of the control process that answered last
        self._remedied: dict[str, int] = {}  # who -> pid that was ended for standing still
        self._document: Mapping[str, Any] = {}
        self._announced = self._refused = False
        self._reloading = 0  # pid of the control process whose reload is under way
        self._status = ""

    # ------------------------------------------------------------ events

    def ready(self) -> None:
        """All processes run and the control socket answers."""
        self._announced = True
        self._feed(time.monotonic())
        self._notifier.send("READY=1", self._status_line())

    def reload_begins(self) -> None:
        """The control process reads the configuration."""
        self._reloading = int(self._node["control"][0])
        self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading the configuration")

    def reload_ends(self, *, refused: bool) -> None:
        """It is done, or nothing was changed."""
        self._reloading, self._refused = 0, refused
        self._notifier.send("READY=1", self._status_line())

    def stopping(self) -> None:
        """The node ends."""
        self._notifier.send("STOPPING=1", "STATUS=stopping")

    def close(self) -> None:
        """Look no more."""
        self._notifier.close()
        if self._probe is not None:
            self._probe.close()

    # ------------------------------------------------------------ the look

    def tick(self) -> float:
        """Look, if it is time; returns the seconds until the next look."""
        if not self._notifier.connected:
            return 3600.0
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._pace
            self._look(now)
        return max(0.0, self._due - now)

    def _look(self, now: float) -> None:
        control = int(self._node["control"][0])
        if self._reloading and self._reloading != control:
            self.reload_ends(refused=False)  # the process that reloaded is gone; what is in force is whole
        self._ask(now, control)
        late = self._late_workers()
        if self._probe is not None and control and self._control_is_late(control):
            late["control process"] = control
        if not late and now - self._fed >= self._quarter - self._pace:
            self._feed(now)
        if self._notifier.period:
            for who, pid in late.items():
                self._remedy(who, pid)
        self._tell(late)

    def _feed(self, now: float) -> None:
        if self._notifier.period:
            self._fed = now
            self._notifier.send("WATCHDOG=1")

    def _ask(self, now: float, control: int) -> None:
        """Put a question, or look for the answer to the one that is under way."""
        if self._probe is None or not control or not self._announced or now < self._ask_from:
            self._unanswered = 0
            return
        answer = self._probe.look()
        if answer is None:
            self._unanswered += 1
            return
        self._unanswered, self._answered = 0, control  # a closed connection, too, is the work of a loop that turns
        self._document = document(answer) or self._document
        if self._document.get("stage", Stage.READY) == Stage.READY:
            self._ask_from = now + self._quarter

    # ------------------------------------------------------------ who stands still

    def _late_workers(self) -> dict[str, int]:
        late = {}
        for index in range(self._workers):
            row = self._rows[index]
            pid, before = int(row["pid"]), self._starting[index]
            begun = pid == int(row["ready"])
            looks = 0 if begun or not pid else before[1] + 1 if before[0] == pid else 1
            self._starting[index] = pid, looks
            if int(row["still"]) >= STILL or looks * self._pace > self._starting_patience:
                late[f"worker {index}"] = pid
        return late

    def _control_is_late(self, control: int) -> bool:
        """A process that has not answered yet may be starting."""
        return self._unanswered * self._pace > (LATE if self._answered == control else self._starting_patience)

    @property
    def _starting_patience(self) -> float:
        return self._notifier.period / 2 or 2 * ASK

    @property
    def hung_after(self) -> float:
        """Seconds of standing still after which somebody is started again."""
        return max(STILL + 1.0, min(HUNG, self._notifier.period / 3))

    def _remedy(self, who: str, pid: int) -> None:
        """Start it again, once: a life that hangs too is the manager's to end, with all others."""
        kind, _, number = who.rpartition(" ")
        still = int(self._rows[int(number)]["still"]) * 1.0 if kind == "worker" else self._unanswered * self._pace
        if still < self.hung_after or self._remedied.get(who) == pid:
            return
        self._remedied[who] = pid
        say("warning", f"watchdog: {who} (process {pid}) has stood still for {still:.0f} s and is started again")
        if kind == "worker":
            self._remedies.restart_worker(int(number))
        else:
            self._remedies.end_control()

    # ------------------------------------------------------------ STATUS=

    def _tell(self, late: Mapping[str, int]) -> None:
        line = self._status_line(late)
        if line != self._status and not self._reloading:
            self._notifier.send(line)
            self._status = line

    def _status_line(self, late: Mapping[str, int] | None = None) -> str:
        rows, found = self._rows, self._document
        if late:
            return f"STATUS=stands still: {', '.join(late)}"
        if not self._announced:
            running = int(((rows["pid"] > 0) & (rows["ready"] == rows["pid"])).sum())
            return f"STATUS=starting: {running} of {self._workers} workers run"
        stage = str(found.get("stage", Stage.STARTING))
        text = _STAGES.get(stage, "starting")
        if stage != Stage.READY:
            text = f"bootstrap {found.get('progress', 0)} %: {text}"
        if count := len(found.get("warnings", ())):
            text += f"; {count} warning{'s' * (count > 1)}, see nyxctl status"
        if self._refused:
            text += "; the last reload was refused, see nyxctl config check"
        return f"STATUS={text}"
