"""Packets of strangers: who is answered, in which order it is looked at, and what it may cost.

Place on a packet's way: packets whose CID names no session and that nobody here waits for. Cheap before dear, a counter each:

    sift (kernel): length, mac1          FORGED_HANDSHAKE, UNKNOWN_CID at a node without keys
    challenge (kernel): replay tables    REPLAYED_HANDSHAKE
        room for another link            NO_BUFFER
        under load: mac2                 NO_COOKIE, and a cookie (COOKIES_SENT) for as many as a batch gives
        under load: quota of the source  OVER_QUOTA
    fair queue of the source             OVERFLOW
    budget of public-key operations      the initiation waits
    DH, KEM, seal, fields                as nyx/link/handshake.py says

A worker is loaded from the moment when LOADED initiations wait, a batch brings more than PLACES, or the replay table is full,
until CALM seconds have passed in which fewer than BUSY initiations with a right mac1 came each second.
Source: docs/protocol.md, "Responder: order of checks".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto import schedule
from nyx.crypto.keys import PublicKeys
from nyx.kernel import address_of
from nyx.link.cookie import COOKIE_SLOT, cookie_secret, seal_key
from nyx.link.handshake import MAC_SLOT, HandshakeError, LinkSecrets, mac1_keys, respond
from nyx.link.initiations import ReplayTable
from nyx.stats import Counter
from nyx.wire.codes import Drop
from shards.address import ADDRESS_SIZE
from shards.batch import Batch, Stranger
from shards.context import WorkerContext
from shards.fair import PIECE, RELAY_EXTRA, FairQueue
from shards.kernels import challenge as ask
from shards.kernels.strangers import INITIATION, MAC_KEY, sift_strangers
from shards.quotas import Quotas, source_of
from shards.sessions import SessionRows
from shards.tables import Table, cid_key

SECOND: Final = 1_000_000_000
QUEUE: Final = 256  # initiations that wait for their answer: 330 KiB
SHARE: Final = 32  # of one source
LOADED: Final = 32  # waiting initiations that begin the load
BUSY: Final = 100  # initiations a second that keep it
CALM: Final = 5  # seconds that end it
PLACES: Final = 32  # initiations of one batch that go on to wait
COOKIES: Final = 256  # cookie answers of one batch
STALE: Final = SECOND  # an initiator waits so long, then sends another: the old one is not worth an answer
AWAITED: Final = 1024  # CIDs under which answers to our own initiations come
FLOODED: Final = (
    "more strangers begin links than this node answers at once: they must prove their address and share what there is; "
    'see "Floods" in docs/operations.md'
)

Words = NDArray[np.int64]
Answered = Callable[[LinkSecrets, bytes, int], None]  # secrets, address, now


class Sift:
    """The first check, for all strangers of a batch in one kernel call; what we wait for passes."""

    def __init__(self, public: PublicKeys | None, multiplier: int, workers: int, me: int, secret: int) -> None:
        self._public = public
        self._steering = (multiplier, workers, me)
        self._awaited = Table(AWAITED, secret)
        self._keys: NDArray[np.uint8] = np.zeros(3 * MAC_KEY, np.uint8)
        self._digest: NDArray[np.uint8] = np.zeros(16, np.uint8)
        self._slot = -1

    def at(self, wall: int) -> None:
        """Take the keys of mac1 of this time."""
        if self._public and wall // MAC_SLOT != self._slot:
            self._slot = wall // MAC_SLOT
            self._keys[:] = np.frombuffer(mac1_keys(self._public, wall), np.uint8)

    def expect(self, cid: bytes) -> None:
        """An answer will come under this CID."""
        self._awaited.put(cid_key(cid), 0)

    def forget(self, cid: bytes) -> None:
        """It will not, or has come."""
        self._awaited.drop(cid_key(cid))

    def __call__(self, pool: NDArray[np.uint8], slots: Words, rows: Words, n: int, done: Words, drops: Words) -> int:
        """Drop what is nothing for us and mark initiations; returns how many slots are in `done`."""
        table, keys = self._awaited, 3 if self._public else 0
        return int(
            sift_strangers(
                pool, slots, rows, n, table.keys, table.values, table.multiplier, *self._steering, self._keys, keys, self._digest,
                done, drops,
            )
        )  # fmt: skip


class Challenge:
    """What initiations must show before a public-key operation, asked of a batch in one kernel call; sends the cookies."""

    def __init__(self, context: WorkerContext, batch: Batch, public: PublicKeys) -> None:
        columns, boot = context.columns, context.boot_secret
        quota_key = schedule.digest(b"nyx quotas", boot)[:16]
        self._batch = batch
        self._boot = boot
        self._entropy = context.entropy
        self._seen = ReplayTable(columns["handshakes_seen"], context.entropy)
        self._proven = ReplayTable(columns["handshakes_proven"], context.entropy, self._seen)
        self._quotas = Quotas(columns["quotas"], quota_key)
        self._slot = -1
        self._keys: NDArray[np.uint8] = np.zeros(ask.KEYS_SIZE, np.uint8)
        self._set(ask.QUOTA_KEY, quota_key)
        self._set(ask.SEAL_KEY, seal_key(public))
        self._state: Words = np.zeros(ask.STATE_WORDS, np.int64)
        self._replies: Words = np.zeros(COOKIES, np.int64)
        self._order: Words = np.arange(COOKIES)
        self._destinations: NDArray[np.uint8] = np.zeros(COOKIES * ADDRESS_SIZE, np.uint8)
        self._scratch: Words = np.zeros(ask.SCRATCH_WORDS, np.int64)

    def _set(self, at: int, key: bytes) -> None:
        self._keys[at : at + len(key)] = np.frombuffer(key, np.uint8)

    def at(self, wall: int) -> None:
        """Take the cookies' secrets of this time, and let replay tables forget what is past."""
        self._state[ask.NEWEST] = self._seen.turn(wall)
        self._proven.turn(wall)
        if wall // COOKIE_SLOT != self._slot:
            self._slot = wall // COOKIE_SLOT
            self._set(ask.COOKIE_KEYS, cookie_secret(self._boot, self._slot) + cookie_secret(self._boot, self._slot - 1))

    def __call__(
        self, slots: Words, rows: Words, n: int, done: Words, dropped: int, now: int, *, loaded: bool, crowded: bool
    ) -> bool:
        """Examine them; whether they are a load. `done` has `dropped` slots already, `self.dropped` says how many then."""
        batch, s = self._batch, self._state
        self._set(ask.FILL_KEY, self._entropy(32))
        s[ask.NOW], s[ask.CROWDED], s[ask.LOADED], s[ask.PLACES], s[ask.COOKIES] = now, crowded, loaded, PLACES, COOKIES
        s[ask.DONE], s[ask.REPLIES] = dropped, 0
        udp = batch.udp
        ask.challenge(
            udp.pool.packets, slots, rows, n, udp.sources, udp.origins, self._seen.words, self._proven.words,
            self._quotas.words, self._keys, s, self._replies, self._destinations, done, batch.drops, self._scratch,
        )  # fmt: skip
        if replies := int(s[ask.REPLIES]):
            self._reply(replies)
        return bool(s[ask.LOADED])

    @property
    def dropped(self) -> int:
        """Slots in `done` after the last call."""
        return int(self._state[ask.DONE])

    def _reply(self, n: int) -> None:
        """Send the cookies; what the socket does not take is lost, and asked for again."""
        udp = self._batch.udp
        sent = udp.send_to(self._replies, self._order, n, address_of(self._destinations), ADDRESS_SIZE)
        self._batch.statistics[Counter.COOKIES_SENT] += sent
        udp.pool.give(self._replies[:n])


