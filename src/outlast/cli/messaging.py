"""`outlast signal`, `query`, `update`, `cancel`, `terminate`: what can be said to a run, from the shell.

The code of the workflow is not here, so what is sent goes as it was typed, and the run says whether it fits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from outlast.cli.arguments import NEGATIVE_NUMBERS, json_arguments, message_arguments
from outlast.cli.errors import CallError, CommandFailed, say
from outlast.cli.opening import find, look
from outlast.cli.options import common_options
from outlast.cli.showing import see, waits_for_a_worker
from outlast.cli.texts import failure_chain, one_line
from outlast.model.durations import SECOND_US, format_duration, to_microseconds
from outlast.model.errors import InvalidArgument, RunClosed, UsageError
from outlast.model.events import WorkflowExecutionUpdateAccepted
from outlast.model.ids import MessageId, RunId
from outlast.model.payloads import JSON
from outlast.model.replies import Answered, Failed, Refused, Reply
from outlast.runtime.ports import SystemEntropy
from outlast.runtime.service import Service
from outlast.sdk.registry import AnyDurable
from outlast.store.api import RunRow, RunStatus

F = TypeVar("F", bound=Callable[..., Any])


def _microseconds(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        return to_microseconds(float(value) if value.replace(".", "", 1).isdecimal() else value)
    except InvalidArgument as error:
        raise click.BadParameter(str(error), ctx, param) from None


_timeout_option = click.option(
    "--timeout",
    "timeout_us",
    callback=_microseconds,
    default="30s",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for the answer: 5, 30s, 2h.",
)
_reason_option = click.option("--reason", metavar="TEXT", default="", help="Recorded in the history.")


def _message(command: F) -> F:
    """ID NAME [JSON]..., --kwargs."""
    command = json_arguments(command)
    command = click.argument("name", metavar="NAME")(command)
    return click.argument("id_", metavar="ID")(command)


# --- what is only told ------------------------------------------------------------------------------------------------


@click.command(context_settings=NEGATIVE_NUMBERS)
@_message
@common_options
def signal_command(id_: str, name: str, arguments: tuple[str, ...], kwargs: str | None, db: str | None) -> None:
    """Send the signal NAME to the open run with this ID (a workflow id or a run id).

    Each JSON is one argument of the handler, by position: 7, '"yes"', '{"id": 7}'. When the command has ended, the
    signal is on disk, and the run will get it. Arguments that do not fit the handler are seen by the worker only, in
    its log: an update tells.
    """
    _check_name(name)
    encoded = message_arguments(arguments, kwargs)
    _tell(id_, db, lambda service, run_id: service.messages.signal(run_id, name, encoded), f"signal {one_line(name)}")


@click.command
@click.argument("id_", metavar="ID")
@_reason_option
@common_options
def cancel_command(id_: str, reason: str, db: str | None) -> None:
    """Ask the open run with this ID (a workflow id or a run id) to cancel: it may tidy up first.

    When the command has ended, the wish is on disk; `outlast tail ID` waits until the run has ended.
    """
    _tell(id_, db, lambda service, run_id: service.messages.cancel(run_id, reason), "the wish to cancel")


@click.command
@click.argument("id_", metavar="ID")
@_reason_option
@common_options
def terminate_command(id_: str, reason: str, db: str | None) -> None:
    """End the open run with this ID (a workflow id or a run id) without asking its code.

    When the command has ended, the wish is on disk. A run that no worker has is ended at once.
    """
    _tell(id_, db, lambda service, run_id: service.messages.terminate(run_id, reason), "the wish to terminate")


def _tell(id_: str, db: str | None, send: Callable[[Service, RunId], Coroutine[Any, Any, None]], what: str) -> None:
    async def at(service: Service) -> RunRow:
        row = await find(service, id_, db)
        try:
            await send(service, row.run_id)
        except RunClosed as error:
            raise CallError(f"{_title(row)} has ended already; nothing was sent") from error
        return row

    say(f"{what} was sent to {_title(look(db, at))}")


# --- what is answered -------------------------------------------------------------------------------------------------


@click.command(context_settings=NEGATIVE_NUMBERS)
@_message
@click.option(
    "--code",
    metavar="FILE.py:WORKFLOW",
    help="The run's workflow. Needed for a run that has ended: it is rebuilt here from its history, to be asked.",
)
@_timeout_option
@common_options
def query_command(
    id_: str,
    name: str,
    arguments: tuple[str, ...],
    kwargs: str | None,
    code: str | None,
    timeout_us: int,
    db: str | None,
) -> None:
    """Ask the run with this ID (a workflow id or a run id) the query NAME, and print its answer as JSON.

    Each JSON is one argument of the handler, by position: 7, '"yes"', '{"id": 7}'. An open run is asked where it
    lives, so a worker must host it. Nothing is recorded.
    """
    _check_name(name)
    encoded = message_arguments(arguments, kwargs)
    workflow = None if code is None else _load(code)

    async def at(service: Service) -> tuple[RunRow, Reply]:
        row = await find(service, id_, db)
        if row.status is not RunStatus.OPEN and workflow is None:
            raise CallError(
                f"{_title(row)} has ended: to be asked, it is rebuilt from its history. Say where its code is: "
                "--code FILE.py:WORKFLOW"
            )
        if workflow is not None and row.workflow not in (workflow.name, *workflow.aliases):
            raise CallError(f"{_title(row)} is a run of {row.workflow}, and --code names {workflow.name}")
        try:
            async with asyncio.timeout(timeout_us / SECOND_US):
                return row, await service.messages.query(row.run_id, name, encoded, _recall(workflow))
        except TimeoutError as error:
            raise CommandFailed(
                f"{_title(row)} gave no answer within {format_duration(timeout_us)}: {await _why(service, row.run_id)}"
            ) from error

    row, reply = look(db, at)
    _print(row, f"query {one_line(name)}", reply)


def _load(code: str) -> AnyDurable:
    from outlast.cli.loading import load_workflow  # most queries do without

    return load_workflow(code)


def _recall(workflow: AnyDurable | None) -> Any:
    if workflow is None:
        return None
    from outlast.sdk.handle import recall_with

    return recall_with(workflow)


@click.command(context_settings=NEGATIVE_NUMBERS)
@_message
@click.option("--update-id", metavar="ID", help="Your name for it: sent again under one id, it is done once.")
@_timeout_option
@common_options
def update_command(
    id_: str,
    name: str,
    arguments: tuple[str, ...],
    kwargs: str | None,
    update_id: str | None,
    timeout_us: int,
    db: str | None,
) -> None:
    """Ask the open run with this ID (a workflow id or a run id) for the update NAME, and print its result as JSON.

    Each JSON is one argument of the handler, by position: 7, '"yes"', '{"id": 7}'. With an --update-id that was used
    before, it waits for that update, or prints its recorded result, also when the run has ended.
    """
    _check_name(name)
    if update_id is not None and not update_id.strip():
        raise CallError("--update-id must be some text")
    message_id = MessageId(update_id or SystemEntropy().token())
    again = f"the same command with --update-id {message_id} waits for it again"
    encoded = message_arguments(arguments, kwargs)

    async def at(service: Service) -> tuple[RunRow, Reply]:
        row = await find(service, id_, db)
        try:
            async with asyncio.timeout(timeout_us / SECOND_US):
                return row, await service.messages.update(row.run_id, message_id, name, encoded, final=True)
        except TimeoutError as error:
            why = await _why(service, row.run_id, message_id)
            raise CommandFailed(
                f"update {one_line(name)} of {_title(row)} is not done after {format_duration(timeout_us)}: {why}; "
                f"{again}"
            ) from error
        except asyncio.CancelledError:
            say(again)
            raise

    row, reply = look(db, at)
    _print(row, f"update {one_line(name)}", reply)


def _check_name(name: str) -> None:
    if not name.strip():
        raise CallError("NAME is empty: it is that of the handler, such as decide")


async def _why(service: Service, run_id: RunId, message_id: MessageId | None = None) -> str:
    """Why a run may be silent, as far as the database tells."""
    sight = await see(service, await service.find_run(run_id))
    waiting = waits_for_a_worker(sight)
    if waiting is not None:
        return f"the run waits {waiting} (see `outlast worker`)"
    for item in sight.history:
        if isinstance(item.event, WorkflowExecutionUpdateAccepted) and item.event.message_id == message_id:
            return "the run has accepted it, and its handler is at work"
    return "a worker has the run, and may be busy or blocked: its log tells"


def _print(row: RunRow, what: str, reply: Reply) -> None:
    if isinstance(reply, Failed | Refused):
        from outlast.sdk.failures import message_failed

        error = message_failed(reply.failure)
        if isinstance(error, UsageError):  # no such handler, or arguments that do not fit it
            raise CallError(f"{what} of {_title(row)}: {error}")
        first, *causes = failure_chain(reply.failure)
        verb = "was refused" if isinstance(reply, Refused) else "failed"
        raise CommandFailed("\n".join([f"{what} of {_title(row)} {verb}: {first}", *causes]))
    assert isinstance(reply, Answered)
    if reply.result.encoding != JSON:
        raise CommandFailed(f"the result is written as {one_line(reply.result.encoding, 40)!r}, not as JSON")
    click.echo(reply.result.to_bytes().decode())


def _title(row: RunRow) -> str:
    return one_line(f"{row.workflow}/{row.workflow_id}", 1_000)
