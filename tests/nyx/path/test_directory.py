"""Snapshots: believed only when signed, in time and not older than the newest seen; every refusal names its reason."""

from collections.abc import Callable
from functools import partial
from typing import Any

import cbor2
import pytest

from nyx.crypto.keys import StaticKeys
from nyx.path import cbor, directory
from nyx.path.directory import DirectoryError, FileDirectory, Pin, Reason, build_snapshot, verify
from tests.nyx.path.networks import AUTHORITY, END, NOW, SIGNER, START, Member, descriptor, entropy, records, signed, spread

SECOND = b"\x08" * 32
SECOND_SIGNER = cbor.identity_of(SECOND)
DATA = signed(spread(4))


def refusal(data, signers=(SIGNER,), threshold=1, wall=NOW, pin=None):
    with pytest.raises(DirectoryError) as caught:
        verify(data, signers, threshold, wall, pin)
    assert str(caught.value).startswith(f"directory {caught.value.reason.value}: ")
    return caught.value.reason


def changed(change, seed=AUTHORITY):
    """The snapshot with its map changed and signed again."""
    body = cbor2.loads(cbor2.loads(DATA)[0])
    change(body)
    raw = cbor.encode(body)
    return cbor.encode([raw, [[cbor.identity_of(seed), cbor.sign(seed, directory.PURPOSE, raw)]]])


def test_a_snapshot_finds_its_nodes_by_id_and_link_key():
    found = verify(DATA, [SIGNER], 1, NOW)
    assert len(found.nodes) == 4
    assert [n.id for n in found.nodes] == sorted(n.id for n in found.nodes)
    for node in found.nodes:
        assert found.by_id(node.id) is node
        assert found.by_link_key(node.public.link_x25519) is node
    assert found.by_id(bytes(32)) is None
    assert found.by_link_key(bytes(32)) is None
    assert (found.network, found.sequence, found.valid_from, found.valid_until) == ("test", 5, START, END)


def test_threshold_of_signers():
    both = signed(spread(2), (AUTHORITY, SECOND))
    verify(both, [SIGNER, SECOND_SIGNER], 2, NOW)
    verify(both, [SECOND_SIGNER], 1, NOW)
    assert refusal(DATA, [SIGNER, SECOND_SIGNER], 2) is Reason.UNSIGNED
    assert refusal(DATA, [SECOND_SIGNER]) is Reason.UNSIGNED
    assert refusal(DATA, [], 0) is Reason.UNSIGNED
    body, (one, _) = cbor2.loads(both)
    assert refusal(cbor.encode([body, [one, one]]), [SIGNER, SECOND_SIGNER], 2) is Reason.UNSIGNED


def test_one_broken_signature_does_not_spoil_enough_good_ones():
    body, pairs = cbor2.loads(signed(spread(2), (AUTHORITY, SECOND)))
    broken = cbor.encode([body, [[s, bytes(64) if s == SECOND_SIGNER else g] for s, g in pairs]])
    verify(broken, [SIGNER, SECOND_SIGNER], 1, NOW)
    assert refusal(broken, [SIGNER, SECOND_SIGNER], 2) is Reason.ALTERED


@pytest.mark.parametrize("at", range(0, len(DATA), 173))
def test_one_flipped_bit_anywhere_is_refused(at):
    data = bytearray(DATA)
    data[at] ^= 1 << (at % 8)
    assert refusal(bytes(data)) in {Reason.ALTERED, Reason.MALFORMED, Reason.UNSIGNED}


def test_altered_content_under_an_old_signature():
    body, signatures = cbor2.loads(DATA)
    assert refusal(cbor.encode([body.replace(b"test", b"tess"), signatures])) is Reason.ALTERED


def test_time():
    verify(DATA, [SIGNER], 1, START - directory.CLOCK_SKEW)
    assert refusal(DATA, wall=START - directory.CLOCK_SKEW - 1) is Reason.NOT_YET_VALID
    verify(DATA, [SIGNER], 1, END - 1)
    assert refusal(DATA, wall=END) is Reason.EXPIRED


