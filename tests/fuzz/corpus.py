"""The kept inputs: tests/fuzz/corpus/TARGET/, a file each, small. Some were written, some found by coverage or by a crash."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent / "corpus"


def folder(target: str) -> Path:
    """Where a target's inputs are."""
    return FOLDER / target


def kept(target: str) -> list[bytes]:
    """A target's inputs in the order of their names."""
    return [file.read_bytes() for file in sorted(folder(target).iterdir())]
