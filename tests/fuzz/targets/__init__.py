"""Every fuzz target by name. A target is `def target(data: bytes) -> bool`: it gives the bytes to one decoder or state machine.

It asserts what that promises: only the errors it documents get out, what is refused changes nothing, what is taken reads the
same after it is written again, and nothing grows without bound. It returns whether the bytes were taken, so that the smoke test
can see that a corpus still reaches both sides. Targets of one room share a module; only the module of the chosen one is loaded.
"""

import importlib
from collections.abc import Callable
from typing import Final

Target = Callable[[bytes], bool]

TARGETS: Final[dict[str, str]] = {
    "frames": "wire",
    "link_frames": "wire",
    "header": "wire",
    "responder": "handshake",
    "initiator": "handshake",
    "channel": "link",
    "upgrade": "link",
    "link_packets": "link",
    "build_hop": "onion",
    "build_client": "onion",
    "refresh_hop": "onion",
    "refresh_client": "onion",
    "opened_cell": "onion",
    "streams": "streams",
    "cbor": "directory",
    "descriptor": "directory",
    "snapshot": "directory",
    "pin": "directory",
    "exit_policy": "directory",
    "admin_request": "messages",
    "admin_answer": "messages",
    "orders": "messages",
    "sdk": "messages",
    "control_wire": "messages",
    "config": "files",
    "config_value": "files",
    "config_edit": "files",
    "key_file": "files",
    "committed": "files",
    "history": "files",
    "greeting": "edge",
    "socks": "edge",
    "http": "edge",
    "metrics": "edge",
    "scrub": "text",
    "logline": "text",
}


def load(name: str) -> Target:
    """The target of this name."""
    found: Target = getattr(importlib.import_module(f"tests.fuzz.targets.{TARGETS[name]}"), name)
    return found
