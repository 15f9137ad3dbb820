"""Asking for a passphrase: at the terminal without an echo, or from a file descriptor that a caller opened."""

import os
from typing import Final

import click

from control.cli.state import EXIT_USAGE, Failure

_LINE_MOST: Final = 4096  # bytes; nyx.crypto.backup refuses far shorter ones by name


def read_passphrase(descriptor: int | None, *, twice: bool) -> bytes:
    """The passphrase as the bytes that are stretched. Raises Failure, ConfigError."""
    from nyx.crypto.backup import passphrase_bytes

    if descriptor is not None:
        return passphrase_bytes(_line(descriptor))
    if not os.isatty(0):
        raise Failure(EXIT_USAGE, "no-terminal", "there is no terminal to ask at; give the passphrase with --passphrase-fd N")
    return passphrase_bytes(click.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True))


def _line(descriptor: int) -> str:
    """The descriptor's first line, without its end."""
    data = b""
    try:
        while b"\n" not in data and len(data) < _LINE_MOST and (more := os.read(descriptor, _LINE_MOST - len(data))):
            data += more
        return data.split(b"\n", 1)[0].removesuffix(b"\r").decode()
    except OSError as error:
        raise Failure(EXIT_USAGE, "passphrase", f"file descriptor {descriptor} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(EXIT_USAGE, "passphrase", "the passphrase is no UTF-8 text") from None
