"""A stand-in of nyxd for the tests of the test network: real files, ports, control process and signals; no circuits.

It checks its files as nyxd does, holds its UDP port, answers as a worker, and as a client serves a SOCKS5 proxy that connects
directly. `STAND_IN_FAULT` makes one node misbehave: "alias:exit" ends at once, "alias:stubborn" ignores SIGTERM and has a child
that does too, "alias:never" is never ready.
"""

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

from control.server import bind
from nyx.config import load
from nyx.crypto.keyfile import load_keys
from nyx.path.directory import FileDirectory
from tests.control.workers import Worker, answers


class Proxy(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.read(self.rfile.read(2)[1])
        self.wfile.write(b"\x05\x00")
        form = self.rfile.read(4)[3]
        host = socket.inet_ntoa(self.rfile.read(4)) if form == 1 else self.rfile.read(self.rfile.read(1)[0]).decode()
        port = int.from_bytes(self.rfile.read(2), "big")
        with socket.create_connection((host, port), 10) as target:
            self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
            threading.Thread(target=self._up, args=(target,), daemon=True).start()
            while data := target.recv(65536):
                self.wfile.write(data)
        self.connection.shutdown(socket.SHUT_RDWR)

    def _up(self, target):
        while data := self.connection.recv(65536):
            target.sendall(data)


def main():
    config = load(Path(sys.argv[sys.argv.index("--config") + 1]))
    node = config.node
    fault = os.environ.get("STAND_IN_FAULT", "").removeprefix(node.alias + ":")
    if fault == "exit":
        sys.exit("this node has a fault: \x1b[31mno luck")
    if node.role != "client":
        load_keys(config.key_file)
    FileDirectory(config.directory.file, config.directory.signers, config.directory.threshold, config.pin_file).snapshot(
        int(time.time())
    )
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((node.address, node.port))
    if config.proxy.listen:
        socketserver.ThreadingTCPServer.allow_reuse_address = True
        server = socketserver.ThreadingTCPServer(config.proxy.listen, Proxy)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    worker = Worker(answers(stage="links" if fault == "never" else "ready"))
    listener = bind(config.control_socket)
    fds = [worker.far.fileno(), listener.fileno()]
    given = {"config": sys.argv[-1], "workers": fds[:1], "admin": fds[1]}
    environ = os.environ | {"NYX_CONTROL_FDS": json.dumps(given)}
    control = subprocess.Popen([sys.executable, "-m", "control.process"], env=environ, pass_fds=fds)
    if fault == "stubborn":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pthread_sigmask(0, [15]); signal.pause()"])
        signal.sigwait([signal.SIGINT])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.sigwait([signal.SIGTERM])
    control.terminate()
    control.wait()
    config.control_socket.unlink()


if __name__ == "__main__":
    main()
