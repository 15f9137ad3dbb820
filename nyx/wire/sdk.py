"""Between an application's SDK and one worker: the messages that begin a connection, and the memory in which streams live.

Roles. The worker listens on run_dir/sdk.sock (SOCK_SEQPACKET); the application connects and says HELLO. The worker answers
WELCOME with three descriptors: a sealed memfd, an eventfd by which the application wakes the worker, and the reading end of a
pipe by which the worker wakes the application (a pipe, because whoever shares an eventfd can make writing to it block). From
then on the socket carries only notes from the worker, and its end means that the other side is gone.

    HELLO     {"nyx": "sdk", "version": 1, "slots": 64, "ring": 262144}
    WELCOME   {"nyx": "sdk", "version": 1, "slots": 64, "ring": 262144, "boot": "3f...", "worker": 0, "life": 0, "ready": 2}
    REFUSAL   {"nyx": "sdk", "version": 1, "error": "busy", "text": "..."}            and the socket is closed
    NOTE      {"note": "circuits", "ready": 1}

The memory is one page of header, then for each slot (one stream at a time) a page of words and two rings: up, from the
application into the stream, and down. Positions are absolute byte offsets since the slot's stream began; offset o is byte o &
(ring - 1).

    word        written by    meaning
    STATE       worker        generation << 16 | phase << 8 | outcome: everything else in the slot before it
    UP_TAIL     worker        bytes taken from the up ring
    DOWN_HEAD   worker        bytes put into the down ring
    DOWN_END    worker        the other side's last byte + 1, once all of it is in the down ring; 0 before
    UP_STOP     worker        outcome + 1 once the other side reads no more; 0 before
    VERB        application   generation << 8 | verb: everything else in the slot before it
    UP_HEAD     application   bytes put into the up ring
    DOWN_TAIL   application   bytes taken from the down ring
    UP_END      application   its last byte + 1 (the half-close); 0 before

An application that finds the slot's phase ENDED (or never used) puts its own words to zero, writes the request, and stores a new
generation with OPEN. The worker puts its words to zero and stores TAKEN, then OPENED or ENDED. CLOSE: what is in the up ring is
still sent, nothing is read any more. ABORT: nothing is. After ENDED the worker does not touch the slot until the next OPEN; what
is in the down ring may still be read. Every word is one aligned 8-byte store made after what it announces; the worker checks
each that it reads, keeps its own positions outside this memory, and drops an application whose words cannot be right.
"""

import json
from enum import IntEnum
from typing import Any, Final, NamedTuple

from nyx.errors import RemoteProtocolError

VERSION: Final = 1
MESSAGE_MAX: Final = 4096

PAGE: Final = 4096
SLOTS_MAX: Final = 256
RING_MIN: Final = 1 << 16
RING_MAX: Final = 1 << 22
SLOTS_DEFAULT: Final = 64
RING_DEFAULT: Final = 1 << 18

# words of the header page
HEADER_LIFE: Final = 0  # how often this memory's worker was started again

# words of a slot's page; the worker's and the application's are on cache lines of their own
STATE: Final = 0
UP_TAIL: Final = 1
DOWN_HEAD: Final = 2
DOWN_END: Final = 3
UP_STOP: Final = 4
VERB: Final = 16
UP_HEAD: Final = 17
DOWN_TAIL: Final = 18
UP_END: Final = 19
PORT: Final = 32
HOST_SIZE: Final = 33
ISOLATED: Final = 34  # 1: the key below counts
HOST: Final = 512  # byte offset
HOST_MAX: Final = 256
KEY: Final = 1024  # byte offset of the isolation key
KEY_SIZE: Final = 32
GENERATION_MAX: Final = 1 << 40


class Verb(IntEnum):
    """What the application wants of its slot."""

    NONE = 0
    OPEN = 1
    CLOSE = 2
    ABORT = 3


class Phase(IntEnum):
    """How far the worker is with a slot."""

    NONE = 0
    TAKEN = 1
    OPENED = 2
    ENDED = 3


class Outcome(IntEnum):
    """Why a stream was refused or ended. Only appended."""

    OK = 0
    BAD_REQUEST = 1
    NO_CIRCUIT = 2
    CIRCUIT_LOST = 3
    BUSY = 4
    POLICY = 5
    NETWORK_UNREACHABLE = 6
    HOST_UNREACHABLE = 7
    CONNECTION_REFUSED = 8
    TIMEOUT = 9
    EXIT_FAILED = 10
    TARGET_RESET = 11
    CANCELLED = 12
    RESTARTED = 13
    SHUTDOWN = 14
    STOPPED = 15

    @property
    def text(self) -> str:
        """The sentence for people."""
        return _TEXTS[self]


_TEXTS: Final = {
    Outcome.OK: "the stream ended",
    Outcome.BAD_REQUEST: "the target is no valid name, address or port",
    Outcome.NO_CIRCUIT: "no circuit became ready in time",
    Outcome.CIRCUIT_LOST: "the circuit closed",
    Outcome.BUSY: "the node carries as many streams of applications as it may (sdk.max_streams)",
    Outcome.POLICY: "the exit's policy refuses the target",
    Outcome.NETWORK_UNREACHABLE: "the exit has no route to the network",
    Outcome.HOST_UNREACHABLE: "the host cannot be reached or resolved",
    Outcome.CONNECTION_REFUSED: "the target refused the connection",
    Outcome.TIMEOUT: "the target did not answer in time",
    Outcome.EXIT_FAILED: "the exit could not open the connection",
    Outcome.TARGET_RESET: "the other side reset the stream",
    Outcome.CANCELLED: "the stream was given up",
    Outcome.RESTARTED: "a worker was restarted and could not keep the stream",
    Outcome.SHUTDOWN: "the node is shutting down",
    Outcome.STOPPED: "the other side no longer reads",
}


