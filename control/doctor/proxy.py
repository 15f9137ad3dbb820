"""Checks of the proxy as an application sees it: a SOCKS greeting, a name that only the exit may look up, proxy variables.

Place: `nyxctl doctor`. Source: RFC 1928; RFC 6761 for .invalid, which no name server knows.
"""

import os
import secrets
import socket
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from control.schemas import Check

_TIMEOUT: Final = 20.0  # seconds: the exit's name server may be slow
_VARIABLES: Final = ("all_proxy", "ALL_PROXY", "http_proxy", "https_proxy", "HTTPS_PROXY")
_GREETING: Final = b"\x05\x01\x00"


def split(address: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9750" or "[::1]:9750"."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def greeting(address: str) -> Check:
    """Whether the proxy takes connections and speaks SOCKS5."""
    try:
        with socket.create_connection(split(address), 5) as proxy:
            proxy.sendall(_GREETING)
            said = _exactly(proxy, 2)
    except OSError as error:
        text = f"{address} does not answer: {error.strerror or error}"
        return Check("proxy", "fail", text, "nyxctl status; the node's log says why it does not listen")
    if said != b"\x05\x00":
        return Check("proxy", "fail", f"{address} does not speak SOCKS5", "another program has the port: change proxy.listen")
    return Check("proxy", "ok", f"{address} speaks SOCKS5")


def names(address: str) -> Check:
    """A name that does not exist, through the proxy: the exit looks it up, and must not find it."""
    name = f"nyx-{secrets.token_hex(6)}.invalid".encode()
    try:
        with socket.create_connection(split(address), _TIMEOUT) as proxy:
            proxy.sendall(_GREETING)
            _exactly(proxy, 2)
            proxy.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + (80).to_bytes(2, "big"))
            reply = _exactly(proxy, 4)[1]
    except TimeoutError:
        return Check("names", "warn", f"no answer about a name within {_TIMEOUT:.0f} s", "nyxctl circuits; nyxctl streams")
    except OSError as error:
        return Check("names", "warn", f"no answer about a name: {error.strerror or error}", "nyxctl status")
    if reply == 0:
        text = "an exit found a name that does not exist: its name server answers everything"
        return Check("names", "warn", text, "close that circuit: nyxctl circuits --close WORKER ID")
    if reply == 8:
        return Check("names", "fail", "the proxy takes no names", "another program has the port: change proxy.listen")
    return Check("names", "ok", "names go through the proxy and are looked up at the exit")


def variables(address: str, environ: Mapping[str, str] = os.environ) -> Check:
    """Whether this shell's proxy variables let programs look names up here: socks5:// and socks4:// do."""
    proxy = split(address)
    leaking = []
    for name in _VARIABLES:
        url = urlsplit(environ.get(name, ""))
        try:
            same = url.hostname is not None and (url.hostname in (proxy[0], "localhost")) and url.port == proxy[1]
        except ValueError:
            same = False
        if same and url.scheme in ("socks5", "socks4", "socks"):
            leaking.append(name)
    if leaking:
        text = f"{', '.join(leaking)}: with this scheme programs ask your own name server where you go"
        return Check("dns leaks", "fail", text, f"export {leaking[0]}=socks5h://{address}")
    return Check("dns leaks", "ok", "no proxy variable here leaks; elsewhere too: socks5h://, never socks5://")


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise ConnectionError("it closed the connection")
        found += part
    return found
