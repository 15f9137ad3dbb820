"""What a service manager wants to hear: lines like READY=1, sent to the socket that it named in the environment.

Place on a packet's way: none. The supervisor speaks, as the unit's main process; what it starts is not told the socket's name
(`shards.process.package_environment`). Nothing here waits or fails: a manager that does not listen loses the line.
Source: systemd's sd_notify(3), sd_watchdog_enabled(3); Linux unix(7), "abstract".
"""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

SOCKET: Final = "NOTIFY_SOCKET"
WATCHDOG: Final = "WATCHDOG_USEC"
WATCHDOG_PID: Final = "WATCHDOG_PID"
VARIABLES: Final = frozenset({SOCKET, WATCHDOG, WATCHDOG_PID})


class Notifier:
    """The way to the service manager; without one, `send` does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get(SOCKET, "")
        self._socket: socket.socket | None = None
        self._address = ""
        self.period = 0.0  # seconds within which the manager wants WATCHDOG=1; 0: it does not
        if not address.startswith(("/", "@")):
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        # Made here and kept: a node without descriptors must still be able to say that it lives.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        period, pid = environ.get(WATCHDOG, ""), environ.get(WATCHDOG_PID, "")
        if period.isdecimal() and pid in ("", str(os.getpid())):
            self.period = int(period) / 1e6

    @property
    def connected(self) -> bool:
        """Whether there is somebody to tell."""
        return self._socket is not None

    def send(self, *lines: str) -> None:
        """One message of these assignments."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
