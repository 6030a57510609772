"""The entry point: which commands there are, and how every error ends as one line and an exit status.

Commands are loaded when they are called: `outlast list` must answer in less time than it takes to import what a
worker needs. Exit status: 0, 1 (a workflow or the database failed), 2 (the call was wrong), 70 (code
blocked the event loop for good, and the process ended itself), 130 (interrupted).
"""

from __future__ import annotations

import difflib
import io
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from outlast._version import __version__
from outlast.cli.errors import OK, report

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("outlast.cli.running", "Run a workflow to its end and print its result."),
    "worker": ("outlast.cli.working", "Host workflows and activities until stopped."),
    "list": ("outlast.cli.listing", "List runs, newest first."),
    "show": ("outlast.cli.showing", "Show a run and its history, to be read."),
    "history": ("outlast.cli.showing", "Print the history of a run as it is recorded."),
    "tail": ("outlast.cli.tailing", "Follow the history of a run until it has ended."),
    "signal": ("outlast.cli.messaging", "Tell a run something."),
    "query": ("outlast.cli.messaging", "Ask a run something, and print its answer."),
    "update": ("outlast.cli.messaging", "Ask a run to do something, and print what came of it."),
    "cancel": ("outlast.cli.messaging", "Ask a run to cancel: it may tidy up first."),
    "terminate": ("outlast.cli.messaging", "End a run without asking its code."),
    "migrate": ("outlast.cli.migrating", "Bring a database to the schema of this release."),
    "demo": ("outlast.cli.demo", "Kill a process in the middle of an order, and see the order arrive."),
}
"""Name -> where the command is (in an object named `<name>_command`), and its line in `outlast --help`."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"no such command {cmd_name!r}. {hint}", ctx)
        module = import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command takes --db URL (default: the environment variable OUTLAST_URL, else sqlite:///outlast.db, "
    "a file in the current folder), and --debug, which shows tracebacks.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks of errors.")
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def _cli(ctx: click.Context) -> None:
    """Durable execution for Python: ordinary code that runs to completion across crashes."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show an arrow gets a question mark, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Not from click's own parsing: an error that happens while parsing shall be shown in full as well.
    debug = "--debug" in args
    try:
        # Commands return None; click hands on a number only from --help and the like.
        status: int | None = _cli.main(args, prog_name="outlast", standalone_mode=False, obj=debug)
    except SystemExit:
        raise
    except BaseException as error:
        if debug:
            traceback.print_exception(error)
        sys.exit(report(error))
    sys.exit(status or OK)


if __name__ == "__main__":
    main()
