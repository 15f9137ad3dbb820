"""nyxctl man: manual pages, made from the commands themselves."""

from pathlib import Path

import click

from control.cli.output import echo, print_json
from control.cli.state import State, json_option
from control.schemas import Manual


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), required=True, help="Where to write them, like share/man.")
@json_option
@click.pass_obj
def command(state: State, *, folder: Path) -> None:
    """Write the manual pages of nyxctl, of each command and of nyx.toml into man1 and man5 of a folder, which are made."""
    from control.cli import group
    from control.manual import configuration, pages

    files = []
    for name, text in (*pages(group), configuration()):
        path = folder / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        files.append(str(path))
    if state.json:
        print_json(Manual(files))
    else:
        echo([f"{len(files)} pages in {folder}"])