def memory_size(slots: int, ring: int) -> int:
    """Bytes of a connection's memory."""
    return PAGE + slots * slot_size(ring)


def slot_size(ring: int) -> int:
    """Bytes of a slot: its page of words and its two rings."""
    return PAGE + 2 * ring


def slot_at(slot: int, ring: int) -> int:
    """Byte offset of a slot; its up ring begins PAGE later, its down ring PAGE + ring."""
    return PAGE + slot * slot_size(ring)


def state_word(generation: int, phase: Phase, outcome: Outcome = Outcome.OK) -> int:
    """The worker's commit word."""
    return generation << 16 | phase << 8 | outcome


def read_state(word: int) -> tuple[int, Phase, Outcome]:
    """Generation, phase and outcome of a state word; NONE and OK where the numbers mean nothing."""
    phase, outcome = word >> 8 & 0xFF, word & 0xFF
    known = Outcome(outcome) if outcome < len(Outcome) else Outcome.OK
    return word >> 16, Phase(phase) if phase < len(Phase) else Phase.NONE, known


def verb_word(generation: int, verb: Verb) -> int:
    """The application's commit word."""
    return generation << 8 | verb


def read_verb(word: int) -> tuple[int, Verb] | None:
    """Generation and verb, or None when no application of this version stored that."""
    generation, verb = word >> 8, word & 0xFF
    if not 0 <= generation <= GENERATION_MAX or verb >= len(Verb) or (generation == 0) != (verb == Verb.NONE):
        return None
    return generation, Verb(verb)


# ---------------------------------------------------------------- messages


class Hello(NamedTuple):
    """What an application asks for."""

    slots: int = SLOTS_DEFAULT
    ring: int = RING_DEFAULT

    def encode(self) -> bytes:
        """Give the message."""
        return _encode({"nyx": "sdk", "version": VERSION, "slots": self.slots, "ring": self.ring})


class Welcome(NamedTuple):
    """What it gets. `boot` is another one after each start of the daemon, `ready` how many circuits are."""

    slots: int
    ring: int
    boot: str
    worker: int
    life: int
    ready: int

    def encode(self) -> bytes:
        """Give the message."""
        return _encode({"nyx": "sdk", "version": VERSION, **self._asdict()})


class Refusal(NamedTuple):
    """Why it gets nothing."""

    error: str
    text: str

    def encode(self) -> bytes:
        """Give the message."""
        return _encode({"nyx": "sdk", "version": VERSION, **self._asdict()})


class Note(NamedTuple):
    """Something changed at the worker."""

    note: str
    ready: int

    def encode(self) -> bytes:
        """Give the message."""
        return _encode(self._asdict())


def valid_ring(ring: int) -> bool:
    """Whether a ring may have so many bytes."""
    return RING_MIN <= ring <= RING_MAX and ring & (ring - 1) == 0


def decode_hello(message: bytes) -> Hello:
    """Read what an application said first. Raises RemoteProtocolError."""
    value = _decode(message)
    if value.get("nyx") != "sdk" or value.get("version") != VERSION:
        raise RemoteProtocolError(f"an SDK must speak version {VERSION} of this protocol")
    slots, ring = value.get("slots"), value.get("ring")
    if type(slots) is not int or not 1 <= slots <= SLOTS_MAX or type(ring) is not int or not valid_ring(ring):
        raise RemoteProtocolError(f"slots must be 1 to {SLOTS_MAX}, and ring a power of two from {RING_MIN} to {RING_MAX}")
    return Hello(slots, ring)


def decode_answer(message: bytes) -> Welcome | Refusal:
    """Read what the worker answered to HELLO. Raises RemoteProtocolError."""
    value = _decode(message)
    if value.get("nyx") != "sdk" or value.get("version") != VERSION:
        raise RemoteProtocolError(f"the daemon does not speak version {VERSION} of the SDK's protocol")
    if "error" in value:
        return Refusal(str(value["error"]), str(value.get("text", "")))
    try:
        slots, ring, worker, life, ready = (int(value[name]) for name in ("slots", "ring", "worker", "life", "ready"))
        welcome = Welcome(slots, ring, str(value["boot"]), worker, life, ready)
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # int(inf) overflows
        raise RemoteProtocolError("the daemon's welcome does not parse") from error
    if not 1 <= welcome.slots <= SLOTS_MAX or not valid_ring(welcome.ring):
        raise RemoteProtocolError("the daemon's welcome gives impossible sizes")
    return welcome


def decode_note(message: bytes) -> Note:
    """Read a later message of the worker. Raises RemoteProtocolError."""
    value = _decode(message)
    note, ready = value.get("note"), value.get("ready")
    if not isinstance(note, str) or type(ready) is not int:
        raise RemoteProtocolError("the daemon's note does not parse")
    return Note(note, ready)


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _decode(message: bytes) -> dict[str, Any]:
    try:
        value = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("a message that is no JSON") from error
    if not isinstance(value, dict):
        raise RemoteProtocolError("a message that is no JSON object")
    return value
