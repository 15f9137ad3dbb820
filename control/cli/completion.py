"""nyxctl completion: what a shell needs to complete commands and options of nyxctl."""

import click

from control.cli.output import print_json
from control.cli.state import State, json_option
from control.schemas import Completion

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@json_option
@click.pass_obj
def command(state: State, *, shell: str) -> None:
    """Print a script that lets SHELL complete nyxctl.

    For bash: nyxctl completion bash > ~/.local/share/bash-completion/completions/nyxctl. For zsh: into a file _nyxctl in a folder
    of $fpath. For fish: > ~/.config/fish/completions/nyxctl.fish.
    """
    from click.shell_completion import get_completion_class

    from control.cli import group

    found = get_completion_class(shell)
    assert found is not None
    script = found(group, {}, "nyxctl", "_NYXCTL_COMPLETE").source()
    if state.json:
        print_json(Completion(shell, script))
    else:
        click.echo(script)
