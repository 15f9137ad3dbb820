"""The part of docs/configuration.md that is made from the table of keys: `python -m control.reference` writes it anew.

A test compares page and table, so a key that is added, or whose range or default changes, is in the page or CI fails.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Final, get_type_hints

from nyx.config import KEYS, Config, Key

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
BEGIN: Final = "<!-- made from nyx/config.py by: python -m control.reference -->"
END: Final = "<!-- end of what is made -->"
_COMPUTED: Final = {  # defaults that depend on other values, in words
    "node.state_dir": "`~/.local/state/nyx` (`XDG_STATE_HOME`)",
    "node.run_dir": "`$XDG_RUNTIME_DIR/nyx`, else `run` in the state folder",
    "sdk.enabled": "`true` for a client and with a proxy, else `false`",
    "proxy.listen": '`"127.0.0.1:9750"` for a client, else `"off"`',
}


def sections() -> dict[str, str]:
    """What each section is for, by name, in their order."""
    return {name: _about(name) for name in dict.fromkeys(key.name.partition(".")[0] for key in KEYS)}


def tables() -> str:
    """One table for each section, as Markdown."""
    return "\n".join(_section(section, about) for section, about in sections().items())


def page(text: str) -> str:
    """The page with its tables made anew. Raises ValueError where it lacks the marks."""
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:start]}\n\n{tables()}\n{text[end:]}"


def _about(section: str) -> str:
    about = (inspect.getdoc(get_type_hints(Config)[section]) or "").replace("\n", " ")
    what = about.removeprefix(f"[{section}]: ").removesuffix(f": the settings under [{section}].").rstrip(".") + "."
    return what[:1].upper() + what[1:]


def _section(section: str, about: str) -> str:
    rows = [_row(key) for key in KEYS if key.name.startswith(section + ".")]
    heads = "| key | type | default | allowed | what it is | a change |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([f"### [{section}]", "", about, "", heads, *rows, ""])


def _row(key: Key) -> str:
    name = key.name.partition(".")[2]
    cells = [
        f"`{name}`",
        key.read.kind,
        default_text(key),
        key.read.allowed,
        key.about,
        (key.live and f"live: {key.live}") or "restart",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default_text(key: Key) -> str:
    """The default of a key, for people."""
    if key.required:
        return "none: must be given"
    return _COMPUTED[key.name] if callable(key.default) else f"`{json.dumps(key.default)}`"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
