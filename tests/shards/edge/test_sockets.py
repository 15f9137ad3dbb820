"""TCP sockets of the edges: what the kernel holds of them stays small whoever stalls."""

import contextlib
import socket
import time

from shards.edge.pumps import prepare


def _joined() -> tuple[socket.socket, socket.socket]:
    """A prepared socket and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    prepare(ours)
    peer.setblocking(False)
    return ours, peer


def _pour(sock: socket.socket) -> int:
    """Bytes that the kernels take until they take no more."""
    sent, block = 0, bytes(1 << 18)
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sock.send(block)
        time.sleep(0.001)  # the peer's window grows as segments arrive
    return sent


def test_what_the_kernel_holds_of_a_socket_that_nobody_reads_is_bounded() -> None:
    ours, peer = _joined()
    with ours, peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        assert _pour(peer) < 3 << 19  # our window, and a little at the sender
    ours, peer = _joined()
    with ours, peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        assert _pour(ours) < 1 << 20  # what is unsent, and a little at the receiver
