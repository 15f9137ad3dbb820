"""What the headers below ours say: fixed for every socket of the node, and never taken from what came in.

Place on a packet's way: none; set once, when a socket is made or taken over. A relay that copied a mark (time to live, type of
service with its ECN bits, flow label, fragmentation) from one side to the other would carry it past the onion's layers. The
values are what the kernel has without any setting, so that a node is not known by them; a changed default of the machine does
not pass.
Errors that ICMP reports are not queued for a UDP socket: whoever can write one could otherwise make each send fail.
Source: Linux ip(7), ipv6(7), udp(7); RFC 6864 (the identification of a packet that is not fragmented says nothing).
"""

import contextlib
import socket
from typing import Final

HOPS: Final = 64  # time to live of what leaves

_IP_RECVERR: Final = 11
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_RECVERR: Final = 25
_IPV6_AUTOFLOWLABEL: Final = 70
_PMTUDISC_PROBE: Final = 3  # DF always set, and no forged ICMP message can change what we send

# (level, option, value); a socket of IPv6 that serves IPv4 too takes both
_IPV4: Final = ((socket.IPPROTO_IP, socket.IP_TTL, HOPS), (socket.IPPROTO_IP, socket.IP_TOS, 0))
_IPV6: Final = (
    (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOPS),
    (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0),
    (socket.IPPROTO_IPV6, _IPV6_AUTOFLOWLABEL, 0),
)
_UDP_IPV4: Final = (
    (socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE),
    (socket.IPPROTO_IP, _IP_RECVERR, 0),
)
_UDP_IPV6: Final = (
    (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE),
    (socket.IPPROTO_IPV6, _IPV6_RECVERR, 0),
)


def fix_marks(sock: socket.socket) -> None:
    """Fix them for a UDP or TCP socket. What a kernel does not know it does not do either."""
    packets = sock.type == socket.SOCK_DGRAM
    options = _IPV4 + (_UDP_IPV4 if packets else ())
    if sock.family == socket.AF_INET6:
        options += _IPV6 + (_UDP_IPV6 if packets else ())
    for level, option, value in options:
        with contextlib.suppress(OSError):
            sock.setsockopt(level, option, value)
