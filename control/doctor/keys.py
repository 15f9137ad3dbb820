"""Checks of a relay's or an exit's own keys: whether the file can be used, and whether the directory has the node with them.

Place: `nyxctl doctor`. Only the user whose keys they are (the node's own) sees this; nobody else could read the file.
"""

import os
import time
from typing import TYPE_CHECKING, Final

from control.schemas import Check
from nyx.config import Config
from nyx.errors import ConfigError, NyxError

if TYPE_CHECKING:
    from nyx.crypto.keys import PublicKeys

_OLD: Final = 0.9  # share of a descriptor's life after which the next one should be in the directory


def own_keys(config: Config) -> Check | None:
    """What becomes of the node's keys; None for a client, which has none, and for another user's."""
    from nyx.crypto.keyfile import load_keys

    if config.node.role == "client" or not _ours(config):
        return None
    try:
        public = load_keys(config.key_file).public
    except ConfigError as error:
        return Check("keys", "fail", "; ".join(error.problems), "docs/operations.md, Backup of keys, says how to restore them")
    return _listed(config, public)


def _ours(config: Config) -> bool:
    try:
        return config.key_file.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return True  # the check says that there are none
    except OSError:
        return False


def _listed(config: Config, public: "PublicKeys") -> Check | None:
    """What the snapshot says of the node; None when there is none to ask, which the check of the directory tells."""
    from nyx.path.directory import FileDirectory

    where, now = config.directory, int(time.time())
    try:
        source = FileDirectory(where.file, where.signers, where.threshold, config.pin_file)
        node = source.verified(source.read(), now).by_id(public.node_id)
    except (NyxError, OSError):
        return None
    name = public.node_id.hex()
    if node is None:
        fix = "give the node's descriptor to who signs the directory, or restore the keys that it has"
        return Check("keys", "warn", f"node {name} is not in the directory: nobody builds circuits through it", fix)
    if node.public != public:
        fix = "restore the keys that the directory has, or give its signers the descriptor with these"
        return Check("keys", "fail", f"the directory has other link or onion keys of node {name}: nobody can reach it", fix)
    return _life(node.descriptor.valid_from, node.descriptor.valid_until, now, name)


def _life(start: int, end: int, now: int, name: str) -> Check:
    text = f"node {name}, its descriptor is valid for {(end - now) / 3600:.1f} h"
    if now - start > _OLD * (end - start):
        return Check("keys", "warn", text, "give the directory's signers a newer descriptor before this one ends")
    return Check("keys", "ok", text)
