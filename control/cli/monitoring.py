"""nyxctl monitoring: the files that other programs want, as they are installed."""

import click

from control.cli.output import print_json
from control.cli.state import State, json_option
from control.observability import FILES, read
from control.schemas import MonitoringFile


@click.command()
@click.argument("file", type=click.Choice(list(FILES)))
@json_option
@click.pass_obj
def command(state: State, file: str) -> None:
    """Print the rules for Prometheus (rules: recording and alerting), or the dashboard for Grafana (dashboard)."""
    if state.json:
        print_json(MonitoringFile(FILES[file], read(file)))
    else:
        click.echo(read(file), nl=False)
