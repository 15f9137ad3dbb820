"""What an initiation must show before it costs a public-key operation, asked of a whole batch.

Place on a packet's way: behind the sift (`shards/kernels/strangers.py`), for packets with a right mac1, which everybody with the
descriptor can make. A flood of them ends here, at a few microseconds each and without Python:

    replay tables                        REPLAYED_HANDSHAKE
    room for another link                NO_BUFFER
    under load: mac2                     NO_COOKIE, and a cookie, laid into the packet's own slot, for as many as a batch gives
    under load: quota of the source      OVER_QUOTA
    under load: second replay table      REPLAYED_HANDSHAKE
    under load: a place in the batch     OVERFLOW

A batch that brings more than its places, or a full replay table, is load by itself, from that packet on.
Source: docs/protocol.md, "Responder: order of checks", steps 3 and 4, and "Cookie answer".
"""

from typing import Any, Final

import numpy as np

from nyx.crypto.sodium import CHACHA_KEY, blake2b, chacha20_xor, chacha20poly1305_encrypt, memcmp, siphashx24
from nyx.kernel import Int, address, called, inline, kernel
from nyx.link.initiations import BEFORE, FULL, fingerprint, meet_word
from nyx.wire.codes import Drop
from nyx.wire.geometry import CID_SIZE, INIT_MAC1, INIT_MAC2, MAC_SIZE, PACKET_SIZE
from shards.address import ADDRESS_SIZE
from shards.kernels.strangers import INITIATION, SIFTED
from shards.quotas import charge

# Bytes of `keys`.
COOKIE_KEYS: Final = 0  # the secrets of this slot and of the last, 16 bytes each
QUOTA_KEY: Final = 32  # 16
SEAL_KEY: Final = 48  # 32, of cookie answers
FILL_KEY: Final = 80  # 32, drawn for each batch
_NAME: Final = 112  # 18 of scratch: port and address
KEYS_SIZE: Final = 130

# Words of `state`: what holds for a batch, and what came of it.
NOW: Final = 0  # ns
NEWEST: Final = 1  # generation of the replay tables
CROWDED: Final = 2  # whether there is no room for another link
LOADED: Final = 3  # whether strangers must prove their address
PLACES: Final = 4  # how many may pass
COOKIES: Final = 5  # how many may be sent a cookie
DONE: Final = 6  # slots in `done`
REPLIES: Final = 7  # slots in `replies`
STATE_WORDS: Final = 8

# Words of scratch; the first is of the parts that hash.
_COOKIE: Final = 1
_MAC: Final = 3
_NONCE: Final = 5
SCRATCH_WORDS: Final = 7

_NONCE_AT: Final = CID_SIZE  # of a cookie answer: nonce, sealed cookie, tag, filling
_SEALED_AT: Final = _NONCE_AT + 12
_TAG_AT: Final = _SEALED_AT + MAC_SIZE
_AF_INET: Final = 2
_OK: Final = int(Drop.OK)
_REPLAYED: Final = int(Drop.REPLAYED_HANDSHAKE)
_CROWDED: Final = int(Drop.NO_BUFFER)
_NO_COOKIE: Final = int(Drop.NO_COOKIE)
_OVERFLOW: Final = int(Drop.OVERFLOW)
_OVER_QUOTA: Final = int(Drop.OVER_QUOTA)


@inline
def _ip(sources: Any, at: Int) -> Any:
    """Where the address stands in the raw one at `at`, and how many bytes it has: a mapped one has 4."""
    if np.int64(sources[at]) == _AF_INET:
        return np.int64(at + 4), np.int64(4)
    for k in range(8, 18):
        if sources[at + k] != 0:
            return np.int64(at + 8), np.int64(16)
    if np.int64(sources[at + 18]) == 0xFF and np.int64(sources[at + 19]) == 0xFF:
        return np.int64(at + 20), np.int64(4)
    return np.int64(at + 8), np.int64(16)


@called
def _cookie(sources: Any, at: Int, keys: Any, key: Int, w: Any) -> Any:
    """The cookie of the raw address at `at` under the secret at byte `key`, into the scratch; returns where."""
    ip, size = _ip(sources, at)
    keys[_NAME], keys[_NAME + 1] = sources[at + 2], sources[at + 3]
    for k in range(size):
        keys[_NAME + 2 + k] = sources[ip + k]
    siphashx24(address(w) + 8 * _COOKIE, address(keys) + _NAME, 2 + size, address(keys) + key)
    return address(w) + 8 * _COOKIE


