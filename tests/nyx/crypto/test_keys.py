"""Key files: round trip, damage, and that nothing secret is printed."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from nyx.crypto.kem import HybridKey
from nyx.crypto.keys import KEY_FILE_SIZE, StaticKeys, node_id
from nyx.errors import ConfigError


def _keys(rng):
    return StaticKeys.generate(rng.randbytes)


def test_round_trip(rng):
    keys = _keys(rng)
    data = keys.to_bytes()
    again = StaticKeys.from_bytes(data)
    assert len(data) == KEY_FILE_SIZE
    assert again.public == keys.public
    assert again.to_bytes() == data
    assert keys.public.identity == SigningKey(keys.identity_seed).verify_key.encode()
    assert keys.public.node_id == node_id(keys.public.identity) == blake3(keys.public.identity).digest()


@given(bit=st.integers(0, 8 * KEY_FILE_SIZE - 1))
def test_a_damaged_file_is_refused_without_its_content(bit):
    keys = StaticKeys(bytes(32), _pair(1), _pair(2))
    data = bytearray(keys.to_bytes())
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ConfigError) as caught:
        StaticKeys.from_bytes(bytes(data))
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("size", [0, 1, 4, 5, KEY_FILE_SIZE - 1, KEY_FILE_SIZE + 1])
def test_another_length_is_refused(rng, size):
    with pytest.raises(ConfigError):
        StaticKeys.from_bytes((_keys(rng).to_bytes() + b"\0")[:size])


def test_repr_shows_no_secret(rng):
    keys = _keys(rng)
    text = repr(keys) + repr(keys.public) + repr(keys.link) + repr(keys.onion)
    for secret in (keys.identity_seed, keys.link.to_bytes()[:32], keys.link.kem.seed, keys.onion.to_bytes()[:32]):
        assert secret[:4].hex() not in text


def _pair(number):
    return HybridKey(bytes([number]) * 32, bytes([number]) * 64)
