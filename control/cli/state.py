"""What the options before a command say, shared with it, and the ways in which a command ends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_NOT_READY: Final = 4
EXIT_DENIED: Final = 5
EXIT_TIMEOUT: Final = 6
EXIT_CONFIG: Final = 78
EXIT_INTERRUPTED: Final = 130

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class State:
    """Options that every command reads; `exit_code` is what it ends with when nothing fails."""

    socket: str | None = None
    config: str | None = None
    node: str | None = None
    timeout: float | None = None
    json: bool = False
    exit_code: int = 0


class Failure(Exception):  # noqa: N818  not every end that is no success is an error
    """A command cannot do what it was asked; `code` names why for --json."""

    def __init__(self, exit_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(State).json = True


def json_option(function: F) -> F:
    """Decorator: the command takes --json after its name too."""
    help_text = "Print one JSON document (see: nyxctl schema)."
    return click.option("--json", is_flag=True, expose_value=False, callback=_set_json, help=help_text)(function)
