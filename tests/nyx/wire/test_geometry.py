"""The parts of each structure are contiguous, do not overlap and sum to its size."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.wire import geometry as g


class Part(NamedTuple):
    """A named run of bytes."""

    start: int
    size: int


# Sizes on the right come from docs/protocol.md; starts come from the module, so a wrong offset shows as a gap or an overlap.
STRUCTURES: Final[Mapping[str, tuple[int, list[Part]]]] = {
    "packet": (
        1280,
        [
            Part(g.PACKET_CID, g.CID_SIZE),
            Part(g.PACKET_TYPE, 1),
            Part(g.PACKET_PATH, 1),
            Part(g.PACKET_LENGTH, 2),
            Part(g.PACKET_NUMBER, g.NUMBER_SIZE),
            Part(g.PACKET_PAYLOAD, g.LINK_PAYLOAD_SIZE),
            Part(g.PACKET_TAG, g.LINK_TAG_SIZE),
        ],
    ),
    "packet that carries a cell": (
        1280,
        [
            Part(0, g.AD_SIZE),
            Part(g.PACKET_CIRCUIT, g.CIRCUIT_ID_SIZE),
            Part(g.PACKET_CELL, g.CELL_SIZE),
            Part(g.PACKET_TAG, g.LINK_TAG_SIZE),
        ],
    ),
    "cell, as the layer sees it": (1224, [Part(0, g.CELL_LEFT_SIZE), Part(g.CELL_LEFT_SIZE, g.CELL_RIGHT_SIZE)]),
    "cell, opened": (
        1224,
        [Part(g.CELL_SEQUENCE, g.SEQUENCE_SIZE), Part(g.CELL_ZEROS, g.ZEROS_SIZE), Part(g.CELL_FRAMES, g.FRAMES_SIZE)],
    ),
    "build record": (
        1224,
        [
            Part(g.RECORD_X, g.X25519_SIZE),
            Part(g.RECORD_CT, g.MLKEM_CT_SIZE),
            Part(g.RECORD_HINT, g.HINT_SIZE),
            Part(g.RECORD_WORK, g.WORK_SIZE),
            Part(g.RECORD_SEALED, g.RECORD_BODY_SIZE),
            Part(g.RECORD_TAG, g.SEAL_TAG_SIZE),
        ],
    ),
    "build answer": (
        1224,
        [Part(g.REPLY_Y, g.X25519_SIZE), Part(g.REPLY_SEALED, g.REPLY_BODY_SIZE), Part(g.REPLY_TAG, g.SEAL_TAG_SIZE)],
    ),
    "link init": (
        1280,
        [
            Part(0, g.INIT_E),
            Part(g.INIT_E, g.X25519_SIZE),
            Part(g.INIT_CT, g.MLKEM_CT_SIZE),
            Part(g.INIT_SEALED, g.INIT_BODY_SIZE + g.SEAL_TAG_SIZE),
            Part(g.INIT_MAC1, g.MAC_SIZE),
            Part(g.INIT_MAC2, g.MAC_SIZE),
        ],
    ),
    "link answer": (
        1280,
        [
            Part(0, g.ANSWER_E),
            Part(g.ANSWER_E, g.X25519_SIZE),
            Part(g.ANSWER_CT, g.MLKEM_CT_SIZE),
            Part(g.ANSWER_SEALED, g.ANSWER_BODY_SIZE + g.SEAL_TAG_SIZE),
        ],
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_parts_are_contiguous_and_fill_the_structure(name: str) -> None:
    size, parts = STRUCTURES[name]
    at = 0
    for part in parts:
        assert part.size > 0
        assert part.start == at
        at += part.size
    assert at == size


@given(name=st.sampled_from(sorted(STRUCTURES)), data=st.data())
def test_every_byte_belongs_to_exactly_one_part(name: str, data: st.DataObject) -> None:
    size, parts = STRUCTURES[name]
    at = data.draw(st.integers(0, size - 1))
    assert sum(part.start <= at < part.start + part.size for part in parts) == 1


def test_specified_sizes() -> None:
    assert g.PACKET_SIZE == 1280
    assert g.CELL_SIZE == 1224
    assert g.FRAMES_SIZE == 1208
    assert g.STREAM_DATA_MAX == 1198
    assert g.CID_SIZE * 8 == 96
    assert g.WINDOW_BITS == 2**20
    assert g.BUILD_SLOTS == g.HOPS_MAX == 7


def test_associated_data_is_all_that_precedes_the_payload() -> None:
    assert g.AD_SIZE == g.PACKET_PAYLOAD == g.HEADER_SIZE + g.NUMBER_SIZE


def test_mask_covers_the_header_behind_the_cid_and_samples_ciphertext_only() -> None:
    assert g.MASK_START == g.PACKET_CID + g.CID_SIZE
    assert g.MASK_START + g.MASK_SIZE == g.AD_SIZE
    assert g.SAMPLE >= g.PACKET_PAYLOAD
    assert g.SAMPLE + g.SAMPLE_SIZE <= g.PACKET_TAG


def test_records_and_answers_travel_as_cells() -> None:
    assert g.RECORD_TAG + g.SEAL_TAG_SIZE == g.REPLY_TAG + g.SEAL_TAG_SIZE == g.CELL_SIZE


def test_steering_takes_the_top_bits_of_a_32_bit_product() -> None:
    assert g.VIRTUAL_SHARDS == 1 << (32 - g.SHARD_SHIFT)


def test_overhead_with_three_parity_packets_for_ten_stays_under_forty_percent() -> None:
    assert 1.3 * g.PACKET_SIZE / g.STREAM_DATA_MAX < 1.40


def test_layer_keys() -> None:
    assert g.LAYER_KEY_AEGIS == 5 * 16
    assert g.LAYER_KEY_CHACHA == 16 + 5 * 32
    assert max(g.LAYER_KEY_AEGIS, g.LAYER_KEY_CHACHA) == g.LAYER_KEY_MAX
