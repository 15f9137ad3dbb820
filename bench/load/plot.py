"""Bars as SVG, without a library."""

from collections.abc import Sequence
from html import escape
from typing import Final

_LINE: Final = 24  # pixels a bar
_LABEL: Final = 380
_BAR: Final = 420


def bars(title: str, values: Sequence[tuple[str, float]]) -> str:
    """One horizontal bar a value, the longest as wide as there is room."""
    most = max((value for _, value in values), default=0.0) or 1.0
    height, width = _LINE * (len(values) + 2), _LABEL + _BAR + 90
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="10" y="{_LINE - 6}" font-weight="bold">{escape(title)}</text>',
    ]
    for place, (name, value) in enumerate(values, 1):
        y, length = _LINE * place, _BAR * value / most
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y + 3}" width="{length:.1f}" height="{_LINE - 6}" fill="steelblue"/>',
            f'<text x="{_LABEL + length + 6:.1f}" y="{y + 16}">{value:.2f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
