"""Chains of `ssh -J` through three sshd on 127.0.0.1: what people who have three hosts and no overlay do.

Each circuit is a chain of its own with a SOCKS port (`-D`) at its near end: the client logs in to the third host through the
second through the first, and the third connects to the target. The cipher is OpenSSH's fastest where AES instructions are.
"""

import contextlib
import getpass
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.rivals.system import Door, Group, free_ports, group, program, wait_for_port

HOPS: Final = 3
START_TIME: Final = 60  # seconds for a chain
CIPHER: Final = "aes128-gcm@openssh.com"

_SERVER: Final = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
PidFile none
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding local
PermitOpen 127.0.0.1:*
MaxStartups 1000
UseDNS no
"""
_CLIENT: Final = """\
Host *
  HostName 127.0.0.1
  User {user}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking no
  CheckHostIP no
  LogLevel ERROR
  BatchMode yes
  ExitOnForwardFailure yes
  Ciphers {cipher}
"""


@dataclass
class Chains:
    """Three hosts, and the chains through them that were asked for."""

    ssh: str
    folder: Path
    processes: Group
    ports: list[int] = field(default_factory=list)

    def doors(self, count: int) -> list[Door]:
        """Ports of so many chains; those that are missing are built."""
        while len(self.ports) < count:
            port = free_ports(1)[0]
            chain = self.processes.start(
                self.ssh, "-F", str(self.folder / "client"), "-N", "-D", f"127.0.0.1:{port}", "-J", "hop0,hop1", "hop2",
                log=self.folder / "client.log",
            )  # fmt: skip
            wait_for_port(port, chain, START_TIME)
            self.ports.append(port)
        return [Door(port, None) for port in self.ports[:count]]

    def pids(self) -> list[int]:
        """Clients, servers, and the processes that either has started."""
        return self.processes.pids()


def _keys(folder: Path) -> None:
    keygen = program("ssh-keygen", "openssh-client")
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, timeout=60)


@contextlib.contextmanager
def running_ssh(folder: Path) -> Iterator[Chains]:
    """Start three sshd, and stop them and every chain at the end. Raises MissingError, RuntimeError."""
    sshd, ssh = program("sshd", "openssh-server"), program("ssh", "openssh-client")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd confines its unprivileged part when it runs as root
    folder.mkdir(mode=0o700)
    _keys(folder)
    client = _CLIENT.format(folder=folder, user=getpass.getuser(), cipher=CIPHER)
    with group() as processes:
        for i, port in enumerate(free_ports(HOPS)):
            settings = folder / f"server{i}"
            settings.write_text(_SERVER.format(folder=folder, port=port))
            server = processes.start(sshd, "-D", "-e", "-f", str(settings), log=folder / f"server{i}.log")
            wait_for_port(port, server, START_TIME)
            client = f"Host hop{i}\n  Port {port}\n{client}"
        (folder / "client").write_text(client)
        yield Chains(ssh, folder, processes)
