"""Manual pages: of nyxctl and each of its commands from the commands themselves, of nyx.toml from the table of keys.

Place: `nyxctl man`, `make man`, `make install`. Pages say what `--help` and the checks say, so neither can be wrong alone.
Source: man(7), groff_man(7).
"""

from collections.abc import Iterator
from typing import Final

import click

from nyx import __version__

SECTION: Final = "1"
_ABOUT_FILE: Final = """
The file is TOML. nyxd reads the one that --config names, else nyx/nyx.toml in the user's configuration folder, else
/etc/nyx/nyx.toml; over it conf.d/*.toml in the same folder, then NYX_SECTION_KEY in the environment, then --set. An unknown
key, a value out of range or a combination that cannot work is an error; nyxctl config check tells all of them.
"""


def pages(root: click.Group, program: str = "nyxctl") -> Iterator[tuple[str, str]]:
    """File name and text of every page."""
    context = click.Context(root, info_name=program)
    yield from _pages(root, context, program)


def _pages(command: click.Command, context: click.Context, path: str) -> Iterator[tuple[str, str]]:
    yield f"{path.replace(' ', '-')}.{SECTION}", page(command, context, path)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _pages(child, click.Context(child, info_name=name, parent=context), f"{path} {name}")


def page(command: click.Command, context: click.Context, path: str) -> str:
    """One page."""
    about = command.get_short_help_str(200).rstrip(".")
    name = path.replace(" ", "-")
    out = [
        f'.TH "{name.upper()}" "{SECTION}" "" "Nyx {__version__}" "Nyx manual"',
        ".SH NAME",
        f"{escape(name)} \\- {escape(about)}",
    ]
    usage = " ".join(command.collect_usage_pieces(context))
    out += [".SH SYNOPSIS", f"\\fB{escape(path)}\\fR {escape(usage)}", ".SH DESCRIPTION", *_paragraphs(command.help or about)]
    options = [record for param in command.get_params(context) if (record := param.get_help_record(context)) and record[1]]
    if options:
        out.append(".SH OPTIONS")
        for head, text in options:
            out += [".TP", f"\\fB{escape(head)}\\fR", escape(text)]
    if isinstance(command, click.Group):
        out.append(".SH COMMANDS")
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None:
                out += [".TP", f"\\fB{escape(f'{name}-{child_name}')}\\fR({SECTION})", escape(child.get_short_help_str(200))]
    if command.epilog:
        out += [".SH NOTES", *_paragraphs(command.epilog)]
    if context.parent is not None:
        parent = path.rpartition(" ")[0].replace(" ", "-")
        out += [".SH SEE ALSO", f"\\fB{escape(parent)}\\fR({SECTION})"]
    return "\n".join(out) + "\n"


def _paragraphs(text: str) -> Iterator[str]:
    for index, block in enumerate(text.strip().split("\n\n")):
        if index:
            yield ".PP"
        yield escape(" ".join(block.split()))


def configuration() -> tuple[str, str]:
    """File name and text of the page about nyx.toml."""
    from control.reference import default_text, sections
    from nyx.config import KEYS

    out = [
        f'.TH "NYX.TOML" "5" "" "Nyx {__version__}" "Nyx manual"',
        ".SH NAME",
        "nyx.toml \\- configuration of a Nyx node",
        ".SH DESCRIPTION",
        *_paragraphs(_ABOUT_FILE),
    ]
    for section, about in sections().items():
        out += [f'.SH "[{section.upper()}]"', escape(about)]
        for key in (key for key in KEYS if key.name.startswith(f"{section}.")):
            change = f"A change holds {key.live}" if key.live else "A change needs a restart"
            allowed = f"{key.read.kind}, {key.read.allowed}; default {default_text(key).replace('`', '')}."
            out += [".TP", f"\\fB{escape(key.name.partition('.')[2])}\\fR", escape(f"{key.about}.")]
            out += [".br", escape(f"{allowed} {change}.")]
    out += [".SH SEE ALSO", ".BR nyxd (8),", ".BR nyxctl-config (1)"]
    return "nyx.toml.5", "\n".join(out) + "\n"


def escape(text: str) -> str:
    """Text as troff takes it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    return "\\&" + text if text.startswith(".") else text
