"""nyxctl run: an application that reaches nothing but Nyx, in a network namespace of its own.

    outside   nyxctl: takes each connection's descriptor from inside, joins it to the node's proxy
      |       a socket pair, descriptors by SCM_RIGHTS
    inside    a process that listens on 127.0.0.1 of the namespace and hands over what it accepts
      |       loopback, the only interface there
    inside    the application, told of the proxy by its environment; /etc/resolv.conf is empty

The namespaces (user, mount, network) need no root. Source: Linux unshare(2), user_namespaces(7), network_namespaces(7), unix(7).
"""

import ctypes
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NoReturn

import click

from control.cli.node import ask
from control.cli.state import EXIT_DENIED, EXIT_FAILURE, EXIT_UNREACHABLE, Failure, State, json_option

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_PR_SET_PDEATHSIG: Final = 1
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_RUNNING: Final = 0x41
_PORT: Final = 9750
_NOT_FOUND: Final = 127
_NOT_EXECUTABLE: Final = 126
_CHUNK: Final = 1 << 16
_RESOLVERS: Final = (b"/etc/resolv.conf", b"/run/nscd", b"/run/systemd/resolve", b"/run/avahi-daemon")  # what libc asks through
_NAMES: Final = ("all_proxy", "http_proxy", "https_proxy", "ftp_proxy")


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("application", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=_PORT, show_default=True, help="The proxy's port for the application."
)
@json_option
@click.pass_obj
def command(state: State, *, application: tuple[str, ...], port: int) -> None:
    """Run APPLICATION so that it reaches nothing but Nyx, names included.

    For instance: nyxctl run -- curl http://example.org/

    It has a network of its own, in which only the node's proxy is reached, at 127.0.0.1; there is no name server. ALL_PROXY and
    its like say socks5h://, so programs that heed them go through Nyx, and those that do not go nowhere. Files and other local
    sockets stay as they are: this confines the network, not the program. Ends with the application's exit code; 126 and 127 when
    it cannot be executed or is not there, 5 where user namespaces are not allowed.
    """
    address = ask(state, "status")["proxy"]
    if not address:
        raise Failure(EXIT_UNREACHABLE, "unreachable", "this node has no proxy: set proxy.listen")
    host, _, proxy_port = str(address).rpartition(":")
    state.exit_code = _run(application, port, (host.strip("[]"), int(proxy_port)))


def _run(application: Sequence[str], port: int, proxy: tuple[str, int]) -> int:
    """Start the application and carry its connections until it ends; its exit code. Raises Failure."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _inside(application, port, theirs)
    theirs.close()
    for number in (signal.SIGINT, signal.SIGQUIT):  # the terminal sends them to the application too, which decides
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: os.kill(pid, received))
    try:
        said = ours.recv(512)
        if said != b"ready":
            os.waitpid(pid, 0)
            code = EXIT_DENIED if said.startswith(b"denied") else EXIT_FAILURE
            name, _, text = said.decode("utf-8", "replace").partition(" ")
            raise Failure(code, name or "failure", text or "the namespace could not be made")
        threading.Thread(target=_carry, args=(ours, proxy), daemon=True).start()
        return _end_of(pid) % 256
    finally:
        ours.close()


def _end_of(pid: int) -> int:
    """The exit code of a child, once it has ended; a handler runs at once, also for a signal that came just before the wait."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    ended = os.pidfd_open(pid)
    while ended not in select.select([ended, woken], [], [])[0]:
        os.read(woken, 64)
    signal.set_wakeup_fd(-1)
    for fd in (ended, woken, wake):
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---------------------------------------------------------------- inside


def _inside(application: Sequence[str], port: int, outside: socket.socket) -> NoReturn:
    """The child: makes the namespaces, starts the listener, waits for the application and ends as it did."""
    code = EXIT_FAILURE
    try:
        _enter()
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        child = os.fork()
        if child == 0:
            _execute(application, port, listener, outside)
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, _frame: os.kill(child, received))
        outside.send(b"ready")
        threading.Thread(target=_hand_over, args=(listener, outside), daemon=True).start()
        status = _end_of(child)
        code = status if status >= 0 else 128 - status
    except PermissionError as error:
        text = "this system lets no user make namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, AppArmor)"
        outside.send(f"denied {text}: {error.strerror}".encode())
    except OSError as error:
        outside.send(f"failure the namespace could not be made: {error}".encode())
    finally:
        os._exit(code)


def _enter() -> None:
    """User, mount and network namespaces, the same user in them, loopback up, no name server. Raises OSError."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result:
            number = ctypes.get_errno()
            number = 1 if number in {28, 87} else number  # ENOSPC, EUSERS: as many namespaces as are allowed
            raise OSError(number, os.strerror(number))

    checked(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWNET))
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", "ascii")
    checked(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    for name in _RESOLVERS:
        if os.path.isfile(name):  # noqa: PTH113  # a bytes path, as mount takes it
            checked(libc.mount(b"/dev/null", os.path.realpath(name), None, _MS_BIND, None))
        elif os.path.isdir(name):  # noqa: PTH112
            checked(libc.mount(b"none", name, b"tmpfs", 0, None))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        import fcntl

        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def _execute(application: Sequence[str], port: int, listener: socket.socket, outside: socket.socket) -> NoReturn:
    """Become the application."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    listener.close()
    outside.close()
    proxy = f"socks5h://127.0.0.1:{port}"
    kept = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    proxies = {name: proxy for lower in _NAMES for name in (lower, lower.upper())}
    try:
        os.execvpe(application[0], list(application), kept | proxies)  # noqa: S606  # the user's own words
    except FileNotFoundError:
        click.echo(f"there is no program {application[0]!r}", err=True)
        os._exit(_NOT_FOUND)
    except OSError as error:
        click.echo(f"{application[0]}: {error.strerror}", err=True)
        os._exit(_NOT_EXECUTABLE)


def _hand_over(listener: socket.socket, outside: socket.socket) -> None:
    """Accept inside and give each connection away."""
    with suppress(OSError):
        while True:
            connection = listener.accept()[0]
            with connection:
                socket.send_fds(outside, [b"c"], [connection.fileno()])


# ---------------------------------------------------------------- outside


def _carry(inside: socket.socket, proxy: tuple[str, int]) -> None:
    """Join each connection that comes from inside to the proxy."""
    with suppress(OSError):
        while True:
            data, fds, _, _ = socket.recv_fds(inside, 1, 1)
            if not data:
                return
            for fd in fds:
                threading.Thread(target=_join, args=(socket.socket(fileno=fd), proxy), daemon=True).start()


def _join(near: socket.socket, proxy: tuple[str, int]) -> None:
    with ExitStack() as stack:
        stack.enter_context(near)
        try:
            far = stack.enter_context(socket.create_connection(proxy))
        except OSError:
            return  # the application sees its connection end
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Carry bytes and their end one way; a break ends both."""
    try:
        while data := source.recv(_CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
