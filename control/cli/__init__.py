"""nyxctl: the command line of Nyx. It starts fast, so every command is a module of its own, imported when it is called.

stdout is data, stderr is messages. `--json` on every command prints one document of control/schemas.py. Exit codes: 0 ok,
1 failure, 2 usage, 3 node unreachable, 4 not ready (only with --check or --wait), 5 denied, 6 timeout, 78 bad configuration,
130 interrupted.
"""

import importlib
import signal
import sys
from typing import Final, NoReturn

import click

from control.cli.state import EXIT_CONFIG, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, Failure, State
from nyx.errors import ConfigError, NyxError

COMMANDS: Final = {
    "status": "How the node is: state, proxy, health, processes",
    "connect": "A stream on stdin and stdout, or local ports that lead to targets",
    "run": "Run an application that reaches nothing but Nyx",
    "bench": "Real bytes to a target: times to open streams, throughput",
    "circuits": "The circuits through this node, and the hops of its own",
    "streams": "The streams that begin or end here, and why they failed",
    "peers": "The links to other nodes",
    "stats": "Counters, errors by reason and latencies, once or live",
    "top": "The node live: processes, traffic, latencies, warnings",
    "doctor": "Check the node and its machine, with what to do about each thing found",
    "restart": "Start a worker anew; its streams go on",
    "upgrade": "Run the code that is installed now; streams go on",
    "events": "What happens at the node, as it happens",
    "feed": "Read the monitoring feed, and say who else may",
    "monitoring": "Rules for Prometheus and a dashboard for Grafana",
    "reload": "Read the configuration and the directory anew, all or nothing",
    "config": "Check, show and change the configuration; its history and the way back",
    "keys": "Make a node's keys, or show its node id",
    "testnet": "A whole network on this machine: up, demo, status, down",
    "paths": "Where Nyx looks and keeps things",
    "completion": "A script that lets your shell complete commands",
    "man": "Write manual pages",
    "schema": "The JSON Schema of what --json prints",
    "version": "What is installed",
}
_MODULES: Final = {"run": "confine"}  # where the module has another name than the command


class _Commands(click.Group):
    """The commands by name, each imported when it is used; the list of them needs no import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = _MODULES.get(cmd_name, cmd_name)
        command: click.Command = importlib.import_module(f"control.cli.{module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            raise click.UsageError(f"there is no command {args[0]!r}" + (f", did you mean {close[0]!r}?" if close else ""), ctx)
        return super().resolve_command(ctx, args)


_EPILOG: Final = """Exit codes: 0 ok, 1 failure, 2 wrong use, 3 no node answers, 4 not ready (with --check or --wait),
5 not allowed, 6 no answer in time, 78 bad configuration, 130 interrupted."""


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--socket", metavar="PATH", envvar="NYX_SOCKET", help="The node's control socket.")
@click.option("--config", metavar="FILE", envvar="NYX_CONFIG", help="The node's configuration file, which names the socket.")
@click.option("--node", metavar="NAME", help="A node of the test network, by its alias.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0.1, 86400), help="Give up after this time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (see: nyxctl schema).")
@click.pass_obj
def group(
    state: State, *, socket: str | None, config: str | None, node: str | None, timeout: float | None, as_json: bool
) -> None:
    """Look after a Nyx node, or run a whole test network on this machine.

    Without --socket, --config or --node it speaks to your own node, or else to the client of the running test network.
    """
    state.socket, state.config, state.node = socket, config, node
    state.timeout = timeout
    state.json = state.json or as_json


def main() -> NoReturn:
    """The program."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `nyxctl streams | head` ends quietly
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run a command; the exit code."""
    state = State()
    try:
        group.main(args, prog_name="nyxctl", obj=state, standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        state.json = state.json or "--json" in args  # an option before it may be the wrong one
        exit_code, code = (EXIT_USAGE, "usage") if isinstance(error, click.UsageError) else (EXIT_FAILURE, "failure")
        if not state.json:
            error.show()
            return exit_code
        return _fail(state, exit_code, code, error.format_message())
    except click.Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Failure as error:
        return _fail(state, error.exit_code, error.code, str(error))
    except ConfigError as error:
        return _fail(state, EXIT_CONFIG, "config", "\n".join(error.problems))
    except (NyxError, OSError) as error:
        return _fail(state, EXIT_FAILURE, "failure", str(error))
    return state.exit_code


def _fail(state: State, exit_code: int, code: str, message: str) -> int:
    if state.json:
        from control.cli.output import print_json
        from control.schemas import Error

        print_json(Error(code, message))
    else:
        click.echo(message, err=True)
    return exit_code
