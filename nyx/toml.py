"""Where each key of a TOML text stands: the standard parser gives values without lines, and an error must name its line.

Works on text that `tomllib` has accepted, so it needs no grammar of its own beyond strings, brackets and comments.
"""

import re
from collections.abc import Iterator
from typing import Final

Path = tuple[str, ...]  # ("path", "hops"); a table has its own, ("path",)

_TOKEN: Final = re.compile(r'"""|\'\'\'|"(?:\\.|[^"\\])*"|\'[^\']*\'|#.*|[\[\]{}]')
# Possessive, so that a header that does not end costs one pass over its line.
_HEADER: Final = re.compile(r"""\s*+\[\[?+((?:[^\]"'#]|"(?:\\.|[^"\\])*+"|'[^']*+')++)\]\]?\s*+(?:#.*)?$""")
_PART: Final = r'(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|\'[^\']*\')'
_ASSIGNMENT: Final = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")
_PARTS: Final = re.compile(_PART)


def key_lines(text: str) -> dict[Path, int]:
    """Line (from 1) of every table and key. A key inside an inline table has the line of that table's key only."""
    found: dict[Path, int] = {}
    table: Path = ()
    for number, line in _statements(text):
        if header := _HEADER.match(line):
            table = _split(header[1])
            found.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            found.setdefault(table + _split(assignment[1]), number)
    return found


def _split(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in _PARTS.findall(dotted))


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The lines on which a statement begins, with their numbers; lines inside arrays and long strings are left out."""
    depth, quote = 0, ""
    for number, line in enumerate(text.split("\n"), 1):
        if not depth and not quote:
            yield number, line.rstrip("\r")
        depth, quote = _scan(line, depth, quote)


def _scan(line: str, depth: int, quote: str) -> tuple[int, str]:
    """Bracket depth and open long string after this line."""
    at = 0
    if not depth and not quote and _HEADER.match(line) and not _ASSIGNMENT.match(line):
        return 0, ""
    while True:
        if quote:
            end = line.find(quote, at)
            if end < 0:
                return depth, quote
            at, quote = end + 3, ""
        token = _TOKEN.search(line, at)
        if token is None:
            return depth, ""
        at = token.end()
        if token[0] in ('"""', "'''"):
            quote = token[0]
        elif token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
