"""The program in the kernel and its twins in Python agree on every packet, for IPv4 and IPv6 through one group."""

import random
import select
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.errors import InternalError
from nyx.kernel import kernel
from nyx.wire.geometry import CID_SIZE, PACKET_SIZE
from shards.steer import attach_program, choose_cid, draw_multiplier, shard_of, worker_at, worker_of
from shards.udp import bind_group


@kernel("i8", "u1[]", "i8", "i8")
def _worker(packets: "np.ndarray[tuple[int], np.dtype[np.uint8]]", multiplier: int, workers: int) -> int:
    return worker_at(packets, 0, multiplier, workers)


@given(st.binary(min_size=CID_SIZE, max_size=CID_SIZE), st.integers(0, 2**31 - 1), st.integers(1, 4))
def test_kernel_and_python_agree(cid: bytes, half: int, workers: int) -> None:
    multiplier = 2 * half + 1
    assert 0 <= shard_of(cid, multiplier) < 64
    assert _worker(np.frombuffer(cid, np.uint8).copy(), multiplier, workers) == worker_of(cid, multiplier, workers)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_kernel_steers_400_of_400(workers: int, rng: random.Random) -> None:
    multiplier = draw_multiplier(rng.randbytes)
    group = bind_group("::", 0, workers)
    port = group[0].getsockname()[1]
    attach_program(group[0], multiplier, workers)
    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)]
    right = 0
    for i in range(400):
        worker = rng.randrange(workers)
        cid = choose_cid(worker, workers, multiplier, rng.randbytes)
        senders[i % 2].sendto(cid + bytes(PACKET_SIZE - CID_SIZE), ("127.0.0.1" if i % 2 == 0 else "::1", port))
        ready = select.select(group, [], [], 5)[0]
        right += ready == [group[worker]] and group[worker].recv(2048)[:CID_SIZE] == cid
    assert right == 400
    for sock in [*group, *senders]:
        sock.close()


def test_strangers_spread(rng: random.Random) -> None:
    multiplier = draw_multiplier(rng.randbytes)
    shards = {shard_of(rng.randbytes(CID_SIZE), multiplier) for _ in range(2000)}
    assert shards == set(range(64))


def test_a_source_of_entropy_that_repeats_itself_is_noticed() -> None:
    stuck = bytes(CID_SIZE)
    other = 1 - worker_of(stuck, 1, 2)
    with pytest.raises(InternalError):
        choose_cid(other, 2, 1, bytes)
