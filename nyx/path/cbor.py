"""Deterministic CBOR (RFC 8949, 4.2.1) and Ed25519 signatures over it: the form of everything in the directory.

One value has one encoding, so that a signature covers what a reader reads and a digest names it. Keys of maps are texts of
fewer than 24 bytes, for which cbor2's canonical order is the order of the RFC.
"""

from typing import Any

import cbor2
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError


class FormError(ValueError):
    """Not deterministic CBOR, or not the form that was expected; the text says what."""


def encode(value: Any) -> bytes:
    """The one encoding of a value."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes) -> Any:
    """The value of an encoding that `encode` could have made. Raises FormError."""
    try:
        value = cbor2.loads(
            data, tag_hook=_refuse, allow_indefinite=False, allow_duplicate_keys=False, strict_hashable_types=True, max_depth=8
        )
        again = encode(value)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FormError("not decodable") from error
    if again != data:
        raise FormError("not deterministic CBOR")
    return value


def _refuse(_decoder: Any, _tag: Any) -> Any:
    raise FormError("tags are not allowed")


def fields(value: Any, *names: str) -> list[Any]:
    """The values of a map that has exactly these keys, in this order. Raises FormError."""
    if not isinstance(value, dict):
        raise FormError("not a map")
    for name in names:
        if name not in value:
            raise FormError(f"{name} is missing")
    for name in value:
        if name not in names:
            raise FormError(f"unknown key {str(name)[:40]!r}")
    return [value[name] for name in names]


def integer(value: Any, name: str, high: int = 2**63 - 1) -> int:
    """A whole number from 0 to `high`. Raises FormError."""
    if type(value) is not int or not 0 <= value <= high:
        raise FormError(f"{name} is not a whole number from 0 to {high}")
    return value


def octets(value: Any, name: str, size: int) -> bytes:
    """Exactly `size` bytes. Raises FormError."""
    if not isinstance(value, bytes) or len(value) != size:
        raise FormError(f"{name} is not {size} bytes")
    return value


def text(value: Any, name: str, most: int) -> str:
    """Printable ASCII of at most `most` characters. Raises FormError."""
    if not isinstance(value, str) or len(value) > most or not (value.isascii() and value.isprintable()):
        raise FormError(f"{name} is not printable ASCII of at most {most} characters")
    return value


def items(value: Any, name: str, most: int) -> list[Any]:
    """A list of at most `most` items. Raises FormError."""
    if not isinstance(value, list) or len(value) > most:
        raise FormError(f"{name} is not a list of at most {most}")
    return value


def identity_of(seed: bytes) -> bytes:
    """The Ed25519 public key of a seed."""
    return crypto_sign_seed_keypair(seed)[0]


def sign(seed: bytes, purpose: bytes, body: bytes) -> bytes:
    """Ed25519 signature of `body` for one purpose, so that no signature means two things."""
    return crypto_sign(purpose + b"\0" + body, crypto_sign_seed_keypair(seed)[1])[:64]


def signed_by(identity: bytes, purpose: bytes, body: bytes, signature: bytes) -> bool:
    """Whether the holder of `identity` signed `body` for this purpose."""
    try:
        crypto_sign_open(signature + purpose + b"\0" + body, identity)
    except (BadSignatureError, ValueError):
        return False
    return True
