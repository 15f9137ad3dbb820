"""Becoming another user: a node that root starts needs root for a moment only.

Place: `nyxd`, before keys, directory and kernels are read, so that all of it happens as that user would do it. What outlasts the
change, until the sockets are bound (`shards.seal.seal_supervisor` ends it): ports below 1024 and higher limits.
State and run folder are made where they are missing, and handed over with the plain files in them where root has them: in a
folder that is root's and closed to others nobody can have planted a link.
Source: Linux credentials(7), capabilities(7) "Effect of user ID changes", prctl(2) PR_SET_KEEPCAPS.
"""

import ctypes
import os
import pwd
import stat
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Final

from nyx.errors import ConfigError
from nyx.files import private_folder
from shards.seal import bound_capabilities, keep_capabilities

_PR_SET_KEEPCAPS: Final = 8
_CAP_NET_BIND_SERVICE: Final = 10
_CAP_SYS_RESOURCE: Final = 24

_libc = ctypes.CDLL(None, use_errno=True)


def other_user(name: str) -> pwd.struct_passwd | None:
    """The account of this name; None when it is ours already. Raises ConfigError."""
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError([f"node.user: there is no user {name!r} on this machine"]) from None
    if account.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise ConfigError([f"node.user: only root can become {name!r}; start nyxd as root, as that user, or without this key"])
    return account


def adopt_environment(account: pwd.struct_passwd, environ: MutableMapping[str, str]) -> None:
    """Have the user's home where root's was: defaults of folders come from there."""
    for variable in [variable for variable in environ if variable.startswith("XDG_")]:
        del environ[variable]
    environ["HOME"], environ["USER"], environ["LOGNAME"] = account.pw_dir, account.pw_name, account.pw_name


def become(account: pwd.struct_passwd, folders: Iterable[Path]) -> None:
    """Make this process, and so all it starts, the user's, and the folders too. Raises ConfigError."""
    for folder in folders:
        _hand_over(folder, account)
    bound_capabilities()
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    _libc.prctl(_PR_SET_KEEPCAPS, 0, 0, 0, 0)
    if not keep_capabilities((_CAP_NET_BIND_SERVICE, _CAP_SYS_RESOURCE)):
        raise ConfigError(["node.user: the kernel refuses to give up capabilities"])


def _hand_over(folder: Path, account: pwd.struct_passwd) -> None:
    if folder.is_dir() and folder.lstat().st_uid == account.pw_uid:
        return
    private_folder(folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for entry in os.scandir(handle):
            state = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
                os.chown(entry.name, account.pw_uid, account.pw_gid, dir_fd=handle, follow_symlinks=False)
        os.fchown(handle, account.pw_uid, account.pw_gid)
    finally:
        os.close(handle)
