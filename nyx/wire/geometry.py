"""Every size and offset of the packet, the cell and the records, in bytes; everything else derives from these.

Place on a packet's way: all of it. Source: docs/protocol.md, "Packet", "Opened cell", "Circuit build", "Link handshake".
Integers on the wire are big-endian. Offsets named PACKET_* count from the first byte of the UDP payload, CELL_* from the
first byte of the cell, RECORD_*, INIT_* and ANSWER_* from the first byte of the record or handshake message.
"""

from typing import Final

# ---------------------------------------------------------------- packet (what UDP carries)
PACKET_SIZE: Final = 1280
CID_SIZE: Final = 12
PACKET_CID: Final = 0
PACKET_TYPE: Final = 12  # type (2 bits), parity (1), kind (2), slot (3)
PACKET_PATH: Final = 13  # path_id
PACKET_LENGTH: Final = 14  # u16, length of the payload
HEADER_SIZE: Final = 16
PACKET_NUMBER: Final = 16  # u32, low half of the 64-bit packet number
NUMBER_SIZE: Final = 4
AD_SIZE: Final = HEADER_SIZE + NUMBER_SIZE  # 0-19, unmasked, are the link AEAD's associated data
PACKET_PAYLOAD: Final = AD_SIZE
LINK_PAYLOAD_SIZE: Final = 1228
LINK_TAG_SIZE: Final = 32
PACKET_TAG: Final = PACKET_PAYLOAD + LINK_PAYLOAD_SIZE
SHORT_TAG_SIZE: Final = 16  # suites with 16-byte tags seal this many zero bytes more
MASK_START: Final = PACKET_TYPE  # header bytes under the mask: 12-19
MASK_SIZE: Final = 8
SAMPLE: Final = 20  # SipHash sample: bytes 20-35
SAMPLE_SIZE: Final = 16

# ---------------------------------------------------------------- link payload
CIRCUIT_ID_SIZE: Final = 4
PACKET_CIRCUIT: Final = PACKET_PAYLOAD
PACKET_CELL: Final = PACKET_PAYLOAD + CIRCUIT_ID_SIZE
CELL_SIZE: Final = LINK_PAYLOAD_SIZE - CIRCUIT_ID_SIZE
LINK_CIRCUIT: Final = 0  # the circuit id that names the link itself

# ---------------------------------------------------------------- cell
CELL_LEFT_SIZE: Final = 16  # L of the three-pass layer
CELL_RIGHT_SIZE: Final = CELL_SIZE - CELL_LEFT_SIZE
CELL_SEQUENCE: Final = 0
SEQUENCE_SIZE: Final = 8
CELL_ZEROS: Final = SEQUENCE_SIZE
ZEROS_SIZE: Final = 8
CELL_FRAMES: Final = CELL_ZEROS + ZEROS_SIZE
FRAMES_SIZE: Final = CELL_SIZE - CELL_FRAMES
PACKET_FRAMES: Final = PACKET_CELL + CELL_FRAMES
STREAM_HEADER_SIZE: Final = 10  # type 1, flags 1, stream 2, offset 6; length (2) only when another frame follows
STREAM_DATA_MAX: Final = FRAMES_SIZE - STREAM_HEADER_SIZE

# ---------------------------------------------------------------- windows
WINDOW_BITS: Final = 1 << 20  # replay window of a link direction and of an opened cell's sequence

# ---------------------------------------------------------------- keys
TWEAK_SIZE: Final = 16
SEED_SIZE: Final = 32
LAYER_KEY_AEGIS: Final = 80
LAYER_KEY_CHACHA: Final = 176
LAYER_KEY_MAX: Final = LAYER_KEY_CHACHA
MASK_KEY_SIZE: Final = 16
CHACHA_KEY_SIZE: Final = 32
AEGIS_KEY_SIZE: Final = 16
AEGIS256_KEY_SIZE: Final = 32
X25519_SIZE: Final = 32
MLKEM_EK_SIZE: Final = 1184
MLKEM_CT_SIZE: Final = 1088
NODE_ID_SIZE: Final = 32
SEAL_TAG_SIZE: Final = 16

# ---------------------------------------------------------------- circuit build
BUILD_SLOTS: Final = 7
HOPS_MIN: Final = 1
HOPS_MAX: Final = 7
RECORD_X: Final = 0
RECORD_CT: Final = RECORD_X + X25519_SIZE
RECORD_HINT: Final = RECORD_CT + MLKEM_CT_SIZE
HINT_SIZE: Final = 8
RECORD_WORK: Final = RECORD_HINT + HINT_SIZE
WORK_SIZE: Final = 8
RECORD_SEALED: Final = RECORD_WORK + WORK_SIZE
RECORD_BODY_SIZE: Final = 72
RECORD_TAG: Final = RECORD_SEALED + RECORD_BODY_SIZE
REPLY_Y: Final = 0
REPLY_SEALED: Final = REPLY_Y + X25519_SIZE
REPLY_BODY_SIZE: Final = 1176
REPLY_TAG: Final = REPLY_SEALED + REPLY_BODY_SIZE

# ---------------------------------------------------------------- link handshake
SESSIONS_PER_LINK: Final = 4
INIT_E: Final = 16
INIT_CT: Final = INIT_E + X25519_SIZE
INIT_SEALED: Final = INIT_CT + MLKEM_CT_SIZE
INIT_BODY_SIZE: Final = 96
INIT_MAC1: Final = INIT_SEALED + INIT_BODY_SIZE + SEAL_TAG_SIZE
MAC_SIZE: Final = 16
INIT_MAC2: Final = INIT_MAC1 + MAC_SIZE
ANSWER_E: Final = 16
ANSWER_CT: Final = ANSWER_E + X25519_SIZE
ANSWER_SEALED: Final = ANSWER_CT + MLKEM_CT_SIZE
ANSWER_BODY_SIZE: Final = 128

# ---------------------------------------------------------------- steering
VIRTUAL_SHARDS: Final = 64
SHARD_SHIFT: Final = 26  # shard = (odd multiplier x first CID word mod 2^32) >> 26
