"""Opening and sealing packets of a session: header mask, packet number, link AEAD, replay window.

Place on a packet's way: "header unmask, replay check, link open" on the way in, the same backwards on the way out. Slot s
of the pool is bytes [s * 1280, (s + 1) * 1280). Source: docs/protocol.md, "Link packets".

    in:  unmask bytes 12-19 -> rebuild the number -> AEAD in place, AD = bytes 0-19 -> window -> counters
    out: reserve numbers (commit) -> connection id, number -> AEAD in place -> mask bytes 12-19

    AEGIS-128L   nonce = direction u32 | generation u32 | number u64    1228 bytes, tag 32
    AEGIS-256    the same, and 16 zeros                             1228 bytes, tag 32
    ChaCha20     nonce = direction u32 | number u64                     1228 bytes and 16 zeros, tag 16; the zeros are checked
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nyx.crypto.replay import WINDOW_WORDS, window_accept
from nyx.crypto.scratch import SCRATCH_MASK, SCRATCH_NONCE
from nyx.crypto.sodium import (
    AEGIS256_NONCE,
    AEGIS_NONCE,
    CHACHA_NONCE,
    aegis128l_decrypt,
    aegis128l_encrypt,
    aegis256_decrypt,
    aegis256_encrypt,
    chacha20poly1305_decrypt,
    chacha20poly1305_encrypt,
    is_zero,
    memzero,
    siphash24,
)
from nyx.crypto.suites import SUITE_AEGIS128L, SUITE_AEGIS256, SUITE_CHACHA
from nyx.kernel import Int, address, inline, kernel, load_word, store_release, store_word, swap_word
from nyx.link.session import SESSION, SESSION_LIVE, session_offset
from nyx.wire.codes import Drop
from nyx.wire.geometry import (
    AD_SIZE,
    CID_SIZE,
    LINK_PAYLOAD_SIZE,
    MASK_SIZE,
    MASK_START,
    PACKET_NUMBER,
    PACKET_PAYLOAD,
    PACKET_SIZE,
    PACKET_TAG,
    SAMPLE,
    SAMPLE_SIZE,
    SHORT_TAG_SIZE,
)
from nyx.wire.packet import NUMBER_LIMIT, read_u32, rebuild_number, write_u32

_OK: Final = int(Drop.OK)
_UNKNOWN_CID: Final = int(Drop.UNKNOWN_CID)
_BAD_TAG: Final = int(Drop.BAD_TAG)
_BAD_ZEROS: Final = int(Drop.BAD_ZEROS)

_ROW: Final = SESSION.itemsize
_SEND_NEXT: Final = session_offset("send_next")
_RECEIVED_NEXT: Final = session_offset("received_next")
_PEER_CID: Final = session_offset("peer_cid")
_RECEIVE_KEY: Final = session_offset("receive_key")
_SEND_KEY: Final = session_offset("send_key")
_RECEIVE_MASK: Final = session_offset("receive_mask")
_SEND_MASK: Final = session_offset("send_mask")

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
Longs = NDArray[np.int64]
Sessions = NDArray[Any]


@inline
def _mask(pool: Bytes, at: Int, key: Int, scratch: Bytes) -> None:
    """Mask or unmask header bytes 12-19 by the sample of the ciphertext."""
    siphash24(address(scratch) + SCRATCH_MASK, address(pool) + at + SAMPLE, SAMPLE_SIZE, key)
    header = address(pool) + at + MASK_START
    store_word(header, load_word(header) ^ load_word(address(scratch) + SCRATCH_MASK))


@inline
def _nonce(scratch: Bytes, suite: Int, direction: Int, generation: Int, number: Int) -> Int:
    """Write the AEAD nonce and return its address."""
    nonce = address(scratch) + SCRATCH_NONCE
    if suite == SUITE_CHACHA:
        store_word(nonce, swap_word(direction << 32))
        store_word(nonce + CHACHA_NONCE - 8, swap_word(number))
    else:
        store_word(nonce, swap_word(direction << 32 | generation))
        store_word(nonce + AEGIS_NONCE - 8, swap_word(number))
        store_word(nonce + AEGIS_NONCE, 0)
        store_word(nonce + AEGIS256_NONCE - 8, 0)
    return nonce


@inline
def _open_one(pool: Bytes, at: Int, row: Int, sessions: Sessions, windows: Words, now: Int, scratch: Bytes) -> Int:
    """Open the packet at byte `at` under a session's row. The session changes only when the answer is OK."""
    session = sessions[row]
    if np.int64(session["state"]) < SESSION_LIVE:
        return _UNKNOWN_CID
    base = address(sessions) + row * _ROW
    packet = address(pool) + at
    payload = packet + PACKET_PAYLOAD
    suite = np.int64(session["suite"])
    _mask(pool, at, base + _RECEIVE_MASK, scratch)
    number = rebuild_number(np.int64(session["received_next"]), read_u32(pool, at + PACKET_NUMBER))
    nonce = _nonce(scratch, suite, np.int64(session["initiator"]), np.int64(session["rekey_in"]), number)
    key = base + _RECEIVE_KEY
    if suite == SUITE_AEGIS128L:
        wrong = aegis128l_decrypt(payload, 0, payload, LINK_PAYLOAD_SIZE, packet + PACKET_TAG, packet, AD_SIZE, nonce, key)
    elif suite == SUITE_AEGIS256:
        wrong = aegis256_decrypt(payload, 0, payload, LINK_PAYLOAD_SIZE, packet + PACKET_TAG, packet, AD_SIZE, nonce, key)
    else:
        tag = packet + PACKET_TAG + SHORT_TAG_SIZE
        length = LINK_PAYLOAD_SIZE + SHORT_TAG_SIZE
        wrong = chacha20poly1305_decrypt(payload, 0, payload, length, tag, packet, AD_SIZE, nonce, key)
    if wrong != 0:
        return _BAD_TAG
    if suite == SUITE_CHACHA and is_zero(packet + PACKET_TAG, SHORT_TAG_SIZE) != 1:
        return _BAD_ZEROS
    code = window_accept(windows, row * WINDOW_WORDS, base + _RECEIVED_NEXT, number)
    if code == _OK:
        session["packets_in"] += 1
        session["last_in"] = now
    return code


