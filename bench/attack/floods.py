"""Floods of strangers: packets that cost their sender as little as may be, in the order in which a relay's checks stop them.

    junk          random bytes: stopped by mac1
    forgeries     a right mac1 over random bytes, which everyone with the descriptor can make: stopped by the cookie under load
    proven        the same with mac2, from an address that takes the cookie: stopped by the quota of the source
    half_builds   six of the seven cells of a build: stopped by the bounds of builds that are being collected

`Sprayer` sends any of them from many loopback addresses at a rate that it keeps, and reads the answers.
"""

import hashlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import Final

from nyx.crypto.keys import PublicKeys
from nyx.link.cookie import mac2, open_cookie
from nyx.link.handshake import mac1_keys
from nyx.wire.geometry import BUILD_SLOTS, CELL_SIZE, INIT_MAC1, MAC_SIZE, PACKET_SIZE

Entropy = Callable[[int], bytes]
Answer = tuple[int, bytes]  # which source, what came

_ASK: Final = 50  # cookies asked for at once
_SLICE: Final = 0.005  # seconds between two looks at the clock


def junk(entropy: Entropy) -> bytes:
    """A packet that means nothing."""
    return entropy(PACKET_SIZE)


def forgery(public: PublicKeys, entropy: Entropy, wall: int, cookie: bytes = b"") -> bytes:
    """An initiation that passes every check before the first public-key operation, and fails there."""
    body = entropy(INIT_MAC1)
    packet = body + hashlib.blake2b(body, digest_size=MAC_SIZE, key=mac1_keys(public, wall)[:32]).digest()
    return packet + (mac2(packet, cookie) if cookie else entropy(MAC_SIZE))


def half_build(entropy: Entropy) -> list[bytes]:
    """The cells of a build that never becomes whole."""
    return [entropy(CELL_SIZE) for _ in range(BUILD_SLOTS - 1)]


def sources(count: int) -> list[str]:
    """So many addresses of 127/8 beyond 127.1, spread over as many /24 as there are."""
    return [f"127.{1 + n // 250 // 250 % 250}.{n // 250 % 250}.{1 + n % 250}" for n in range(count)]


class Sprayer:
    """Sends to one relay from many sockets. Only for networks of loopback addresses."""

    def __init__(self, target: tuple[str, int], addresses: Iterable[str]) -> None:
        self._sockets = [_bound(address) for address in addresses]
        self._ring = cycle(self._sockets)
        self._target = target
        self.sent = 0
        self.refused = 0

    def close(self) -> None:
        """Give the sockets back."""
        for one in self._sockets:
            one.close()

    def spray(self, packets: Iterator[bytes], rate: int, seconds: float) -> float:
        """Send at this rate for so long, from the next socket on, one after the other; returns the rate that was reached."""
        began, count = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            while count < rate * passed:
                self._send(next(self._ring), next(packets))
                count += 1
            time.sleep(_SLICE)
        return count / (time.monotonic() - began)

    def _send(self, one: socket.socket, packet: bytes) -> None:
        try:
            one.sendto(packet, self._target)
            self.sent += 1
        except OSError:
            self.refused += 1

    def fetch_cookies(self, public: PublicKeys, entropy: Entropy, wall: int) -> dict[int, bytes]:
        """Ask from every socket, a few at a time, and take what comes of a relay under load: cookies, by number of the socket."""
        asked, found = dict[int, bytes](), dict[int, bytes]()
        for first in range(0, len(self._sockets), _ASK):
            numbers = range(first, min(first + _ASK, len(self._sockets)))
            for number in numbers:
                asked[number] = forgery(public, entropy, wall)
                self._send(self._sockets[number], asked[number])
            time.sleep(_SLICE)
            for number, answer in self.answers(numbers):
                if number in asked and (cookie := open_cookie(answer, asked[number], public)) is not None:
                    found[number] = cookie
        return found

    def keep(self, numbers: list[int]) -> None:
        """Go on with these sockets alone."""
        kept = set(numbers)
        for number, one in enumerate(self._sockets):
            if number not in kept:
                one.close()
        self._sockets = [self._sockets[number] for number in numbers]
        self._ring = cycle(self._sockets)

    def send_from(self, number: int, packet: bytes) -> None:
        """Send one packet from one socket."""
        self._send(self._sockets[number], packet)

    def answers(self, numbers: Iterable[int]) -> Iterator[Answer]:
        """What has come so far to these sockets."""
        for number in numbers:
            while True:
                try:
                    yield number, self._sockets[number].recv(2 * PACKET_SIZE)
                except BlockingIOError:
                    break


def _bound(address: str) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.settimeout(0)
    found.bind((address, 0))
    return found
