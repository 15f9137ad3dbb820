"""Printing: JSON documents, aligned tables, figures for people; colour only where a terminal wants it."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from control.schemas import Document


def print_json(document: Document | dict[str, Any]) -> None:
    """One document on stdout, indented for a terminal, on one line for a pipe."""
    import json

    value = document if isinstance(document, dict) else document.to_json()
    indent = 2 if _terminal() else None
    click.echo(json.dumps(value, indent=indent, ensure_ascii=False))


def coloured() -> bool:
    """Whether stdout is a terminal whose user wants colour (no-color.org)."""
    return _terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # None: the caller closed it


def style(text: str, **kwargs: Any) -> str:
    """The text in a colour, where there is colour."""
    return click.style(text, **kwargs) if coloured() else text


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns; columns of figures are aligned to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    right = [bool(rows) and all(row[i][:1].isdigit() or row[i] == "-" for row in rows) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return [style(line(heads), bold=True), *(line(row) for row in rows)]


def echo(lines: Sequence[str]) -> None:
    """Lines on stdout."""
    for text in lines:
        click.echo(text)


def duration(seconds: float) -> str:
    """A time as people say it: 4.1 ms, 3.2 s, 4 min, 2.5 h, 3.1 d."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def size(count: int) -> str:
    """A number of bytes: 812 B, 3.4 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plural(count: int, word: str) -> str:
    """1 circuit, 2 circuits."""
    return f"{count} {word}{'' if count == 1 else 's'}"