@kernel("i8", "u1[]", "i8[]", "i8[]", "i8", SESSION, "u8[]", "i8[]", "i8", "u1[]")
def open_packets(
    pool: Bytes, slots: Longs, rows: Longs, n: Int, sessions: Sessions, windows: Words, codes: Longs, now: Int, scratch: Bytes
) -> Int:
    """Open the first n packets in place: codes[i] says what became of slots[i] under session rows[i]; returns how many are OK.

    A row below zero (no such session) is UNKNOWN_CID. After OK the header is unmasked and the payload clear; what a rejected
    packet's slot holds means nothing, and its session is bit for bit what it was.
    """
    good = 0
    for i in range(n):
        row = np.int64(rows[i])
        code = _UNKNOWN_CID
        if 0 <= row < sessions.size:
            sessions[row]["in_hand"] = 1
            code = _open_one(pool, np.int64(slots[i]) * PACKET_SIZE, row, sessions, windows, now, scratch)
            sessions[row]["in_hand"] = 0
        codes[i] = code
        if code == _OK:
            good += 1
    memzero(address(scratch) + SCRATCH_MASK, MASK_SIZE)
    return good


@inline
def _seal_one(pool: Bytes, at: Int, row: Int, sessions: Sessions, number: Int, scratch: Bytes) -> None:
    """Seal the packet at byte `at` under a number that is already reserved."""
    session = sessions[row]
    base = address(sessions) + row * _ROW
    packet = address(pool) + at
    payload = packet + PACKET_PAYLOAD
    suite = np.int64(session["suite"])
    store_word(packet, load_word(base + _PEER_CID))
    store_word(packet + CID_SIZE - 8, load_word(base + _PEER_CID + CID_SIZE - 8))
    write_u32(pool, at + PACKET_NUMBER, number)
    nonce = _nonce(scratch, suite, 1 - np.int64(session["initiator"]), np.int64(session["rekey_out"]), number)
    key = base + _SEND_KEY
    if suite == SUITE_AEGIS128L:
        aegis128l_encrypt(payload, packet + PACKET_TAG, 0, payload, LINK_PAYLOAD_SIZE, packet, AD_SIZE, 0, nonce, key)
    elif suite == SUITE_AEGIS256:
        aegis256_encrypt(payload, packet + PACKET_TAG, 0, payload, LINK_PAYLOAD_SIZE, packet, AD_SIZE, 0, nonce, key)
    else:
        pool[at + PACKET_TAG : at + PACKET_TAG + SHORT_TAG_SIZE] = 0
        tag = packet + PACKET_TAG + SHORT_TAG_SIZE
        length = LINK_PAYLOAD_SIZE + SHORT_TAG_SIZE
        chacha20poly1305_encrypt(payload, tag, 0, payload, length, packet, AD_SIZE, 0, nonce, key)
    _mask(pool, at, base + _SEND_MASK, scratch)


@inline
def _run_length(rows: Longs, i: Int, n: Int) -> Int:
    """How many packets from i on belong to the same session."""
    j = i + 1
    while j < n and rows[j] == rows[i]:
        j += 1
    return j - i


@kernel("i8", "u1[]", "i8[]", "i8[]", "i8", SESSION, "i8", "u1[]")
def seal_packets(pool: Bytes, slots: Longs, rows: Longs, n: Int, sessions: Sessions, now: Int, scratch: Bytes) -> Int:
    """Seal the first n packets in place: the caller has set bytes 12-15 and the payload; the rest is written here.

    Numbers of a run of equal rows are reserved by one commit before its first seal: a kill burns numbers, it never repeats
    one. A packet whose session cannot send (gone, or out of numbers) is wiped, never left in the clear; returns how many were.
    """
    wiped = 0
    i = 0
    while i < n:
        row = np.int64(rows[i])
        run = _run_length(rows, i, n)
        usable = 0 <= row < sessions.size
        if usable:
            usable = np.int64(sessions[row]["state"]) >= SESSION_LIVE
        first: Int = np.int64(0)
        if usable:
            first = np.int64(sessions[row]["send_next"])
            usable = first + run <= NUMBER_LIMIT
        if usable:
            sessions[row]["in_hand"] = 1
            store_release(address(sessions) + row * _ROW + _SEND_NEXT, first + run)
            for j in range(run):
                _seal_one(pool, np.int64(slots[i + j]) * PACKET_SIZE, row, sessions, first + j, scratch)
            sessions[row]["packets_out"] += run
            sessions[row]["last_out"] = now
            sessions[row]["in_hand"] = 0
        else:
            for j in range(run):
                memzero(address(pool) + np.int64(slots[i + j]) * PACKET_SIZE, PACKET_SIZE)
            wiped += run
        i += run
    memzero(address(scratch) + SCRATCH_MASK, MASK_SIZE)
    return wiped