@called
def _is_proven(packet: Int, sources: Any, at: Int, keys: Any, w: Any) -> Any:
    """Whether mac2 was made with a cookie that was sent to this address in this slot or the last."""
    for k in range(2):
        cookie = _cookie(sources, at, keys, COOKIE_KEYS + k * MAC_SIZE, w)
        siphashx24(address(w) + 8 * _MAC, packet + INIT_MAC1, MAC_SIZE, cookie)
        if memcmp(address(w) + 8 * _MAC, packet + INIT_MAC2, MAC_SIZE) == 0:
            return True
    return False


@called
def _lay_cookie(packet: Int, sources: Any, at: Int, keys: Any, number: Int, w: Any) -> None:
    """The cookie answer in the place of the initiation. What fills it is the initiation under a stream of a fresh key."""
    cookie, nonce = _cookie(sources, at, keys, COOKIE_KEYS, w), address(w) + 8 * _NONCE
    w[_NONCE], w[_NONCE + 1] = number, 0
    fill, seal = address(keys) + FILL_KEY, address(keys) + SEAL_KEY
    chacha20_xor(packet + _NONCE_AT, packet + _NONCE_AT, INIT_MAC1 - _NONCE_AT, nonce, fill)
    chacha20poly1305_encrypt(
        packet + _SEALED_AT, packet + _TAG_AT, 0, cookie, MAC_SIZE, packet + INIT_MAC1, MAC_SIZE, 0, packet + _NONCE_AT, seal
    )
    w[_NONCE + 1] = 1
    chacha20_xor(packet + INIT_MAC1, packet + INIT_MAC1, PACKET_SIZE - INIT_MAC1, nonce, fill)
    blake2b(packet, CID_SIZE, packet, CID_SIZE, seal, CHACHA_KEY)  # which reads before it writes


@called
def _examine(packet: Int, sources: Any, at: Int, seen: Any, proven: Any, quotas: Any, keys: Any, s: Any, w: Any) -> Any:
    """The checks in their order; OK, or why it is dropped."""
    word, newest = fingerprint(seen, packet, w), np.int64(s[NEWEST])
    first = meet_word(seen, word, newest, 1)
    if first == BEFORE or meet_word(proven, word, newest, 0) == BEFORE:
        return _REPLAYED
    if s[CROWDED] != 0:
        return _CROWDED
    if first == FULL or s[PLACES] <= 0:
        s[LOADED] = 1
    if s[LOADED] != 0:
        if not _is_proven(packet, sources, at, keys, w):
            return _NO_COOKIE
        ip, size = _ip(sources, at)
        if charge(quotas, address(sources) + ip, 3 if size == 4 else 8, address(keys) + QUOTA_KEY, np.int64(s[NOW]), w) == 0:
            return _OVER_QUOTA
        # A full table lets new ones pass: proven sources that fill it must not shut out all others (docs/protocol.md, 6.6).
        if meet_word(proven, word, newest, 1) == BEFORE:
            return _REPLAYED
        if s[PLACES] <= 0:
            return _OVERFLOW
    s[PLACES] -= 1
    return _OK


@kernel(
    "i8", "u1[]", "i8[]", "i8[]", "i8", "u1[]", "i8[]", "u4[]", "u4[]", "i8[]", "u1[]", "i8[]", "i8[]", "u1[]", "i8[]", "i8[]",
    "i8[]",
)  # fmt: skip
def challenge(
    pool: Any, slots: Any, rows: Any, n: Int, sources: Any, origins: Any, seen: Any, proven: Any, quotas: Any, keys: Any, s: Any,
    replies: Any, destinations: Any, done: Any, drops: Any, w: Any,
) -> Any:  # fmt: skip
    """Examine the packets whose rows[i] is INITIATION; of others it becomes SIFTED, their slots go to `done` or `replies`.

    The k-th of `replies` is to be sent to the raw address at destinations[k * 28]. Returns how many passed.
    """
    passed = 0
    for i in range(n):
        if np.int64(rows[i]) != INITIATION:
            continue
        packet = address(pool) + np.int64(slots[i]) * PACKET_SIZE
        at = np.int64(origins[i]) * ADDRESS_SIZE
        code = np.int64(_examine(packet, sources, at, seen, proven, quotas, keys, s, w))
        if code == _OK:
            passed += 1
            continue
        drops[code] = np.int64(drops[code]) + 1
        rows[i] = SIFTED
        if code == _NO_COOKIE and s[COOKIES] > 0:
            s[COOKIES] -= 1
            _lay_cookie(packet, sources, at, keys, i, w)
            k = np.int64(s[REPLIES])
            for b in range(ADDRESS_SIZE):
                destinations[k * ADDRESS_SIZE + b] = sources[at + b]
            replies[k] = slots[i]
            s[REPLIES] += 1
        else:
            done[s[DONE]] = slots[i]
            s[DONE] += 1
    return passed
