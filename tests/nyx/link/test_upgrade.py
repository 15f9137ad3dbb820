"""The in-session exchange over two channels: both ends derive the twin's ck3 in any order of arrival, once."""

import random

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nyx.crypto.keys import StaticKeys
from nyx.errors import RemoteProtocolError
from nyx.link.channel import Channel, FrameReceived
from nyx.link.frames import Crypto, NewCid, Ping
from nyx.link.handshake import Initiator, respond
from nyx.link.upgrade import LinkUpgrade, check_hello, encode_hello
from nyx.wire.codes import ErrorCode
from tests.reference import agreement
from tests.reference import link_handshake as twin

NOW = 1_900_000_000
RELAY = StaticKeys.generate(random.Random(3).randbytes)
MS = 1_000_000


def cids(rng):
    return [rng.randbytes(12) for _ in range(4)]


def link(rng):
    first = Initiator(RELAY.public, None, [1, 2], cids(rng), rng.randbytes, NOW)
    response = respond(first.packet, RELAY, [1, 2], cids(rng), rng.randbytes, NOW, lambda _: None, 192)
    return first.finish(response.packet), response.secrets


class Side:
    def __init__(self, secrets, rng):
        self.channel = Channel(10 * MS)
        self.cids = cids(rng)
        self.upgrade = LinkUpgrade(secrets, self.channel, self.cids, rng.randbytes)
        self.number = 0
        self.frames = []
        self.results = []

    def transmit(self, now):
        found = []
        while (out := self.channel.poll_transmit(now)) is not None:
            found.append((self.number, out))
            self.number += 1
        return found

    def receive(self, packet, now):
        number, out = packet
        self.channel.receive(out.header_byte, out.path_byte, number, out.payload, now)
        while (event := self.channel.next_event()) is not None:
            assert isinstance(event, FrameReceived)
            self.frames.append(event.frame)
            result = self.upgrade.receive(event.frame)
            if result is not None:
                self.results.append(result)


def run(a, b, rng, loss):
    now = 0
    for _ in range(300):
        for source, target in ((a, b), (b, a)):
            source.channel.handle_timeout(now)
            packets = source.transmit(now)
            rng.shuffle(packets)
            for packet in packets:
                if rng.random() >= loss:
                    target.receive(packet, now)
        now += 5 * MS
        if a.upgrade.secrets and b.upgrade.secrets and a.channel.poll_timeout() is b.channel.poll_timeout() is None:
            return


@given(st.integers(0, 1 << 32), st.sampled_from([0.0, 0.2]))
def test_both_ends_derive_the_same_over_any_wire(seed, loss):
    rng = random.Random(seed)
    mine, yours = link(rng)
    state = rng.getstate()
    shadow = random.Random()
    shadow.setstate(state)
    cids(shadow)
    ephemeral = shadow.randbytes(64)
    a, b = Side(mine, rng), Side(yours, rng)
    assert b.upgrade.start()
    assert a.upgrade.start()
    run(a, b, rng, loss)
    assert len(a.results) == len(b.results) == 1
    one, two = a.results[0], b.results[0]
    ct = next(frame.data for frame in a.frames if isinstance(frame, Crypto) and frame.message == 2)
    expected = twin.next_ck(mine.ck, agreement.decapsulate(ephemeral, ct), mine.h2)
    assert one.ck == two.ck == expected
    assert one.generation == two.generation == 1
    assert one.local_cids == two.peer_cids == tuple(a.cids)
    assert one.peer_cids == two.local_cids == tuple(b.cids)
    assert (one.initiator, two.initiator) == (True, False)
    keys, mirrored = one.session_keys(2), two.session_keys(2)
    assert (keys.send_key, keys.receive_mask) == (mirrored.receive_key, mirrored.send_mask)
    assert twin.session_keys(expected, 2, 2, 0) == (keys.send_key, keys.send_mask)
    assert a.upgrade.may_send
    assert not b.upgrade.may_send
    b.upgrade.confirm()
    assert b.upgrade.may_send


def test_the_responder_answers_in_one_packet(rng):
    mine, yours = link(rng)
    a, b = Side(mine, rng), Side(yours, rng)
    b.upgrade.confirm()
    assert not b.upgrade.confirmed, "nothing to confirm yet"
    a.upgrade.start()
    first = a.transmit(0)
    assert len(first) == 2
    for packet in first:
        b.receive(packet, 0)
    assert len(b.transmit(0)) == 1


def test_the_next_generation_has_no_hello_and_chains(rng):
    mine, yours = link(rng)
    a, b = Side(mine, rng), Side(yours, rng)
    a.upgrade.start()
    run(a, b, rng, 0)
    c, d = Side(a.results[0], rng), Side(b.results[0], rng)
    c.upgrade.start()
    run(c, d, rng, 0)
    assert c.results[0].ck == d.results[0].ck != a.results[0].ck
    assert c.results[0].generation == 2
    assert not any(isinstance(frame, Crypto) and frame.message == 0 for frame in c.frames + d.frames)


