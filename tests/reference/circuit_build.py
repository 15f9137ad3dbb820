"""Slow twin of nyx.onion.build, written from docs/protocol.md section 8: the client's side and a hop's.

A node is a dict with node_id, b (X25519 private), seed (ML-KEM), B, ek. Shares no module with nyx.
"""

import os
import struct

from tests.reference import agreement as a
from tests.reference.layer import KEY_SIZES, layer, tweak, unlayer


def node(node_id, b, seed):
    return {"node_id": node_id, "b": b, "seed": seed, "B": a.dh_public(b), "ek": a.kem_public(seed)}


def body(suite, created, following=None, **broken):
    """The 72 bytes of a request; `broken` replaces fields by name."""
    fields = {
        "version": 1, "flags": 0 if following else 1, "suite": suite, "zero": 0, "created": created,
        "next": following or bytes(32), "delay": 0, "cells": 0, "bytes": 0, "zeros": bytes(20),
    } | broken  # fmt: skip
    return struct.pack(">BBBBI32sIII20s", *fields.values())


def hint(hop, X):
    return a.blake2b(a.sha256(b"nyx-hint" + hop["B"] + hop["ek"]), X, 8)


def _t0(hop, opening):
    return a.sha256(b"nyx-build-1" + hop["node_id"] + hop["B"] + a.sha256(hop["ek"]) + opening)


def _first_keys(t0, shared, k, suite):
    prk0 = a.extract(t0, shared + k)
    size = KEY_SIZES[suite]
    return {
        "prk0": prk0,
        "seal": a.expand(prk0, b"nyx build seal", 32),
        "build": a.expand(prk0, b"nyx build layer", size),
        "answer": a.expand(prk0, b"nyx answer layer", size),
    }


def _second_keys(t1, prk0, shared):
    prk1 = a.extract(t1, prk0 + shared)
    return {
        "seal": a.expand(prk1, b"nyx answer seal", 32),
        "forward": a.expand(prk1, b"nyx data fwd", 32),
        "back": a.expand(prk1, b"nyx data back", 32),
        "ck": a.expand(prk1, b"nyx circuit", 32),
    }


def request(hop, x, request_body, suite):
    """(record, memory) for one hop."""
    X = a.dh_public(x)
    k, ct = a.encapsulate(hop["ek"])
    opening = X + ct + hint(hop, X) + os.urandom(8)
    t0 = _t0(hop, opening)
    keys = _first_keys(t0, a.dh(x, hop["B"]), k, suite)
    sealed = a.seal(keys["seal"], opening, request_body)
    return opening + sealed, {"x": x, "t0": t0, "sealed": sealed, "suite": suite} | keys


def wrap(record, before, slot, suite):
    """The record as the client sends it: the build layers of the hops before its owner undone, the first hop's last."""
    for memory in reversed(before):
        record = unlayer(record, suite, memory["build"], tweak(0, 1, slot, 0))
    return record


def hop_opens(cells, me):
    """(slot, body, memory): the record for us among seven cells."""
    [slot] = [s for s, cell in enumerate(cells) if cell[1120:1128] == hint(me, cell[:32])]
    record = cells[slot]
    t0 = _t0(me, record[:1136])
    shared, k = a.dh(me["b"], record[:32]), a.decapsulate(me["seed"], record[32:1120])
    opened = a.unseal(a.expand(a.extract(t0, shared + k), b"nyx build seal", 32), record[:1136], record[1136:])
    suite = opened[2]
    return slot, opened, {"t0": t0, "X": record[:32], "sealed": record[1136:], "suite": suite} | _first_keys(t0, shared, k, suite)


def hop_answers(cells, slot, memory, y, answer_body):
    """(cells passed on, data keys): our answer written, then our build layer over all seven."""
    Y = a.dh_public(y)
    t1 = a.sha256(memory["t0"] + memory["sealed"] + Y)
    keys = _second_keys(t1, memory["prk0"], a.dh(y, memory["X"]))
    cells = list(cells)
    cells[slot] = Y + a.seal(keys["seal"], Y + memory["t0"], answer_body)
    return [layer(c, memory["suite"], memory["build"], tweak(0, 1, s, 0)) for s, c in enumerate(cells)], keys


def hop_returns(cells, memory):
    return [layer(c, memory["suite"], memory["answer"], tweak(1, 2, s, 0)) for s, c in enumerate(cells)]


def client_opens(answers, slots, memories):
    """[(body, data keys)] of every hop, from the seven answer cells; and the seven as they were before any layer."""
    cells = list(answers)
    for memory in memories:
        cells = [unlayer(c, memory["suite"], memory["answer"], tweak(1, 2, s, 0)) for s, c in enumerate(cells)]
    found, spare = [], list(cells)
    for memory in reversed(memories):
        spare = [unlayer(c, memory["suite"], memory["build"], tweak(0, 1, s, 0)) for s, c in enumerate(spare)]
    for i, (slot, memory) in enumerate(zip(slots, memories, strict=True)):
        cell = cells[slot]
        for later in reversed(memories[i:]):
            cell = unlayer(cell, later["suite"], later["build"], tweak(0, 1, slot, 0))
        t1 = a.sha256(memory["t0"] + memory["sealed"] + cell[:32])
        keys = _second_keys(t1, memory["prk0"], a.dh(memory["x"], cell[:32]))
        found.append((a.unseal(keys["seal"], cell[:32] + memory["t0"], cell[32:]), keys))
    return found, spare