@dataclass(slots=True)
class _Load:
    """Whether a worker is loaded: begun at once, ended after a time of calm."""

    now: bool = False
    second: int = 0
    arrived: int = 0
    calm: int = 0

    def count(self, arrived: int, now: int) -> None:
        """Initiations with a right mac1 came."""
        self.tick(now)
        self.arrived += arrived

    def begin(self) -> None:
        """Too much waits."""
        self.now, self.calm = True, 0

    def tick(self, now: int) -> None:
        """Close the seconds that have passed."""
        passed = now // SECOND - self.second
        if passed <= 0:
            return
        self.calm = 0 if self.arrived >= BUSY else self.calm + passed
        self.second, self.arrived = now // SECOND, 0
        if self.calm >= CALM:
            self.now = False


class Strangers:
    """Answers initiations. `crowded` says whether there is room for no other link; `answered` takes the link of each answer."""

    def __init__(
        self,
        context: WorkerContext,
        batch: Batch,
        rows: SessionRows,
        window: int,
        crowded: Callable[[], bool],
        answered: Answered,
    ) -> None:
        self._context = context
        self._batch = batch
        self._rows = rows
        self._window = window
        self._crowded = crowded
        self._answered = answered
        public = context.keys.public if context.keys else None
        secret = int.from_bytes(schedule.digest(b"nyx awaited", context.boot_secret)[:8], "big")
        self.sift = Sift(public, context.multiplier, context.workers, context.index, secret)
        self._challenge = Challenge(context, batch, public) if public else None
        batch.sift = self._examine
        self._queue: FairQueue[bytes, tuple[Stranger, int]] = FairQueue(QUEUE, SHARE, self._overflow)
        self._load = _Load()

    @property
    def waiting(self) -> int:
        """Initiations that wait for their answer."""
        return len(self._queue)

    @property
    def loaded(self) -> bool:
        """Whether a stranger must prove his address now."""
        return self._load.now

    def condition(self) -> str | None:
        """What an operator should know of a load, as a sentence."""
        return FLOODED if self._load.now else None

    def on_timer(self, now: int, wall: int) -> None:
        """Every second and more often: keys of mac1, end of a load."""
        self.sift.at(wall)
        if self._challenge:
            self._challenge.at(wall)
        self._load.tick(now)

    # ------------------------------------------------------------ admission

    def _examine(self, slots: Words, rows: Words, n: int, done: Words, fresh: bool, now: int) -> int:
        """Take the strangers of a batch as far as they come without Python; how many slots are in `done`."""
        batch = self._batch
        dropped = self.sift(batch.udp.pool.packets, slots, rows, n, done, batch.drops)
        if self._challenge is None or not fresh or not (arrived := int((rows[:n] == INITIATION).sum())):
            return dropped
        self._load.count(arrived, now)
        if self._challenge(slots, rows, n, done, dropped, now, loaded=self._load.now, crowded=self._crowded()):
            self._load.begin()
        return self._challenge.dropped

    def admit(self, stranger: Stranger, now: int) -> None:
        """Let a stranger's packet wait for its public-key operations, if it was examined."""
        drop = self._check(stranger, now)
        if drop is not Drop.OK:
            self._batch.drops[drop] += 1

    def _overflow(self, _lost: object) -> None:
        self._batch.drops[Drop.OVERFLOW] += 1

    def _check(self, stranger: Stranger, now: int) -> Drop:
        if self._challenge is None:
            return Drop.UNKNOWN_CID
        if not stranger.initiation:
            return Drop.FORGED_HANDSHAKE
        if not self._queue.put(source_of(stranger.source), (stranger, now)):
            return Drop.OVERFLOW
        if len(self._queue) >= LOADED:
            self._load.begin()
        return Drop.OK

    # ------------------------------------------------------------ answers

    def serve(self, now: int, wall: int) -> int:
        """Answer the initiation whose turn it is; returns the public-key operations that it took, 0 when none waits."""
        while (taken := self._queue.take()) is not None:
            stranger, arrived = taken
            if now - arrived > STALE or self._crowded():
                self._batch.drops[Drop.NO_BUFFER] += 1
                continue
            return self._respond(stranger, now, wall)
        return 0

    def _respond(self, stranger: Stranger, now: int, wall: int) -> int:
        context, keys = self._context, self._context.keys
        assert keys is not None
        try:
            response = respond(
                stranger.packet, keys, self._rows.suites, self._rows.new_cids(), context.entropy, wall,
                self._relay_keys, self._window, context.started,
            )  # fmt: skip
        except HandshakeError as error:
            self._batch.drops[error.drop] += 1
            return PIECE
        self._batch.udp.send_raw(stranger.source, response.packet)
        self._batch.statistics[Counter.HANDSHAKES_ANSWERED] += 1
        self._answered(response.secrets, stranger.source, now)
        return PIECE + (RELAY_EXTRA if response.secrets.peer else 0)

    def _relay_keys(self, link_key: bytes) -> PublicKeys | None:
        node = self._context.snapshot.by_link_key(link_key)
        return node.public if node else None
