"""Raw socket addresses: the 28 bytes that the kernel reads and writes beside a packet, for IPv4 and IPv6 alike.

A struct sockaddr_in (16 bytes, then zeros) or sockaddr_in6 (28), as sessions hold them. One socket of family IPv6 that serves
both sees IPv4 peers as ::ffff:a.b.c.d; `pack` takes the socket's family and maps.
"""

import ipaddress
import socket
import struct
from typing import Final

ADDRESS_SIZE: Final = 28  # bytes of a sockaddr_in6, the larger of the two
_V4_SIZE: Final = 16
_MAPPED: Final = bytes(10) + b"\xff\xff"


def pack(host: str, port: int, family: int) -> bytes:
    """The 28 raw bytes of a numeric address for a socket of this family. Raises ValueError for IPv6 on an IPv4 socket."""
    ip = ipaddress.ip_address(host)
    if family == socket.AF_INET:
        if ip.version != 4:
            raise ValueError(f"{host} cannot be reached from an IPv4 socket")
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s", port, ip.packed) + bytes(8 + ADDRESS_SIZE - _V4_SIZE)
    packed = bytes(10) + b"\xff\xff" + ip.packed if ip.version == 4 else ip.packed
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, packed, 0)


def unpack(raw: bytes) -> tuple[str, int]:
    """Host and port of raw bytes; a mapped IPv4 address comes out as IPv4."""
    family = struct.unpack_from("=H", raw)[0]
    port = struct.unpack_from("!H", raw, 2)[0]
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[4:8])), port
    ip = ipaddress.IPv6Address(raw[8:24])
    return str(ip.ipv4_mapped or ip), port


def unpack_ip(raw: bytes) -> bytes:
    """The 4 or 16 bytes of the address in raw bytes; a mapped IPv4 address comes out as 4."""
    if struct.unpack_from("=H", raw)[0] == socket.AF_INET:
        return raw[4:8]
    return raw[20:24] if raw[8:20] == _MAPPED else raw[8:24]


def size_of(raw: bytes) -> int:
    """Bytes of it that the kernel expects."""
    return _V4_SIZE if struct.unpack_from("=H", raw)[0] == socket.AF_INET else ADDRESS_SIZE
