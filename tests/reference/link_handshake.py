"""Slow twin of nyx.link.handshake, written from docs/protocol.md section 6: both roles, and every session's keys.

Keys are plain byte strings: a node is a dict with node_id, s (X25519 private), seed (ML-KEM), S, ek. Shares no module with nyx.
"""

import os

from tests.reference import agreement as a


def node(node_id, s, seed):
    return {"node_id": node_id, "s": s, "seed": seed, "S": a.dh_public(s), "ek": a.kem_public(seed)}


def _mask(responder, direction, packet, end):
    key = a.sha256(b"nyx-mask" + responder["S"] + responder["ek"] + bytes([direction]))
    return packet[:12] + a.chacha20(key, packet[:12], packet[12:end]) + packet[end:]


def _mac1(responder, slot, masked):
    return a.blake2b(a.sha256(b"nyx-mac1" + responder["S"] + responder["ek"] + slot.to_bytes(8, "big")), masked[:1248], 16)


def _h0(responder):
    return a.sha256(b"Nyx0.1link-1" + responder["node_id"] + responder["S"] + a.sha256(responder["ek"]))


def initiate(responder, me, body, e, now):
    """The initiation of this body (96 bytes), and what its maker remembers."""
    k_r, ct_r = a.encapsulate(responder["ek"])
    E = a.dh_public(e)
    ck1 = a.extract(_h0(responder), a.dh(e, responder["S"]) + k_r)
    h1 = a.sha256(_h0(responder) + E + ct_r)
    head = os.urandom(12) + bytes.fromhex("800004f0")
    sealed = a.seal(a.expand(ck1, b"nyx init seal" + h1, 32), head, body)
    masked = _mask(responder, 0, head + E + ct_r + sealed, 1248)
    packet = masked + _mac1(responder, now // 120, masked) + os.urandom(16)
    return packet, {"e": e, "ck1": ck1, "h1": h1, "sealed": sealed, "responder": responder, "me": me}


def open_initiation(packet, responder):
    """(body, memory) of an initiation, as its responder."""
    p = _mask(responder, 0, packet, 1248)
    E, ct_r, sealed = p[16:48], p[48:1136], p[1136:1248]
    assert p[12:16] == bytes.fromhex("800004f0")
    ck1 = a.extract(_h0(responder), a.dh(responder["s"], E) + a.decapsulate(responder["seed"], ct_r))
    h1 = a.sha256(_h0(responder) + E + ct_r)
    body = a.unseal(a.expand(ck1, b"nyx init seal" + h1, 32), p[:16], sealed)
    return body, {"E": E, "ck1": ck1, "h1": h1, "sealed": sealed}


def mac1_is_right(packet, responder, slot):
    return _mac1(responder, slot, packet) == packet[1248:1264]


def answer(memory, responder, relay, body, e, cid):
    """(answer, ck2, h2) of this body (128 bytes); `relay` is the initiator's node dict (public parts) or None."""
    agreed = a.dh(e, memory["E"])
    if relay is None:
        ct_i = os.urandom(1088)
    else:
        k_i, ct_i = a.encapsulate(relay["ek"])
        agreed += a.dh(e, relay["S"]) + k_i
    E = a.dh_public(e)
    h2 = a.sha256(memory["h1"] + memory["sealed"] + E + ct_i)
    ck2 = a.extract(memory["ck1"], agreed + h2)
    head = cid + bytes.fromhex("900004f0")
    sealed = a.seal(a.expand(ck2, b"nyx resp seal" + h2, 32), head, body)
    return _mask(responder, 1, head + E + ct_i + sealed, 1280), ck2, h2


def open_answer(packet, memory):
    """(body, ck2, h2), as the initiator that remembers `memory`."""
    p = _mask(memory["responder"], 1, packet, 1280)
    E, ct_i = p[16:48], p[48:1136]
    agreed = a.dh(memory["e"], E)
    if memory["me"] is not None:
        agreed += a.dh(memory["me"]["s"], E) + a.decapsulate(memory["me"]["seed"], ct_i)
    h2 = a.sha256(memory["h1"] + memory["sealed"] + E + ct_i)
    ck2 = a.extract(memory["ck1"], agreed + h2)
    return a.unseal(a.expand(ck2, b"nyx resp seal" + h2, 32), p[:16], p[1136:]), ck2, h2


def session_keys(ck, suite, session, direction):
    """(AEAD key, mask key)."""
    where = bytes([session, direction])
    return a.expand(ck, b"nyx session" + where, {1: 32, 2: 16}[suite]), a.expand(ck, b"nyx mask" + where, 16)


def next_ck(ck, secret, h2):
    return a.extract(ck, secret + h2)
