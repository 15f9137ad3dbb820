"""Where things are for this user: configuration, state, sockets, the test network, by the XDG rules."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nyx.config import run_home, state_home

SYSTEM_CONFIG: Final = Path("/etc/nyx/nyx.toml")
SYSTEM_RUN: Final = Path("/run/nyx")
RECORD: Final = "testnet.json"  # what a test network's folder says of it
CLIENT: Final = "alice"

Environ = Mapping[str, str]


def config_file(environ: Environ) -> Path:
    """The user's configuration file."""
    return Path(environ.get("XDG_CONFIG_HOME") or environ.get("HOME", "") + "/.config", "nyx", "nyx.toml")


def cache_dir(environ: Environ) -> Path:
    """Compiled kernels and the like; may be removed at any time."""
    return Path(environ.get("NYX_CACHE_DIR") or environ.get("XDG_CACHE_HOME") or environ.get("HOME", "") + "/.cache", "nyx")


def testnet_dir(environ: Environ) -> Path:
    """Folder of the user's test network."""
    return Path(state_home(environ), "testnet")


def default_sockets(environ: Environ) -> list[Path]:
    """Control sockets to try in this order: the user's node, the system's, the test network's client."""
    mine = Path(environ.get("NYX_NODE_RUN_DIR") or run_home(environ))
    return [folder / "control.sock" for folder in (mine, SYSTEM_RUN, testnet_dir(environ) / CLIENT / "run")]


def program() -> str:
    """How this very command was called, so that a line for the user to copy works: nyxctl, or the path to it."""
    called = sys.argv[0]
    return called if "/" in called and called.endswith("/nyxctl") else "nyxctl"


def load_record(folder: Path) -> dict[str, Any] | None:
    """What is recorded of the test network in this folder; None when there is none."""
    try:
        value = json.loads((folder / RECORD).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {"nodes": [], "damaged": True}
    return value if isinstance(value, dict) else {"nodes": [], "damaged": True}
