"""How errors end: one line on stderr, and an exit status."""

from __future__ import annotations

import click

from outlast.model.errors import OutlastError, OutlastInterrupt, UsageError, WorkflowFailed

OK = 0
FAILED = 1
"""The call was right; a workflow failed, or the database."""
WRONG_CALL = 2
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


class CallError(click.ClickException):
    """The command was called with something that cannot work."""

    exit_code = WRONG_CALL


class CommandFailed(click.ClickException):
    """What the command was asked to do went wrong."""

    exit_code = FAILED


def say(text: str) -> None:
    """Tell whoever sits at the terminal. stdout is for results."""
    click.echo(f"outlast: {text}", err=True)


def report(error: BaseException) -> int:
    """Say what went wrong; returns the exit status."""
    match error:
        case click.exceptions.Abort() | KeyboardInterrupt():
            say("interrupted")
            return INTERRUPTED
        case click.UsageError():
            path = "outlast" if error.ctx is None else error.ctx.command_path
            say(f"error: {_sentence(error.format_message())} See `{path} --help`.")
            return WRONG_CALL
        case click.ClickException():
            say(f"error: {error.format_message()}")
            return error.exit_code
        case UsageError():
            say(f"error: {error}")
            return WRONG_CALL
        case WorkflowFailed():
            say(f"error: {error}")
            return FAILED
        case OutlastError() | OutlastInterrupt():
            say(f"error: {type(error).__name__}: {error}")
            return FAILED
        case _:
            say(f"error: {type(error).__name__}: {error} (with --debug: where)")
            return FAILED


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."
