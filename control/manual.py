"""Manual pages of nyxctl, made from its own commands and options: one page for the program, one for each command.

Place: `nyxctl man`, `make man`. The pages say what `--help` says, so neither can be wrong alone.
Source: man(7), groff_man(7).
"""

from collections.abc import Iterator
from typing import Final

import click

from nyx import __version__

SECTION: Final = "1"


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


def escape(text: str) -> str:
    """Text as troff takes it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    return "\\&" + text if text.startswith(".") else text
