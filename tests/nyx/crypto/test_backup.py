"""Backups of keys: another program's Argon2id and AEAD open them, and every damaged one is refused without its content."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nyx.crypto import backup
from nyx.crypto.backup import BACKUP_SIZE, HEADER_SIZE, open_backup, passphrase_bytes, seal_backup
from nyx.crypto.kem import HybridKey
from nyx.crypto.keys import StaticKeys
from nyx.errors import ConfigError

WORDS = b"correct horse battery"
KEYS = StaticKeys(bytes(32), HybridKey(bytes(32), bytes(64)), HybridKey(b"\1" * 32, b"\1" * 64))


@pytest.fixture
def quick(monkeypatch):
    """Stretching without its cost: what is tested is the container."""
    monkeypatch.setattr(backup, "MEMORY", 1 << 13)
    monkeypatch.setattr(backup, "PASSES", 1)


def test_another_implementation_opens_it_with_the_written_cost(rng):
    data = seal_backup(KEYS, WORDS, rng.randbytes)
    assert (len(data), data[:5]) == (BACKUP_SIZE, b"NYXB\1")
    assert BACKUP_SIZE == 274
    key = Argon2id(salt=data[5:21], length=32, iterations=3, lanes=1, memory_cost=262144).derive(WORDS)
    assert ChaCha20Poly1305(key).decrypt(bytes(12), data[21:], data[:21]) == KEYS.to_bytes()
    assert open_backup(data, WORDS).to_bytes() == KEYS.to_bytes()


def test_two_backups_share_no_salt(rng, quick):
    one, two = (seal_backup(KEYS, WORDS, rng.randbytes) for _ in range(2))
    assert one[5:HEADER_SIZE] != two[5:HEADER_SIZE]
    assert one[HEADER_SIZE:] != two[HEADER_SIZE:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(bit=st.integers(0, 8 * BACKUP_SIZE - 1), salt=st.binary(min_size=16, max_size=16))
def test_a_flipped_bit_is_refused(quick, bit, salt):
    data = bytearray(seal_backup(KEYS, WORDS, lambda size: salt[:size]))
    assert open_backup(bytes(data), WORDS).public == KEYS.public
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ConfigError) as caught:
        open_backup(bytes(data), WORDS)
    assert len(str(caught.value)) < 100


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.one_of(st.binary(max_size=2 * BACKUP_SIZE), st.binary(max_size=BACKUP_SIZE).map(lambda b: b"NYXB\1" + b)))
def test_any_other_bytes_are_refused(quick, data):
    with pytest.raises(ConfigError):
        open_backup(data, WORDS)


def test_another_passphrase_is_refused(rng, quick):
    data = seal_backup(KEYS, WORDS, rng.randbytes)
    with pytest.raises(ConfigError, match="the passphrase is wrong, or the backup is damaged"):
        open_backup(data, WORDS + b" ")


def test_a_machine_without_the_memory_says_so(rng, monkeypatch):
    monkeypatch.setattr(backup, "MEMORY", 1 << 42)
    with pytest.raises(ConfigError, match="MiB of memory"):
        seal_backup(KEYS, WORDS, rng.randbytes)


def test_a_passphrase_is_the_same_however_it_was_typed():
    assert passphrase_bytes("pass\u00e9phrase") == passphrase_bytes("passe\u0301phrase")
    for text in ("", "seven77", "x" * 1025, "\udc80" * 8):
        with pytest.raises(ConfigError):
            passphrase_bytes(text)
