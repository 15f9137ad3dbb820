"""nyxctl schema: the JSON Schema of what --json prints."""

import click

from control.cli.output import echo, print_json, table
from control.cli.state import EXIT_USAGE, Failure, State, json_option
from control.schemas import DOCUMENTS, Schemas, json_schema


@click.command()
@click.argument("name", required=False)
@json_option
@click.pass_obj
def command(state: State, name: str | None) -> None:
    """Print the JSON Schema of a document (nyx.status, or just status), or list the documents."""
    if name is None:
        if state.json:
            print_json(Schemas({n: c.VERSION for n, c in DOCUMENTS.items()}))
        else:
            echo(
                table(
                    ["document", "version", "about"],
                    [[n, str(c.VERSION), (c.__doc__ or "").partition("\n")[0]] for n, c in DOCUMENTS.items()],
                )
            )
        return
    known = name if name in DOCUMENTS else f"nyx.{name}"
    if known not in DOCUMENTS:
        raise Failure(EXIT_USAGE, "usage", f"there is no document {name!r}; the list of them: nyxctl schema")
    print_json(json_schema(known))
