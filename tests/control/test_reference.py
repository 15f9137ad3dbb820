"""docs/configuration.md says of every key what the table of keys says."""

from control import reference
from nyx.config import KEYS


def test_the_page_is_made_from_the_table():
    text = reference.PAGE.read_text("utf-8")
    assert reference.page(text) == text, "run: python -m control.reference"


def test_every_key_has_a_row_with_its_range_and_what_a_change_needs():
    rows = [line for line in reference.tables().splitlines() if line.startswith("| `")]
    assert len(rows) == len(KEYS)
    for key, row in zip(KEYS, rows, strict=True):
        assert key.read.allowed in row
        assert row.endswith(f"| live: {key.live} |" if key.live else "| restart |")


def test_a_change_of_the_table_makes_the_page_wrong():
    text = reference.PAGE.read_text("utf-8")
    assert reference.page(text.replace("| integer | `3` | 1 to 7 |", "| integer | `3` | 1 to 8 |")) == text
