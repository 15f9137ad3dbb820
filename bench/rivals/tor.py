"""A private Tor network on 127.0.0.1 from the machine's own `tor`: authorities, relays that exit, and a client.

Circuits have Tor's three hops, and every setting that carries traffic is Tor's default, but for the scheduler when one is named.
Nothing of it reaches the outside: there are no directories but its own, the resolver is a port of 127.0.0.1, and a connection to
another address than 127.0.0.0/8 would be bound to 127.0.0.1, from where the kernel routes nowhere else. (The exits' policy is for
every target: clients count no relay as an exit whose policy is for a few addresses.)
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.rivals.system import Door, Group, free_ports, group, program

AUTHORITIES: Final = 3  # they relay too
RELAYS: Final = 2  # beside the authorities: five are enough for both legs of a Conflux set, which Tor uses unless told not to
HOPS: Final = 3
START_TIME: Final = 120  # seconds to the client's first circuits

_COMMON: Final = """\
TestingTorNetwork 1
DataDirectory {folder}
Nickname {name}
Address 127.0.0.1
OutboundBindAddress 127.0.0.1
UseDefaultFallbackDirs 0
ServerDNSResolvConfFile {resolver}
ServerDNSDetectHijacking 0
ServerDNSAllowBrokenConfig 1
DisableDebuggerAttachment 0
__OwningControllerProcess {owner}
Log notice stdout
{authorities}
{scheduler}
"""
_RELAY: Final = """\
ORPort 127.0.0.1:{port}
SocksPort 0
ExitRelay 1
ExitPolicyRejectPrivate 0
ExitPolicy accept *:*
IPv6Exit 0
"""
_AUTHORITY: Final = """\
DirPort 127.0.0.1:{directory}
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
ContactInfo none
V3AuthVotingInterval 10
V3AuthVoteDelay 2
V3AuthDistDelay 2
TestingV3AuthInitialVotingInterval 5
TestingV3AuthInitialVoteDelay 2
TestingV3AuthInitialDistDelay 2
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
"""
_CLIENT: Final = "SocksPort 127.0.0.1:{port}\nVanguardsLiteEnabled 0\n"


@dataclass(frozen=True)
class TorNetwork:
    """A running network."""

    proxy_port: int
    processes: Group

    def doors(self, count: int) -> list[Door]:
        """Credentials at the client's port: Tor isolates streams by them."""
        return [Door(self.proxy_port, f"circuit-{i}") for i in range(count)]

    def pids(self) -> list[int]:
        """Authorities, relays and the client: a process each."""
        return self.processes.pids()


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr + done.stdout)[-500:]}")
    return done.stdout


def _nothing(folder: Path) -> str:
    """An empty file of settings: the system's own apply to no process here."""
    path = folder / "empty.torrc"
    path.touch()
    return str(path)


def _authority(folder: Path, name: str, port: int, directory: int) -> str:
    """Make an authority's keys; returns the line by which everybody knows it."""
    keys = folder / name / "keys"
    keys.mkdir(parents=True, mode=0o700)
    files = [f"{keys}/authority_{part}" for part in ("identity_key", "signing_key", "certificate")]
    _run(
        program("tor-gencert", "tor"), "--create-identity-key", "--passphrase-fd", "0", "-m", "12",
        "-a", f"127.0.0.1:{directory}", "-i", files[0], "-s", files[1], "-c", files[2], text="private\n",
    )  # fmt: skip
    identity = next(line.split()[1] for line in Path(files[2]).read_text().splitlines() if line.startswith("fingerprint "))
    said = _run(
        program("tor", "tor"), "-f", _nothing(folder), "--defaults-torrc", _nothing(folder), "--quiet", "--list-fingerprint",
        "--DataDirectory", str(folder / name), "--ORPort", f"127.0.0.1:{port}", "--Nickname", name, "--Address", "127.0.0.1",
    )  # fmt: skip
    fingerprint = "".join(said.split()[1:])
    return f"DirAuthority {name} orport={port} no-v2 v3ident={identity} 127.0.0.1:{directory} {fingerprint}"


def _write(folder: Path, scheduler: str | None) -> tuple[list[str], int]:
    """Folders and settings of all nodes; returns their names and the client's port."""
    free = free_ports(AUTHORITIES + AUTHORITIES + RELAYS + 1)
    directories, ports = free[:AUTHORITIES], free[AUTHORITIES:]
    names = [f"authority{i}" for i in range(AUTHORITIES)] + [f"relay{i}" for i in range(RELAYS)] + ["client"]
    known = [_authority(folder, names[i], ports[i], directories[i]) for i in range(AUTHORITIES)]
    resolver = folder / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\n")
    for i, name in enumerate(names):
        (folder / name).mkdir(exist_ok=True, mode=0o700)
        common = _COMMON.format(
            folder=folder / name, name=name, resolver=resolver, owner=os.getpid(), authorities="\n".join(known),
            scheduler=f"Schedulers {scheduler}" if scheduler else "",
        )  # fmt: skip
        part = (_CLIENT if name == "client" else _RELAY).format(port=ports[i])
        extra = _AUTHORITY.format(directory=directories[i]) if i < AUTHORITIES else ""
        (folder / f"{name}.torrc").write_text(common + part + extra)
    return names, ports[-1]


def _wait(folder: Path, processes: Group) -> None:
    """Until the client says that it is ready. Raises RuntimeError with the end of its log."""
    log = folder / "client.log"
    deadline = time.monotonic() + START_TIME
    while "Bootstrapped 100%" not in log.read_text():
        ended = [p for p in processes.leaders if p.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"the Tor network did not start ({len(ended)} processes ended):\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


@contextlib.contextmanager
def running_tor(folder: Path, scheduler: str | None = None) -> Iterator[TorNetwork]:
    """Start a network with Tor's default scheduler or the named one, and stop it at the end. Raises MissingError."""
    tor = program("tor", "tor")
    folder.mkdir(mode=0o700)
    names, proxy_port = _write(folder, scheduler)
    with group() as processes:
        for name in names:
            settings = ("-f", str(folder / f"{name}.torrc"), "--defaults-torrc", _nothing(folder))
            processes.start(tor, *settings, log=folder / f"{name}.log")
        _wait(folder, processes)
        yield TorNetwork(proxy_port, processes)
