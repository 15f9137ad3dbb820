"""The backup of a node's keys: the key file's bytes, sealed under a passphrase.

Place on a packet's way: none. 274 bytes: "NYXB", version u8, salt 16, then ChaCha20-Poly1305 of the key file with everything
before it as associated data. The key is Argon2id of the passphrase; its cost belongs to the version and is never read from a
file, so that a file can neither ask for more work nor settle for less. A salt is drawn for every backup: each key seals once.

Passphrase and keys are `bytes` here and cannot be wiped. Source: docs/protocol.md, "Backup"; RFC 9106, RFC 8439.
"""

import unicodedata
from typing import Final

from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt, crypto_aead_chacha20poly1305_ietf_encrypt
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

from nyx.crypto.kem import Entropy
from nyx.crypto.keys import KEY_FILE_SIZE, StaticKeys
from nyx.errors import ConfigError
from nyx.wire.geometry import CHACHA_KEY_SIZE, SHORT_TAG_SIZE

MAGIC: Final = b"NYXB"
VERSION: Final = 1
SALT_SIZE: Final = 16
PASSES: Final = 3
MEMORY: Final = 256 << 20  # bytes
PASSPHRASE_LEAST: Final = 8  # characters
PASSPHRASE_MOST: Final = 1024  # bytes
HEADER_SIZE: Final = len(MAGIC) + 1 + SALT_SIZE
BACKUP_SIZE: Final = HEADER_SIZE + KEY_FILE_SIZE + SHORT_TAG_SIZE
_NONCE: Final = bytes(12)


def passphrase_bytes(text: str) -> bytes:
    """The bytes of a passphrase: UTF-8 of its composed form, however it was typed. Raises ConfigError: too short or long."""
    found = unicodedata.normalize("NFC", text)
    if len(found) < PASSPHRASE_LEAST:
        raise ConfigError([f"the passphrase is shorter than {PASSPHRASE_LEAST} characters"])
    try:
        data = found.encode()
    except UnicodeEncodeError:
        raise ConfigError(["the passphrase is no Unicode text"]) from None
    if len(data) > PASSPHRASE_MOST:
        raise ConfigError([f"the passphrase is longer than {PASSPHRASE_MOST} bytes"])
    return data


def seal_backup(keys: StaticKeys, passphrase: bytes, entropy: Entropy) -> bytes:
    """The backup's bytes. Raises ConfigError when this machine lacks the memory that the work takes."""
    header = MAGIC + bytes((VERSION,)) + entropy(SALT_SIZE)
    key = _stretch(passphrase, header[-SALT_SIZE:])
    return header + crypto_aead_chacha20poly1305_ietf_encrypt(keys.to_bytes(), header, _NONCE, key)


def open_backup(data: bytes, passphrase: bytes) -> StaticKeys:
    """The keys of a backup. Raises ConfigError that says what is wrong with the file, never what is in it."""
    if len(data) <= len(MAGIC) or not data.startswith(MAGIC):
        raise ConfigError(["this is not a backup of Nyx keys"])
    if data[len(MAGIC)] != VERSION:
        raise ConfigError([f"backup version {data[len(MAGIC)]} is unknown; this program reads {VERSION}"])
    if len(data) != BACKUP_SIZE:
        raise ConfigError([f"the backup is damaged: {len(data)} bytes instead of {BACKUP_SIZE}"])
    header, sealed = data[:HEADER_SIZE], data[HEADER_SIZE:]
    key = _stretch(passphrase, header[-SALT_SIZE:])
    try:
        opened = crypto_aead_chacha20poly1305_ietf_decrypt(sealed, header, _NONCE, key)
    except CryptoError:
        raise ConfigError(["the passphrase is wrong, or the backup is damaged"]) from None
    return StaticKeys.from_bytes(opened)


def _stretch(passphrase: bytes, salt: bytes) -> bytes:
    """The sealing key, 32 bytes: Argon2id 1.3, 3 passes over 256 MiB, one lane."""
    try:
        return argon2id.kdf(CHACHA_KEY_SIZE, passphrase, salt, PASSES, MEMORY)
    except (CryptoError, MemoryError):
        raise ConfigError([f"a backup takes {MEMORY >> 20} MiB of memory for a moment, and this machine refuses them"]) from None
