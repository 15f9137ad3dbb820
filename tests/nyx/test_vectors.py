"""The project's own frozen vectors: a change that breaks the wire shows here, in the product or in the twin."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nyx.columns import allocate
from nyx.crypto.scratch import new_scratch
from nyx.link.seal import seal_packets
from nyx.link.session import SESSION_LIVE, session_columns
from nyx.onion.layer import apply_layer, remove_layer
from nyx.wire.geometry import PACKET_LENGTH, PACKET_PAYLOAD, PACKET_SIZE, PACKET_TYPE
from tests.reference import layer as twin_layer
from tests.reference import link as twin_link

VECTORS: dict[str, Any] = json.loads(Path(__file__).parents[1].joinpath("vectors", "nyx.json").read_text())


def pattern(text: str) -> bytes:
    """`pattern(n, s)` of the file: n bytes, the i-th (s + 7 i) mod 256."""
    size, start = (int(part) for part in text.removeprefix("pattern(").removesuffix(")").split(","))
    return bytes((start + 7 * i) & 255 for i in range(size))


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("case", VECTORS["layers"])
def test_layers(case: dict[str, Any]) -> None:
    cell, key, suite = pattern(case["cell"]), pattern(case["key"]), case["suite"]
    tweak = twin_layer.tweak(*case["tweak"])
    for name, product, twin in (("layer", apply_layer, twin_layer.layer), ("inverse", remove_layer, twin_layer.unlayer)):
        work = bytearray(cell)
        product(work, key, suite, *case["tweak"])
        assert work[:32].hex() == case[f"{name}_head"]
        assert digest(work) == digest(twin(cell, suite, key, tweak)) == case[f"{name}_sha256"]


@pytest.mark.parametrize("case", VECTORS["packets"])
def test_packets(case: dict[str, Any]) -> None:
    keys = twin_link.Keys(case["suite"], pattern(case["key"]), pattern(case["mask_key"]), case["direction"], case["generation"])
    cid, header, payload = pattern(case["cid"]), bytes.fromhex(case["header"]), pattern(case["payload"])
    assert digest(twin_link.seal(keys, cid, header, payload, case["number"])) == case["packet_sha256"]
    session = allocate(session_columns(1))["sessions"]
    row = session[0]
    row["suite"], row["initiator"], row["rekey_out"] = case["suite"], 1 - case["direction"], case["generation"]
    row["send_next"], row["state"] = case["number"], SESSION_LIVE
    for field, value in (("send_key", keys.key), ("send_mask", keys.mask), ("peer_cid", cid)):
        row[field][: len(value)] = np.frombuffer(value, np.uint8)
    pool = np.zeros(PACKET_SIZE, np.uint8)
    pool[PACKET_TYPE : PACKET_LENGTH + 2] = np.frombuffer(header, np.uint8)
    pool[PACKET_PAYLOAD : PACKET_PAYLOAD + len(payload)] = np.frombuffer(payload, np.uint8)
    assert seal_packets(pool, np.zeros(1, np.int64), np.zeros(1, np.int64), 1, session, 1, new_scratch()) == 0
    assert pool[:36].tobytes().hex() == case["packet_head"]
    assert digest(pool.tobytes()) == case["packet_sha256"]