def responder(rng):
    mine, yours = link(rng)
    a, b = Side(mine, rng), Side(yours, rng)
    a.upgrade.start()
    assert a.upgrade._key
    ek = a.upgrade._key.public
    return b, ek


def test_it_is_complete_with_its_last_frame_whichever_that_is_and_only_once(rng):
    frames = [Crypto(0, encode_hello()), *(NewCid(i, bytes([i]) * 12) for i in range(4))]
    for last in range(6):
        b, ek = responder(rng)
        every = [*frames, Crypto(1, ek)]
        for frame in every[:last] + every[last + 1 :]:
            assert b.upgrade.receive(frame) is None
        assert b.upgrade.secrets is None
        secrets = b.upgrade.receive(every[last])
        assert secrets is not None
        assert all(b.upgrade.receive(frame) is None for frame in every)
        assert b.upgrade.secrets is secrets
        assert len(b.transmit(0)) == 1


def test_contradictions_are_refused_by_code(rng):
    b, ek = responder(rng)
    b.upgrade.receive(NewCid(0, b"a" * 12))
    b.upgrade.receive(NewCid(0, b"a" * 12))
    b.upgrade.receive(Crypto(1, ek))
    b.upgrade.receive(Crypto(1, ek))
    b.upgrade.receive(Ping(1))
    cases = [
        (NewCid(0, b"b" * 12), ErrorCode.PROTOCOL_VIOLATION),
        (Crypto(2, bytes(1088)), ErrorCode.PROTOCOL_VIOLATION),
        (Crypto(1, ek[:-1] + bytes([ek[-1] ^ 1])), ErrorCode.CRYPTO_FAIL),
        (Crypto(0, b"\0\2\x80"), ErrorCode.VERSION_MISMATCH),
        (Crypto(0, b"\0"), ErrorCode.VERSION_MISMATCH),
        (Crypto(0, b"\0\1"), ErrorCode.PROTOCOL_VIOLATION),
    ]
    for frame, code in cases:
        with pytest.raises(RemoteProtocolError) as caught:
            b.upgrade.receive(frame)
        assert caught.value.code == code
    assert b.upgrade.secrets is None
    with pytest.raises(RemoteProtocolError):
        b.upgrade.receive(NewCid(1, b"a" * 12))


@pytest.mark.parametrize("ek", [b"", bytes(1183), b"\xff" * 1184])
def test_a_bad_kem_key_is_refused(rng, ek):
    b, _ = responder(rng)
    with pytest.raises(RemoteProtocolError) as caught:
        b.upgrade.receive(Crypto(1, ek))
    assert caught.value.code == ErrorCode.CRYPTO_FAIL


def test_a_ciphertext_of_the_wrong_length_is_refused(rng):
    mine, _ = link(rng)
    a = Side(mine, rng)
    a.upgrade.start()
    a.upgrade.receive(Crypto(0, encode_hello()))
    for session in range(4):
        a.upgrade.receive(NewCid(session, bytes([session]) * 12))
    with pytest.raises(RemoteProtocolError) as caught:
        a.upgrade.receive(Crypto(2, bytes(1087)))
    assert caught.value.code == ErrorCode.CRYPTO_FAIL


def capability(number=7, flags=0, data=b"x"):
    return {"id": number, "flags": flags, "data": data}


def test_hello():
    assert encode_hello() == b"\0\1\x80"
    check_hello(encode_hello())
    check_hello(encode_hello([capability(), capability(9)]))
    with pytest.raises(RemoteProtocolError) as caught:
        check_hello(encode_hello([capability(flags=1)]))
    assert caught.value.code == ErrorCode.UNSUPPORTED_CAP


@pytest.mark.parametrize(
    "value",
    [
        {}, 5, [5], [{"id": 1}], [capability(-1)], [capability(1 << 32)], [capability(flags=256)], [capability(data="x")],
        [capability(flags=True)], [capability(i) for i in range(33)],
    ],
)  # fmt: skip
def test_capabilities_of_another_shape_are_refused(value):
    with pytest.raises(RemoteProtocolError):
        check_hello(b"\0\1" + cbor2.dumps(value, canonical=True))


@given(st.binary(max_size=200))
def test_any_bytes_after_the_version_are_accepted_or_refused(data):
    try:
        check_hello(b"\0\1" + data)
    except RemoteProtocolError:
        return
    assert cbor2.loads(data) == [] or all(isinstance(c, dict) for c in cbor2.loads(data))


CBOR_FORMS = [b"\x80\x80", b"\x98\x00", b"\x9f\xff", b"\x81" * 1200, b"\x9b" + b"\xff" * 8, b"\xd8\x1c\x81\xd8\x1d\x00"]


@pytest.mark.parametrize("data", CBOR_FORMS)
def test_cbor_in_another_form_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        check_hello(b"\0\1" + data)


def test_repr_shows_no_key(rng):
    mine, _ = link(rng)
    a = Side(mine, rng)
    assert repr(a.upgrade) == "LinkUpgrade(generation=1, done=False)"
