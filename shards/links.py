"""The links of one worker: opening them to relays, answering strangers, installing sessions, and the control channel on each.

Place on a packet's way: where packets go that are not data cells. Worker 0 owns the handshake of every link that this node
opens and the key exchange of every link, since session 0 is its own; it gives each other worker the sessions whose CIDs
name it. A worker that answers a stranger hands the new link to worker 0.

    HANDSHAKE   initiation sent (initiator)                    -> KEYING when the answer opens; gone after 5 tries
    KEYING      session 0 of generation 0 stands, exchange on  -> UP when we may send under generation 1; gone after 10 s, without
                a word to a stranger who has shown no key yet
    UP          sessions of generation 1 carry circuits        -> gone by CLOSE, failed retransmission, 60 s of silence

    A restarted worker finds its links of generation 1 in memory, UP: sessions, and where their control channels stand.

Size: every event that moves a link through its states is here, so that the table above can be checked against one file.

Source: docs/protocol.md, "Link handshake" (states), "Link channel", "Keep-alive and end".
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from nyx.errors import RemoteProtocolError
from nyx.link.channel import DEFAULT_RTT, QUEUE_LIMIT, CellReceived, Channel, ChannelState, Failed, FrameReceived, Violation
from nyx.link.frames import Close, Crypto, Destroy, Frame, NewCid, Ping, ReceiveWindow
from nyx.link.handshake import HandshakeError, Initiator, LinkSecrets
from nyx.link.upgrade import LinkUpgrade
from nyx.path.directory import Node
from nyx.stats import Counter, Latency, latency_histogram
from nyx.wire.codes import Drop, ErrorCode
from nyx.wire.geometry import CID_SIZE, SESSIONS_PER_LINK
from shards.batch import Batch, Control, Stranger
from shards.context import WorkerContext
from shards.link import WINDOW_UNKNOWN, Link, LinkState, WhenUp
from shards.messages import pack_secrets
from shards.sessions import SessionRows, receive_window
from shards.strangers import Strangers

SECOND: Final = 1_000_000_000
FIRST_TRY: Final = 1 * SECOND  # an initiation waits so long for its answer; each further try twice as long, up to 4 s
DOUBLINGS: Final = 2
TRIES: Final = 5
SILENT_TRIES: Final = 3  # so many initiations, 3 s, without an answer: whoever wants the link meanwhile is told at once
HALF_OPEN: Final = 10 * SECOND
KEEP_GENERATION: Final = 10 * SECOND  # packets of the old keys may still be under way
KEEP_ALIVE: Final = 15 * SECOND
UNHEARD: Final = 2 * SECOND  # something was sent and nothing came: the peer is asked whether it is there
IDLE: Final = 60 * SECOND
LINKS_MAX: Final = 4096
PENDING_PEERS: Final = 256  # handshakes of our own under way
STRANGERS_MAX: Final = LINKS_MAX - PENDING_PEERS  # links that others may begin: a flood of them leaves room for our own
WAIT_MOST: Final = 45 * SECOND  # for a link: longer than all tries and the exchange; what was lost between workers ends too
DESTROYS: Final = 200  # frames of one packet
CELL_QUEUE: Final = QUEUE_LIMIT * 3 // 4  # control packets of a session beyond which no build is taken on: ends must fit
ROWS_MAX: Final = (1 << 31) - 1  # numbers of links, as session rows hold them


class Circuits(Protocol):
    """What the links tell about: builds, answers, ends of circuits and links."""

    def on_cell(self, link: Link, session: int, cell: CellReceived, now: int) -> None:
        """Take a build or answer cell that arrived on session row `session`."""

    def on_destroy(self, link: Link, circuit_id: int, reason: int, now: int) -> None:
        """Take the end of a circuit on this link."""

    def on_link_lost(self, link: Link, now: int) -> None:
        """Close every circuit with a leg on this link."""


class Links:
    """All links of this worker. `circuits` is set once by the worker, before its first turn."""

    circuits: Circuits

    def __init__(
        self, context: WorkerContext, batch: Batch, rows: SessionRows, post: Callable[[int, dict[str, Any]], object]
    ) -> None:
        self._context = context
        self._batch = batch
        self._rows = rows
        self._post = post
        self._entropy = context.entropy
        self._row: NDArray[np.int64] = batch.statistics
        self._round_trips = latency_histogram(context.shared["latencies"], context.index, Latency.LINK_ROUND_TRIP)
        self.suites = rows.suites
        self._window = receive_window(batch.udp.receive_buffer)
        self.strangers = Strangers(context, batch, rows, self._window, lambda: self.crowded, self._hand_to_first)
        self._pending: dict[bytes, Link] = {}  # CID of the awaited answer, or of a cookie -> link
        self._by_tag: dict[bytes, Link] = {}
        self._by_node: dict[bytes, Link] = {}
        self._by_row: dict[int, Link] = {}  # session row -> link
        self._waiting: dict[bytes, list[WhenUp]] = {}
        self._wait_until: dict[bytes, int] = {}
        self._destroys: dict[tuple[bytes, int, int], list[Frame]] = {}  # of this turn, by channel: many go in one packet
        self._overfull: list[Link] = []
        self._busy: set[tuple[bytes, int, int]] = set()  # (tag, generation, session) of channels with something under way
        self._by_number: dict[int, Link] = {}
        self._next_row = max((int(r) for r in rows.sessions["link"]), default=0) % ROWS_MAX + 1
        self._next_sweep = 0
        self.wall = context.started  # Unix seconds, as of the last turn that had a use for it
        self.repaired = 0
        for row in rows.live():
            if rows.sessions[row]["rekey_in"]:
                self._adopt(row)
            else:
                rows.drop(row)  # of generation 0: it carried the exchange alone, which ended with the last life
                self.repaired += 1
        rows.recycle()

    # ------------------------------------------------------------ for circuits

    def find(self, node: bytes) -> Link | None:
        """The link to this relay that carries circuits now."""
        link = self._by_node.get(node)
        return link if link and link.state is LinkState.UP and self._own(link) else None

    def want(self, node: Node, when_up: WhenUp, now: int, wall: int) -> None:
        """Call back with a link to this relay, now if there is one, or with None when it cannot be reached."""
        link = self.find(node.id)
        if link:
            when_up(link)
            return
        opening = self._by_node.get(node.id)
        if opening and opening.state is LinkState.HANDSHAKE and opening.tries >= SILENT_TRIES:
            when_up(None)
            return
        waiting = self._waiting.setdefault(node.id, [])
        waiting.append(when_up)
        if len(waiting) == 1:
            self._wait_until[node.id] = now + WAIT_MOST
            if self._context.index == 0:
                self._open(node, now, wall)
            elif not self._post(0, {"op": "want", "node": node.id.hex(), "from": self._context.index}):
                self._resolve(node.id, None)

    def want_for(self, node_id: bytes, now: int, wall: int) -> None:
        """Another worker of this node wants a link; it hears of it when its sessions are there, or that there will be none.

        A link that has been up for long and that the other still asks for is one that it lost with a life: it needs a new one.
        """
        node = self._context.snapshot.by_id(node_id)
        link = self._by_node.get(node_id)
        if node is None:
            self._resolve(node_id, None)
        elif link is None or (link.state is LinkState.UP and not link.retire):
            self._open(node, now, wall)

    def _own(self, link: Link) -> list[int]:
        return [row for (generation, _), row in link.sessions.items() if generation == link.sending]

    def choose_session(self, link: Link) -> int:
        """One of this worker's sessions on the link, drawn evenly: circuits of a link spread over its sessions."""
        own = self._own(link)
        return own[int.from_bytes(self._entropy(2), "big") % len(own)]

    def link_of(self, session: int) -> Link | None:
        """The link to which a session row belongs."""
        return self._by_row.get(session)

    def send_cell(self, link: Link, session: int, kind: int, slot: int, circuit_id: int, cell: bytes) -> bool:
        """Send a build or answer cell reliably to the neighbour."""
        key = (link.sending, int(self._rows.sessions[session]["index"]))
        channel = link.channels.get(key)
        if channel is None or channel.waiting >= CELL_QUEUE:
            return False
        self._busy.add((link.tag, *key))
        return channel.send_cell(kind, slot, circuit_id, cell) >= 0

    def send_destroy(self, link: Link, session: int, circuit_id: int, reason: int) -> None:
        """Tell the neighbour that a circuit is over, in this turn's last step."""
        key = (link.tag, link.sending, int(self._rows.sessions[session]["index"]))
        self._destroys.setdefault(key, []).append(Destroy(circuit_id, reason))

    def _send_destroys(self) -> None:
        waiting, self._destroys = self._destroys, {}
        for (tag, generation, index), frames in waiting.items():
            link = self._by_tag.get(tag)
            if link and link.sending == generation:
                for at in range(0, len(frames), DESTROYS):
                    self._send_frames(link, index, frames[at : at + DESTROYS])

    def _send_frames(self, link: Link, index: int, frames: list[Frame]) -> None:
        key = (link.sending, index)
        channel = link.channels.get(key)
        if channel is not None:
            if channel.send_frames(frames) < 0 and channel.state is ChannelState.OPEN:
                self._overfull.append(link)  # what the peer must hear finds no room: the link ends
            self._busy.add((link.tag, *key))

    # ------------------------------------------------------------ opening

    def _open(self, node: Node, now: int, wall: int) -> None:
        address = self._rows.pack_address(node.addresses)
        suites = [s for s in self.suites if s in node.descriptor.link_suites]
        known = self._by_node.get(node.id)
        if known and known.state in {LinkState.HANDSHAKE, LinkState.KEYING}:
            return
        if address is None or not suites or len(self._pending) >= PENDING_PEERS or len(self._by_tag) >= LINKS_MAX:
            self._resolve(node.id, None)
            return
        link = Link(self._take_row(), self._entropy(16), node.id, address, True, now, LinkState.HANDSHAKE)  # noqa: FBT003
        self._add(link)
        self._by_node[node.id] = link
        self._try(link, node, suites, now, wall)

    def _take_row(self) -> int:
        """A number that no link of this worker has: circuit keys and session rows carry it."""
        while self._next_row in self._by_number:
            self._next_row = self._next_row % ROWS_MAX + 1
        number, self._next_row = self._next_row, self._next_row % ROWS_MAX + 1
        return number

    def _add(self, link: Link) -> None:
        self._by_tag[link.tag] = self._by_number[link.row] = link

    def _try(self, link: Link, node: Node, suites: list[int], now: int, wall: int) -> None:
        self._forget_attempt(link)
        cids = self._rows.new_cids()
        link.attempt = Initiator(node.public, self._context.keys, suites, cids, self._entropy, wall, link.cookie)
        link.due = now + (FIRST_TRY << min(link.tries, DOUBLINGS))
        link.tries += 1
        link.created = now
        for cid in (link.attempt.answer_cid, link.attempt.cookie_cid):
            self._pending[cid] = link
            self.strangers.sift.expect(cid)
        self._row[Counter.HANDSHAKES_STARTED] += 1
        self._batch.udp.send_raw(link.address, link.attempt.packet)

    def _forget_attempt(self, link: Link) -> None:
        if link.attempt:
            for cid in (link.attempt.answer_cid, link.attempt.cookie_cid):
                self._pending.pop(cid, None)
                self.strangers.sift.forget(cid)
        link.attempt = None

    def on_stranger(self, stranger: Stranger, now: int, wall: int) -> None:
        """Take a packet whose CID names no session: an answer that we wait for, an initiation, or junk."""
        self.wall = wall
        link = self._pending.get(stranger.packet[:CID_SIZE])
        try:
            if link is None or link.attempt is None:
                self.strangers.admit(stranger, now)
            elif stranger.packet[:CID_SIZE] == link.attempt.answer_cid:
                self._on_answer(link, link.attempt, stranger, now)
            elif (cookie := link.attempt.cookie(stranger.packet)) is not None:
                self._on_cookie(link, cookie, now, wall)
            else:
                self._drop(Drop.BAD_HANDSHAKE)
        except HandshakeError as error:
            self._drop(error.drop)

    def _drop(self, code: Drop) -> None:
        self._batch.drops[code] += 1

    def _on_answer(self, link: Link, attempt: Initiator, stranger: Stranger, now: int) -> None:
        secrets = attempt.finish(stranger.packet)
        self._forget_attempt(link)
        link.window = secrets.receive_window or WINDOW_UNKNOWN
        link.rtt = now - link.created
        self._begin_keying(link, secrets, now)

    def _on_cookie(self, link: Link, cookie: bytes, now: int, wall: int) -> None:
        """The relay is under load and wants to see that its packets reach us: a wholly new initiation shows it, and is no try."""
        if link.asked >= TRIES:
            return
        link.asked += 1
        link.tries -= 1
        self._row[Counter.COOKIES_TAKEN] += 1
        link.cookie = cookie
        self._again(link, now, wall)

    @property
    def crowded(self) -> bool:
        """Whether nobody may begin another link with us."""
        return len(self._by_tag) >= STRANGERS_MAX

    def _hand_to_first(self, secrets: LinkSecrets, source: bytes, now: int) -> None:
        node = secrets.peer.node_id if secrets.peer else None
        if self._context.index == 0:
            self.accept(secrets, node, source, now)
        else:
            self._post(
                0,
                {"op": "accept", "source": source.hex(), "node": node.hex() if node else None, "secrets": pack_secrets(secrets)},
            )

    def accept(self, secrets: LinkSecrets, node: bytes | None, source: bytes, now: int) -> None:
        """Take over a link that some worker of this node answered; worker 0 only."""
        if self.crowded:
            self._drop(Drop.NO_BUFFER)
            return
        link = Link(self._take_row(), self._entropy(16), node, source, False, now, LinkState.KEYING)  # noqa: FBT003
        self._add(link)
        self._begin_keying(link, secrets, now)

    # ------------------------------------------------------------ keys

    def _begin_keying(self, link: Link, secrets: LinkSecrets, now: int) -> None:
        link.state = LinkState.KEYING
        link.suite = secrets.suite
        link.due = now + HALF_OPEN
        if not self._install(link, secrets, 0, now):
            self._end(link, now)
            return
        channel = link.channels[0, 0]
        link.upgrade = LinkUpgrade(secrets, channel, self._rows.new_cids(), self._entropy)
        link.upgrade.start()
        self._busy.add((link.tag, 0, 0))

    def _install(self, link: Link, secrets: LinkSecrets, index: int, now: int) -> bool:
        row = self._rows.install(link.row, link.tag, link.node, link.address, secrets, index, link.window, now)
        if row is None:
            return False
        link.sessions[secrets.generation, index] = row
        self._by_row[row] = link
        link.channels[secrets.generation, index] = Channel(link.rtt or DEFAULT_RTT, self._rows.control(row))
        return True

    def _on_keys(self, link: Link, secrets: LinkSecrets, now: int) -> None:
        """Install generation 1: our own sessions here, the others at the workers whom their CIDs name."""
        workers = self._context.workers
        for index in range(SESSIONS_PER_LINK):
            if index % workers == 0 and not self._install(link, secrets, index, now):
                self._end(link, now)
                return
        for worker in range(1, workers):
            self._post(worker, {**self._describe(link), "op": "link", "secrets": pack_secrets(secrets)})
        if link.initiator:
            self._switch(link, now)

    def _describe(self, link: Link) -> dict[str, Any]:
        node = link.node.hex() if link.node else None
        return {
            "tag": link.tag.hex(), "node": node, "initiator": link.initiator, "address": link.address.hex(),
            "window": link.window, "rtt": link.rtt,
        }  # fmt: skip

    def on_shared(self, message: dict[str, Any], secrets: LinkSecrets, now: int) -> None:
        """Take this worker's sessions of a link that worker 0 keyed."""
        tag, node = bytes.fromhex(message["tag"]), message["node"]
        address, initiator = bytes.fromhex(message["address"]), bool(message["initiator"])
        node_id = bytes.fromhex(node) if node else None
        link = Link(self._take_row(), tag, node_id, address, initiator, now, LinkState.KEYING, secrets.suite)
        link.window, link.rtt = int(message["window"]), int(message["rtt"])
        self._add(link)
        for index in range(SESSIONS_PER_LINK):
            if index % self._context.workers == self._context.index:
                self._install(link, secrets, index, now)
        link.due = now + HALF_OPEN
        if link.initiator:
            self._switch(link, now)

    def on_confirmed(self, tag: bytes, now: int) -> None:
        """Worker 0 says that the initiator of this link uses generation 1."""
        link = self._by_tag.get(tag)
        if link and link.state is LinkState.KEYING:
            self._switch(link, now)

    def _switch(self, link: Link, now: int) -> None:
        """Send under generation 1 from now on; circuits may use the link."""
        link.sending = 1
        link.state = LinkState.UP
        link.retire = now + KEEP_GENERATION
        link.upgrade = None  # the chain keys of both generations go with it
        self._row[Counter.LINKS_OPENED] += 1
        if (
            link.initiator and (1, 0) in link.channels
        ):  # before any build: the responder waits for a packet, and ends want the window
            nonce = int.from_bytes(self._entropy(8), "big")
            self._send_frames(link, 0, [ReceiveWindow(self._window), Ping(nonce)])
        if link.node is None:
            return
        if not self._own(link):  # more workers than sessions: this one has none on any link
            self._resolve(link.node, None)
            return
        self._by_node[link.node] = link
        self._resolve(link.node, link)

    def _resolve(self, node: bytes, link: Link | None) -> None:
        self._wait_until.pop(node, None)
        for when_up in self._waiting.pop(node, []):
            when_up(link)
        if link is None and self._context.index == 0:
            for worker in range(1, self._context.workers):
                self._post(worker, {"op": "unreachable", "node": node.hex()})

    def on_unreachable(self, node: bytes) -> None:
        """Worker 0 gave up opening a link."""
        self._resolve(node, None)

    # ------------------------------------------------------------ packets of the channel

    def on_control(self, packet: Control, now: int) -> None:
        """Take an opened packet of a session that is not a data cell."""
        link = self._by_row.get(packet.row)
        if link is None:
            return
        session = self._rows.sessions[packet.row]
        session["in_hand"] = 1
        self._take_control(link, session, packet, now)
        session["in_hand"] = 0

    def _take_control(self, link: Link, session: Any, packet: Control, now: int) -> None:
        key = (int(session["rekey_in"]), int(session["index"]))
        channel = link.channels.get(key)
        if channel is None:
            self._drop(Drop.NOT_READY)
            return
        if key[0] and not link.initiator and link.state is LinkState.KEYING:
            self._on_first_new(link, now)
        code = channel.receive(packet.header, packet.path, packet.number, packet.payload, now)
        if code is Drop.REPLAYED:
            self._row[Counter.CONTROL_REPEATED] += 1
        elif code is not Drop.OK:
            self._drop(code)
        self._busy.add((link.tag, *key))
        self._drain(link, key, channel, packet.row, now)

    def _on_first_new(self, link: Link, now: int) -> None:
        """The initiator of this link sends under generation 1: so may we."""
        if link.upgrade:
            link.upgrade.confirm()
        self._switch(link, now)
        if self._context.index == 0:
            for worker in range(1, self._context.workers):
                self._post(worker, {"op": "confirmed", "tag": link.tag.hex()})

    def _drain(self, link: Link, key: tuple[int, int], channel: Channel, row: int, now: int) -> None:
        while (event := channel.next_event()) is not None and link.state is not LinkState.GONE:
            if isinstance(event, CellReceived):
                if link.state is LinkState.UP:
                    self.circuits.on_cell(link, row, event, now)
            elif isinstance(event, FrameReceived):
                self._on_frame(link, event.frame, now)
            elif isinstance(event, Violation):
                self._flush_channel(link, key, channel, now)
                self._end(link, now)
            elif isinstance(event, Failed):
                self._end(link, now)

    def _on_frame(self, link: Link, frame: Frame, now: int) -> None:
        if isinstance(frame, Destroy):
            self.circuits.on_destroy(link, frame.circuit, frame.reason, now)
        elif isinstance(frame, ReceiveWindow):
            link.window = max(1, frame.packets)
            for row in link.sessions.values():
                self._rows.sessions[row]["window_packets"] = link.window
        elif isinstance(frame, Close):
            self._end(link, now)
        elif isinstance(frame, Crypto | NewCid) and not link.upgrade:
            self.close(link, ErrorCode.PROTOCOL_VIOLATION, now)  # a second exchange
        elif link.upgrade:
            try:
                secrets = link.upgrade.receive(frame)
            except RemoteProtocolError as error:
                self.close(link, ErrorCode(error.code), now)
                return
            if secrets:
                self._on_keys(link, secrets, now)

    # ------------------------------------------------------------ time and sending

    @property
    def busy(self) -> bool:
        """Whether a channel has something under way, or will have."""
        return bool(self._busy or self._destroys or self._overfull)

    def transmit(self, now: int) -> int:
        """Queue what the channels have to send; returns when to come again (ns)."""
        self._rows.recycle()
        self._send_destroys()
        while self._overfull:
            self._end(self._overfull.pop(), now)
        soonest = self._next_sweep
        for tag, *place in tuple(self._busy):
            link, key = self._by_tag.get(tag), (place[0], place[1])
            channel = link.channels.get(key) if link else None
            if link is None or channel is None:
                self._busy.discard((tag, *key))
                continue
            due = channel.poll_timeout()
            if due is not None and due <= now:
                channel.handle_timeout(now)
                self._drain(link, key, channel, -1, now)
            self._flush_channel(link, key, channel, now)
            due = channel.poll_timeout()
            if due is None:
                self._busy.discard((tag, *key))
            else:
                soonest = min(soonest, due)
        return soonest

    def _flush_channel(self, link: Link, key: tuple[int, int], channel: Channel, now: int) -> None:
        row, before = link.sessions.get(key), channel.retransmitted
        while row is not None and self._batch.may_send_control and (packet := channel.poll_transmit(now)) is not None:
            self._batch.send_control(row, packet.header_byte, packet.path_byte, packet.payload)
        self._row[Counter.CONTROL_RETRANSMITTED] += channel.retransmitted - before
        for sample in channel.samples:
            self._round_trips.observe(sample)
        channel.samples.clear()

    def on_timer(self, now: int, wall: int) -> None:
        """Once a second: tries, half-open links, old generations, keep-alive, silence."""
        self.wall = wall
        self.strangers.on_timer(now, wall)
        if now < self._next_sweep:
            return
        self._next_sweep = now + SECOND
        for link in list(self._by_tag.values()):
            if link.state is LinkState.HANDSHAKE and now >= link.due:
                self._again(link, now, wall)
            elif link.state is LinkState.KEYING and now >= link.due:
                self._give_up(link, now)
            elif link.state is LinkState.UP:
                self._keep(link, now)
        for node in [node for node, until in self._wait_until.items() if now >= until]:
            self._resolve(node, None)

    def excuse(self, now: int) -> None:
        """We stood still ourselves: every neighbour has time anew to be heard, and is asked whether it is there."""
        for link in list(self._by_tag.values()):
            own = self._own(link)
            if link.state is LinkState.UP and own:
                link.created = now
                self._ask(link, min(int(self._rows.sessions[row]["index"]) for row in own))

    def _ask(self, link: Link, index: int) -> None:
        self._send_frames(link, index, [Ping(int.from_bytes(self._entropy(8), "big"))])

    def _give_up(self, link: Link, now: int) -> None:
        """The exchange took too long. Whoever has shown no key may have lied about his address: he hears nothing."""
        session = link.sessions.get((0, 0))
        if link.initiator or (session is not None and int(self._rows.sessions[session]["packets_in"])):
            self.close(link, ErrorCode.NO_ERROR, now)
        else:
            self._end(link, now)

    def _again(self, link: Link, now: int, wall: int) -> None:
        node = self._context.snapshot.by_id(link.node) if link.node else None
        if node is None or link.tries >= TRIES:
            self._end(link, now)
            return
        self._try(link, node, [s for s in self.suites if s in node.descriptor.link_suites], now, wall)

    def _keep(self, link: Link, now: int) -> None:
        if link.retire and now >= link.retire:
            link.retire = 0
            for key in [key for key in link.sessions if key[0] != link.sending]:
                link.channels.pop(key, None)
                self._drop_session(link.sessions.pop(key))
        rows = [self._rows.sessions[row] for row in link.sessions.values()]
        if not rows:
            return  # more workers than sessions: the others of this node know whether the link lives
        last_in, last_out = (max(int(r[name]) for r in rows) for name in ("last_in", "last_out"))
        if now - max(last_in, link.created) > IDLE:
            self._end(link, now)
            return
        index = min(index for _, index in link.sessions)  # of our own: whatever other workers say, we know if the peer is there
        channel = link.channels.get((link.sending, index))
        unheard = last_out - last_in > UNHEARD and channel is not None and not channel.waiting
        if unheard or now - last_out > KEEP_ALIVE:
            self._ask(link, index)

    def close(self, link: Link, code: ErrorCode, now: int) -> None:
        """End a link with a CLOSE frame."""
        for key, channel in link.channels.items():
            if channel.state is ChannelState.OPEN and key[0] == link.sending:
                channel.close(code)
                self._flush_channel(link, key, channel, now)
                break
        self._end(link, now)

    def on_lost(self, tag: bytes, now: int) -> None:
        """Another worker of this node saw the link end."""
        link = self._by_tag.get(tag)
        if link:
            self._end(link, now, tell=False)

    def _end(self, link: Link, now: int, *, tell: bool = True) -> None:
        if link.state is LinkState.GONE:
            return
        was = link.state
        link.state = LinkState.GONE
        self._forget_attempt(link)
        self._by_tag.pop(link.tag, None)
        self._by_number.pop(link.row, None)
        if link.node and self._by_node.get(link.node) is link:
            self._replace(link.node)
        if was is LinkState.UP:
            self._row[Counter.LINKS_CLOSED] += 1
            self.circuits.on_link_lost(link, now)
        self._batch.outbox.flush(now)  # a CLOSE leaves before its keys go
        for row in link.sessions.values():
            self._drop_session(row)
        link.sessions.clear()
        link.channels.clear()
        if link.node and (other := self.find(link.node)):
            self._resolve(link.node, other)
        elif link.node and link.node not in self._by_node:
            self._resolve(link.node, None)
        if tell:
            for worker in range(self._context.workers):
                if worker != self._context.index:
                    self._post(worker, {"op": "lost", "tag": link.tag.hex()})

    def _replace(self, node: bytes) -> None:
        """Its link is gone; another one to the same relay that is up takes its place."""
        del self._by_node[node]
        for link in self._by_tag.values():
            if link.node == node and link.state is LinkState.UP and self._own(link):
                self._by_node[node] = link

    def _drop_session(self, row: int) -> None:
        self._by_row.pop(row, None)
        self._batch.outbox.forget(row)
        self._rows.drop(row)

    # ------------------------------------------------------------ a new life, and what others ask

    def _adopt(self, row: int) -> None:
        """A session of the last life: its link carries cells, and its control channel goes on."""
        session = self._rows.sessions[row]
        session["in_hand"] = 1
        number = int(session["link"])
        link = self._by_number.get(number)
        if link is None:
            tag, node = self._rows.peer(row)
            initiator = bool(session["initiator"])
            link = Link(number, tag, node, session["address"].tobytes(), initiator, 0, LinkState.UP, int(session["suite"]))
            link.created = int(session["last_in"])
            link.window = int(session["window_packets"]) or WINDOW_UNKNOWN
            self._add(link)
            if node:
                self._by_node[node] = link
        generation = int(session["rekey_in"])
        link.sending = max(link.sending, generation)
        key = (generation, int(session["index"]))
        link.sessions[key] = row
        channel = link.channels[key] = Channel.resume(self._rows.control(row))
        self.repaired += channel.waiting > 0
        self._busy.add((link.tag, *key))
        self._by_row[row] = link
        session["in_hand"] = 0

    def all(self) -> list[Link]:
        """Every link, for `nyxctl peers`."""
        return list(self._by_tag.values())

    @property
    def count_up(self) -> int:
        """Links that carry circuits."""
        return sum(link.state is LinkState.UP for link in self._by_tag.values())
