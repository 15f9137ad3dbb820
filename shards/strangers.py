"""Packets of strangers: who is answered, in which order it is looked at, and what it may cost.

Place on a packet's way: packets whose CID names no session and that nobody here waits for. Cheap before dear, a counter each:

    sift (kernel): length, mac1          FORGED_HANDSHAKE, UNKNOWN_CID at a node without keys
    replay tables                        REPLAYED_HANDSHAKE
    under load: mac2                     NO_COOKIE, and a cookie (COOKIES_SENT) for as many as a turn gives
    under load: quota of the source      OVER_QUOTA
    room for another link                NO_BUFFER
    fair queue of the source             OVERFLOW
    budget of public-key operations      the initiation waits
    DH, KEM, seal, fields                as nyx/link/handshake.py says

A worker is loaded from the moment when LOADED initiations wait, or a replay table is full, until CALM seconds have passed in
which fewer than BUSY initiations with a right mac1 came each second. Source: docs/protocol.md, "Responder: order of checks".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.keys import PublicKeys
from nyx.link.cookie import CookieJar
from nyx.link.handshake import MAC_SLOT, HandshakeError, LinkSecrets, check_mac1, mac1_keys, respond
from nyx.link.initiations import ReplayTable, Seen
from nyx.stats import Counter
from nyx.wire.codes import Drop
from shards.address import unpack_ip
from shards.batch import Batch, Stranger
from shards.context import WorkerContext
from shards.fair import PIECE, RELAY_EXTRA, FairQueue
from shards.kernels.strangers import MAC_KEY, sift_strangers
from shards.quotas import Quotas, source_of
from shards.sessions import SessionRows
from shards.tables import Table, cid_key

SECOND: Final = 1_000_000_000
QUEUE: Final = 256  # initiations that wait for their answer: 330 KiB
SHARE: Final = 32  # of one source
LOADED: Final = 32  # waiting initiations that begin the load
BUSY: Final = 100  # initiations a second that keep it
CALM: Final = 5  # seconds that end it
COOKIES: Final = 256  # cookie answers between two batches
STALE: Final = SECOND  # an initiator waits so long, then sends another: the old one is not worth an answer
AWAITED: Final = 1024  # CIDs under which answers to our own initiations come
FLOODED: Final = (
    "more strangers begin links than this node answers at once: they must prove their address and share what there is; "
    'see "Floods" in docs/operations.md'
)

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

    def __call__(
        self, pool: NDArray[np.uint8], slots: NDArray[np.int64], rows: NDArray[np.int64], n: int,
        done: NDArray[np.int64], drops: NDArray[np.int64],
    ) -> int:  # fmt: skip
        """Drop what is nothing for us; returns how many slots are in `done`."""
        table, keys = self._awaited, 3 if self._public else 0
        return int(
            sift_strangers(
                pool,
                slots,
                rows,
                n,
                table.keys,
                table.values,
                table.multiplier,
                *self._steering,
                self._keys,
                keys,
                self._digest,
                done,
                drops,
            )
        )


@dataclass(slots=True)
class _Load:
    """Whether a worker is loaded: begun at once, ended after a time of calm."""

    now: bool = False
    second: int = 0
    arrived: int = 0
    calm: int = 0

    def count(self, now: int) -> None:
        """An initiation with a right mac1 came."""
        self.tick(now)
        self.arrived += 1

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
        columns, boot = context.columns, context.boot_secret
        self._replays = ReplayTable(columns["handshakes_seen"], context.entropy)
        self._proven = ReplayTable(columns["handshakes_proven"], context.entropy)
        self._quotas = Quotas(columns["quotas"], boot[8:24])
        public = context.keys.public if context.keys else None
        self._jar = CookieJar(public, boot, context.entropy) if public else None
        secret = int.from_bytes(boot[:8], "big")
        self.sift = batch.sift = Sift(public, context.multiplier, context.workers, context.index, secret)
        self._queue: FairQueue[bytes, tuple[Stranger, int]] = FairQueue(QUEUE, SHARE)
        self._load = _Load()
        self._cookies = COOKIES
        self._statistics: NDArray[np.int64] = batch.statistics

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
        self._load.tick(now)

    def renew(self) -> None:
        """A batch was received: so many cookies may be given until the next."""
        self._cookies = COOKIES

    # ------------------------------------------------------------ admission

    def admit(self, stranger: Stranger, now: int, wall: int) -> None:
        """Take a packet of a stranger as far as it comes without a public-key operation."""
        drop = self._check(stranger, now, wall)
        if drop is not Drop.OK:
            self._batch.drops[drop] += 1

    def _check(self, stranger: Stranger, now: int, wall: int) -> Drop:
        packet, keys = stranger.packet, self._context.keys
        if keys is None:
            return Drop.UNKNOWN_CID
        if not check_mac1(packet, keys.public, wall):
            return Drop.FORGED_HANDSHAKE
        self._load.count(now)
        seen = self._replays.meet(packet, wall)
        if seen is Seen.BEFORE or self._proven.meet(packet, wall, remember=False) is Seen.BEFORE:
            return Drop.REPLAYED_HANDSHAKE
        if seen is Seen.FULL:
            self._load.begin()
        if self._crowded():
            return Drop.NO_BUFFER
        if self._load.now and (drop := self._prove(stranger, now, wall)) is not Drop.OK:
            return drop
        if not self._queue.put(source_of(stranger.source), (stranger, now)):
            return Drop.OVERFLOW
        if len(self._queue) >= LOADED:
            self._load.begin()
        return Drop.OK

    def _prove(self, stranger: Stranger, now: int, wall: int) -> Drop:
        """Under load: nothing for whoever has not shown that packets reach his address, and a share for who has."""
        packet, source = stranger
        address = source[2:4] + unpack_ip(source)  # port, then address
        if self._jar is None or not self._jar.proven(packet, address, wall):
            return self._send_cookie(packet, source, address, wall)
        if not self._quotas.take(source_of(source), now):
            return Drop.OVER_QUOTA
        # A full table lets new ones pass: proven sources that fill it must not shut out all others (docs/protocol.md, 6.6).
        return Drop.REPLAYED_HANDSHAKE if self._proven.meet(packet, wall) is Seen.BEFORE else Drop.OK

    def _send_cookie(self, packet: bytes, source: bytes, address: bytes, wall: int) -> Drop:
        if self._jar is None or self._cookies <= 0:
            return Drop.NO_COOKIE
        self._cookies -= 1
        self._batch.udp.send_raw(source, self._jar.answer(packet, address, wall))
        self._statistics[Counter.COOKIES_SENT] += 1
        return Drop.NO_COOKIE

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
        self._statistics[Counter.HANDSHAKES_ANSWERED] += 1
        self._answered(response.secrets, stranger.source, now)
        return PIECE + (RELAY_EXTRA if response.secrets.peer else 0)

    def _relay_keys(self, link_key: bytes) -> PublicKeys | None:
        node = self._context.snapshot.by_link_key(link_key)
        return node.public if node else None
