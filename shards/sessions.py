"""Session rows of one worker: allocating, installing keys, forgetting.

Place on a packet's way: none; it writes what `find_sessions`, `open_packets` and `seal_packets` read. The rows are the truth; the
lookup by CID and the free list are derived when a worker starts.

A row that was dropped rests until the turn ends: packets of the same batch were opened under its old keys and still name it,
and must not be taken for packets of whatever link the row is given to next. Source: docs/protocol.md, "Link sessions".
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.columns import Column
from nyx.crypto.forget import forget
from nyx.crypto.replay import WINDOW_WORDS, mend_window
from nyx.crypto.suites import LINK_ORDER, SUITE_AEGIS256, SUITE_CHACHA
from nyx.errors import InternalError
from nyx.link.handshake import LinkSecrets
from nyx.link.session import SESSION_FREE, SESSION_HELD, SESSION_LIVE, check_session, wipe_session
from nyx.wire.geometry import NODE_ID_SIZE, SESSIONS_PER_LINK
from shards.address import pack, size_of
from shards.context import WorkerContext
from shards.footprint import clear
from shards.steer import choose_cid
from shards.tables import Table, cid_key, session_entries

TAG_SIZE: Final = 16
PACKET_CHARGE: Final = 2304  # bytes of a socket buffer that the kernel charges for a packet of 1280 that came alone
_PEER: Final = np.dtype([("tag", "u1", (TAG_SIZE,)), ("node", "u1", (NODE_ID_SIZE,)), ("known", "u1")])
_ONLY: Final = {"aegis256": (SUITE_AEGIS256, SUITE_CHACHA), "chacha20poly1305": (SUITE_CHACHA,)}


def peer_columns(sessions: int) -> list[Column]:
    """What a restarted worker must know of a session's link: its tag and the peer's node id."""
    return [Column("session_peers", _PEER, sessions)]


def receive_window(buffer: int) -> int:
    """Packets that a socket buffer of so many bytes (as the kernel reports it) surely holds."""
    return max(64, buffer // PACKET_CHARGE)


def offered_suites(prefer: str, available: Iterable[int]) -> list[int]:
    """Suites of this node, best first: ChaCha20-Poly1305 always, AEGIS where the processor has AES.

    Who prefers AEGIS-256 offers no 128-bit keys: its links fall back to ChaCha20, and its circuits' layers are ChaCha20's.
    """
    return [suite for suite in _ONLY.get(prefer, LINK_ORDER) if suite in set(available)]


class SessionRows:
    """The session columns of one worker, and the table that finds them by CID."""

    def __init__(self, context: WorkerContext, table: Table, suites: list[int]) -> None:
        self._context = context
        self._columns = context.columns
        self.sessions: NDArray[Any] = context.columns["sessions"]
        self._peers: NDArray[Any] = context.columns["session_peers"]
        self._control: NDArray[Any] = context.columns["session_control"]
        self._table = table
        self.suites = suites
        self.repaired = 0
        for row in np.flatnonzero(self.sessions["state"] == SESSION_HELD).tolist():  # its worker died while writing it
            wipe_session(self._columns, row, clear)
            self.repaired += 1
        windows = self._columns["session_windows"]
        for row in self.live():
            self.repaired += mend_window(windows, row * WINDOW_WORDS, int(self.sessions[row]["received_next"]))
        self._free = [int(row) for row in np.flatnonzero(self.sessions["state"] == SESSION_FREE)[::-1]]
        self._resting: list[int] = []  # dropped in this turn

    def live(self) -> list[int]:
        """Rows that can receive."""
        return [int(row) for row in np.flatnonzero(self.sessions["state"] >= SESSION_LIVE)]

    def new_cids(self) -> list[bytes]:
        """Four CIDs for us to receive under: session i comes to worker i mod workers."""
        context = self._context
        return [
            choose_cid(index % context.workers, context.workers, context.multiplier, context.entropy)
            for index in range(SESSIONS_PER_LINK)
        ]

    def pack_address(self, addresses: Iterable[tuple[str, int]]) -> bytes | None:
        """The first of a node's addresses that our socket reaches, as raw bytes."""
        for host, port in addresses:
            try:
                return pack(host, port, self._context.udp.family)
            except ValueError:
                continue
        return None

    def install(
        self, link: int, tag: bytes, node: bytes | None, address: bytes, secrets: LinkSecrets, index: int, window: int, now: int
    ) -> int | None:
        """Make session `index` of these secrets live. None when every row is in use."""
        if not self._free:
            return None
        row = self._free.pop()
        session, keys = self.sessions[row], secrets.session_keys(index)
        session["state"] = SESSION_HELD
        self._control[row : row + 1].view(np.uint8)[:] = 0
        session["link"], session["index"], session["initiator"] = link, index, int(secrets.initiator)
        session["suite"], session["window_packets"] = secrets.suite, window
        session["rekey_in"] = session["rekey_out"] = secrets.generation
        session["last_in"] = session["last_out"] = now
        session["address_size"] = size_of(address)
        for name, value in (
            ("local_cid", secrets.local_cids[index]), ("peer_cid", secrets.peer_cids[index]),
            ("receive_key", keys.receive_key), ("send_key", keys.send_key),
            ("receive_mask", keys.receive_mask), ("send_mask", keys.send_mask), ("address", address),
        ):  # fmt: skip
            session[name][: len(value)] = np.frombuffer(value, np.uint8)
        peer = self._peers[row]
        peer["tag"][:] = np.frombuffer(tag, np.uint8)
        peer["known"] = node is not None
        peer["node"][:] = np.frombuffer(node or bytes(NODE_ID_SIZE), np.uint8)
        forget(keys.receive_key, keys.send_key, keys.receive_mask, keys.send_mask)
        session["state"] = SESSION_LIVE
        self._table.put(cid_key(secrets.local_cids[index]), row)
        return row

    def peer(self, row: int) -> tuple[bytes, bytes | None]:
        """Tag of the link and node id of the peer, as `install` wrote them."""
        peer = self._peers[row]
        return peer["tag"].tobytes(), peer["node"].tobytes() if peer["known"] else None

    def control(self, row: int) -> Any:
        """What the session's control channel keeps over a worker's death."""
        return self._control[row]

    def drop(self, row: int) -> None:
        """Forget a session: keys and window become zero. The row may be used again after `recycle`."""
        self._table.drop(cid_key(self.sessions[row]["local_cid"].tobytes()))
        wipe_session(self._columns, row, clear)
        self._control[row : row + 1].view(np.uint8)[:] = 0
        self._resting.append(row)

    def recycle(self) -> None:
        """Nothing names the rows dropped so far any more: no packet of a batch, and none that waits to be sealed."""
        self._free += self._resting
        self._resting.clear()

    def check_invariants(self) -> None:
        """Raise when the lookup or the free list contradict the rows, or a row itself."""
        states = self.sessions["state"]
        idle = sorted([*self._free, *self._resting])
        if idle != np.flatnonzero(states == SESSION_FREE).tolist():
            raise InternalError("the free list of sessions is not the free rows")
        self._table.check_invariants(session_entries(self.sessions))
        for row in np.flatnonzero(states != SESSION_FREE).tolist():
            check_session(self._columns, row)
