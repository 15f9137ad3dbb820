"""Names of sockets in the run folder whose supervisor is dead: the control process, which ends with it, takes them away.

Only while nobody else holds the folder: a node that was started meanwhile has locked it, and its sockets have the same names.
"""

import contextlib
import fcntl
import os
from pathlib import Path


def remove_sockets(run_dir: Path) -> None:
    """Remove every socket's name in the folder of a node that is no more; whatever hinders that is left as it is."""
    with contextlib.suppress(OSError):
        folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in run_dir.iterdir():
                if path.is_socket():
                    path.unlink()
        finally:
            os.close(folder)
