"""Work of others that waits its turn: a bounded queue for each who brings it, served in rotation.

Place on a packet's way: between the cheap checks of handshakes and builds and their public-key operations. Whoever brings much
waits for himself. Source: docs/protocol.md, "Shares of public-key operations".
"""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

OPERATIONS: Final = 8  # X25519 and ML-KEM operations that strangers get between two batches
PIECE: Final = 4  # of them in an answer to a client's initiation, or in a build
RELAY_EXTRA: Final = 2  # more in an answer to a relay's initiation

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


class FairQueue(Generic[Key, Item]):
    """At most `most` items, at most `share` of one key; `take` goes round the keys. `gave_way` gets each that lost its place."""

    def __init__(self, most: int, share: int, gave_way: Callable[[Item], object]) -> None:
        self._most = most
        self._share = share
        self._gave_way = gave_way
        self._queues: dict[Key, deque[Item]] = {}  # in the order in which they are served
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, key: Key, item: Item) -> bool:
        """Queue an item; False when there is no room for it. A full queue gives the newcomer the place of the greediest key."""
        mine = len(self._queues.get(key, ()))
        if mine >= self._share:
            return False
        if self._size >= self._most:
            greedy = max(self._queues, key=lambda other: len(self._queues[other]))
            if len(self._queues[greedy]) <= mine + 1:
                return False
            self._size -= 1
            self._gave_way(self._queues[greedy].pop())
        self._queues.setdefault(key, deque()).append(item)
        self._size += 1
        return True

    def take(self) -> Item | None:
        """The next item of the key whose turn it is."""
        if not self._size:
            return None
        key = next(iter(self._queues))
        queue = self._queues.pop(key)
        item = queue.popleft()
        if queue:
            self._queues[key] = queue
        self._size -= 1
        return item


class Budget:
    """Public-key operations that are left until the next batch; what was overdrawn is missing then."""

    def __init__(self) -> None:
        self._left = OPERATIONS

    def renew(self) -> None:
        """A batch was received."""
        self._left = OPERATIONS + min(self._left, 0)

    @property
    def allows(self) -> bool:
        """Whether another piece of work fits."""
        return self._left >= PIECE

    def spend(self, operations: int) -> None:
        """Take note of operations that were made."""
        self._left -= operations


def serve(budget: Budget, *rooms: Callable[[], int]) -> None:
    """Let each room do one piece of work in turn, while somebody has any. A room says how many operations it made, 0 for none."""
    waiting = deque(rooms)
    while waiting and budget.allows:
        room = waiting.popleft()
        spent = room()
        budget.spend(spent)
        if spent:
            waiting.append(room)