def test_the_pin_refuses_older_and_other_snapshots():
    old, now = signed(spread(3)), verify(DATA, [SIGNER], 1, NOW)
    assert verify(DATA, [SIGNER], 1, NOW, now.pin) == now
    assert refusal(old, pin=now.pin) is Reason.FORKED
    assert refusal(signed(spread(4), sequence=4), pin=now.pin) is Reason.ROLLED_BACK
    assert refusal(signed(spread(4), sequence=6), pin=now.pin) is Reason.FORKED
    verify(signed(spread(4), sequence=6, previous=now.digest), [SIGNER], 1, NOW, now.pin)
    verify(signed(spread(4), sequence=7), [SIGNER], 1, NOW, now.pin)


def test_malformed_bodies_are_refused_though_well_signed():
    def swap(body):
        body["nodes"].reverse()

    def double(body):
        body["nodes"][1] = body["nodes"][0]

    def alter(body):
        record = bytearray(body["nodes"][0][0])
        record[100] ^= 1
        body["nodes"][0][0] = bytes(record)

    def weigh(body):
        body["nodes"][0][1] = -1

    def drop(key, body):
        del body[key]

    changes: list[Callable[[Any], None]] = [
        swap,
        double,
        alter,
        weigh,
        lambda b: b.update(version=9),
        lambda b: b.update(valid_until=END + 1),
    ]
    changes += [partial(drop, key) for key in cbor2.loads(cbor2.loads(DATA)[0])]
    changes += [lambda b: b.update(nodes=[[b"", 1]]), lambda b: b.update(nodes=[1]), lambda b: b.update(previous=b"")]
    for change in changes:
        assert refusal(changed(change)) is Reason.MALFORMED


def test_two_nodes_with_one_link_key():
    one, two = StaticKeys.generate(entropy(1)), StaticKeys.generate(entropy(2))
    thief = StaticKeys(two.identity_seed, one.link, two.onion)
    pairs = [(descriptor(k, Member("10.0.0.1")).sign(k), 1) for k in (one, thief)]
    data = build_snapshot(pairs, [AUTHORITY], network="t", sequence=1, valid_from=START, valid_until=END)
    assert refusal(data) is Reason.MALFORMED


def test_a_bad_descriptor_is_not_built_into_a_snapshot():
    record = next(records(spread(1)))[0]
    with pytest.raises(cbor.FormError):
        build_snapshot([(record[:-1], 1)], [AUTHORITY], network="t", sequence=1, valid_from=START, valid_until=END)


def test_a_file_is_read_and_its_sequence_pinned(tmp_path):
    file, pin = tmp_path / "network", tmp_path / "pin"
    source = FileDirectory(file, [SIGNER], 1, pin)
    assert source.source() == str(file)
    with pytest.raises(DirectoryError, match="directory missing"):
        source.snapshot(NOW)
    file.write_bytes(DATA)
    found = source.snapshot(NOW)
    assert Pin.from_bytes(pin.read_bytes()) == found.pin
    file.write_bytes(signed(spread(4), sequence=4))
    with pytest.raises(DirectoryError, match="rolled back"):
        source.snapshot(NOW)
    file.write_bytes(signed(spread(5), sequence=9))
    assert source.snapshot(NOW).sequence == 9
    assert FileDirectory(file, [SIGNER], 1, None).snapshot(NOW).sequence == 9


@pytest.mark.parametrize("text", [b"", b"5", b"x" * 300, b"-1 " + b"0" * 64, b"5 " + b"0" * 63, b"5 " + b"z" * 64, b"\xff\xfe"])
def test_a_damaged_pin_is_an_error_not_a_fresh_start(tmp_path, text):
    (tmp_path / "network").write_bytes(DATA)
    (tmp_path / "pin").write_bytes(text)
    with pytest.raises(DirectoryError, match="damaged"):
        FileDirectory(tmp_path / "network", [SIGNER], 1, tmp_path / "pin").snapshot(NOW)


def test_a_folder_in_the_place_of_the_file(tmp_path):
    with pytest.raises(DirectoryError, match="malformed"):
        FileDirectory(tmp_path, [SIGNER], 1, None).snapshot(NOW)
