"""Slow twin of nyx.onion.refresh, written from docs/protocol.md section 8.9: the client's side and a hop's.

Shares no module with nyx.
"""

import os
import struct

from tests.reference import agreement as a
from tests.reference.layer import KEY_SIZES, layer, tweak, unlayer

SEAL = {0: b"nyx refresh seal fwd", 1: b"nyx refresh seal back"}
LAYER = {0: b"nyx refresh layer fwd", 1: b"nyx refresh layer back"}


def seal_key(ck, direction, counter):
    return a.expand(ck, SEAL[direction] + struct.pack(">I", counter), 32)


def layer_key(ck, direction, counter, suite):
    return a.expand(ck, LAYER[direction] + struct.pack(">I", counter), KEY_SIZES[suite])


def fresh(ck, ek, ct, shared):
    """(forward seed, backward seed, next circuit key)."""
    prk = a.extract(a.sha256(ck + ek + ct), ck + shared)
    return tuple(a.expand(prk, label, 32) for label in (b"nyx data fwd", b"nyx data back", b"nyx circuit"))


def request(ck, seed, slot, counter, epoch):
    """A hop's request in plain form."""
    body = a.kem_public(seed) + struct.pack(">I", epoch) + bytes(20)
    return a.seal(seal_key(ck, 0, counter), bytes([slot]), body)


def client_sends(cks, seeds, slots, counter, epoch, suite):
    """Seven cells, as they leave the client; spare slots are random."""
    cells = [os.urandom(1224) for _ in range(7)]
    for i, slot in enumerate(slots):
        cell = request(cks[i], seeds[i], slot, counter, epoch)
        for ck in reversed(cks[:i]):
            cell = unlayer(cell, suite, layer_key(ck, 0, counter, suite), tweak(0, 3, slot, 0))
        cells[slot] = cell
    return cells


def client_opens(cells, cks, seeds, slots, counter, suite):
    """Per hop (fresh keys, cells forward, cells backward), and all slots as they left the last hop's forward layer."""
    back = []
    for slot, arrived in enumerate(cells):
        cell = arrived
        for ck in cks:
            cell = unlayer(cell, suite, layer_key(ck, 1, counter, suite), tweak(1, 3, slot, 0))
        back.append(cell)
    found = []
    for i, slot in enumerate(slots):
        cell = back[slot]
        for ck in reversed(cks[i:]):
            cell = unlayer(cell, suite, layer_key(ck, 0, counter, suite), tweak(0, 3, slot, 0))
        body = a.unseal(seal_key(cks[i], 1, counter), bytes([slot]), cell)
        ct, forward, backward, zeros = body[:1088], *struct.unpack(">QQ", body[1088:1104]), body[1104:]
        assert zeros == bytes(104)
        keys = fresh(cks[i], a.kem_public(seeds[i]), ct, a.decapsulate(seeds[i], ct))
        found.append((keys, forward, backward))
    return found, back


def hop_answers(cells, ck, counter, suite, forward, backward):
    """(fresh keys, epoch, the seven cells to pass on)."""
    for slot, cell in enumerate(cells):
        try:
            body = a.unseal(seal_key(ck, 0, counter), bytes([slot]), cell)
        except Exception:  # noqa: BLE001
            continue
        break
    else:
        raise AssertionError("no slot opens")
    ek, epoch = body[:1184], struct.unpack(">I", body[1184:1188])[0]
    assert body[1188:] == bytes(20)
    shared, ct = a.encapsulate(ek)
    out = list(cells)
    out[slot] = a.seal(seal_key(ck, 1, counter), bytes([slot]), ct + struct.pack(">QQ", forward, backward) + bytes(104))
    key = layer_key(ck, 0, counter, suite)
    return fresh(ck, ek, ct, shared), epoch, [layer(cell, suite, key, tweak(0, 3, s, 0)) for s, cell in enumerate(out)]


def hop_returns(cells, ck, counter, suite):
    key = layer_key(ck, 1, counter, suite)
    return [layer(cell, suite, key, tweak(1, 3, slot, 0)) for slot, cell in enumerate(cells)]
