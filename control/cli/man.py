"""nyxctl man: manual pages, made from the commands themselves."""

from pathlib import Path

import click

from control.cli.output import echo, print_json
from control.cli.state import State, json_option
from control.schemas import Manual


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), required=True, help="Where to write them, like share/man/man1.")
@json_option
@click.pass_obj
def command(state: State, *, folder: Path) -> None:
    """Write the manual pages of nyxctl and of each command into a folder, which is made; man FILE shows one."""
    from control.cli import group
    from control.manual import pages

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, text in pages(group):
        (folder / name).write_text(text, "utf-8")
        files.append(str(folder / name))
    if state.json:
        print_json(Manual(files))
    else:
        echo([f"{len(files)} pages in {folder}"])
