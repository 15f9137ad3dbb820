"""Codes are contiguous where they index counters, and the wire's values are the specification's."""

from nyx.wire.codes import DROP_LABELS, Drop, ErrorCode


def test_every_reason_has_its_label() -> None:
    assert [int(d) for d in Drop] == list(range(len(DROP_LABELS)))
    assert DROP_LABELS[Drop.BAD_TAG] == "bad_tag"
    assert int(Drop.OK) == 0
    assert len(set(DROP_LABELS)) == len(DROP_LABELS)


def test_error_codes_are_the_specifications() -> None:
    assert {e.name: int(e) for e in ErrorCode} == {
        "NO_ERROR": 0,
        "PROTOCOL_VIOLATION": 1,
        "FLOW_CONTROL_ERROR": 2,
        "VERSION_MISMATCH": 3,
        "VERSION_MISMATCH_EXTENDED": 4,
        "PATH_VALIDATION_FAILED": 5,
        "INTERNAL_ERROR": 6,
        "UNSUPPORTED_CAP": 7,
        "CRYPTO_FAIL": 0x10,
    }
