"""`outlast run`: one workflow, in this process, to its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import click

from outlast.cli.arguments import NEGATIVE_NUMBERS, json_arguments, parse_json
from outlast.cli.errors import CommandFailed, say
from outlast.cli.loading import load_workflow
from outlast.cli.logs import log_to_stderr
from outlast.cli.opening import opened
from outlast.cli.options import common_options
from outlast.cli.stopping import on_first_signal
from outlast.cli.texts import failure_chain
from outlast.model.errors import OutlastError, OutlastInterrupt, RunNotFound, WorkflowFailed
from outlast.model.ids import WorkflowId
from outlast.runtime.ports import SystemEntropy
from outlast.sdk.blocking import run_to_end
from outlast.sdk.registry import AnyDurable
from outlast.store.api import RunRow


@click.command(context_settings=NEGATIVE_NUMBERS)
@click.argument("target", metavar="FILE.py:WORKFLOW")
@json_arguments
@click.option("--id", "workflow_id", metavar="ID", help="Your name for the run. Default: a random one.")
@common_options
@click.pass_obj
def run_command(
    debug: bool,
    target: str,
    arguments: tuple[str, ...],
    kwargs: str | None,
    workflow_id: str | None,
    db: str | None,
) -> None:
    """Run a workflow to its end in this process, and print its result as JSON.

    Each JSON is one argument of the workflow, by position: 7, '"order-1"', '{"id": 7}'. Run again with the same --id,
    it goes on where it was, or prints the recorded result. A module can be named instead of a file: shop.orders:order.
    """
    workflow = load_workflow(target)
    args, keywords = read_arguments(workflow, arguments, kwargs)
    id_ = workflow_id or f"{workflow.name}-{SystemEntropy().token()[:8]}"
    log_to_stderr("WARNING", tracebacks=debug, leave_out=f"run {workflow.name}/{id_} is parked")
    if workflow_id is None:
        say(f"running {workflow.name}/{id_}")
    try:
        result = asyncio.run(_until_interrupted(run_to_end(workflow, args, keywords, db, id_)))
    except asyncio.CancelledError:
        say(f"what is done is recorded; the same command with --id {id_} goes on from there")
        raise KeyboardInterrupt from None
    except WorkflowFailed as error:
        raise CommandFailed("\n".join(failure_report(workflow, id_, error))) from error
    except (OutlastInterrupt, Exception) as error:
        raise _explained(error, id_, db) from error
    click.echo(workflow.plan.encode_result(result).to_bytes().decode())


async def _until_interrupted(work: Coroutine[Any, Any, Any]) -> Any:
    task = asyncio.ensure_future(work)
    with on_first_signal(task.cancel, signal.SIGINT):
        return await task


def read_arguments(
    workflow: AnyDurable, arguments: tuple[str, ...], kwargs: str | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The workflow's arguments as the values that it takes. Nothing has been opened yet."""
    values = parse_json(arguments, kwargs)
    return workflow.plan.decode_arguments(workflow.plan.encode_json_arguments(values))


def failure_report(workflow: AnyDurable, id_: str, error: WorkflowFailed) -> list[str]:
    if error.failure is None:
        return [str(error)]
    return [f"workflow {workflow.name}/{id_} failed", *(f"  {line}" for line in failure_chain(error.failure))]


def _explained(error: BaseException, id_: str, db: str | None) -> BaseException:
    """If the run stands in the database with a failed turn, say that it stays there; else the error as it is."""
    if isinstance(error, click.ClickException):
        return error
    try:
        row = asyncio.run(_look(id_, db))
    except (OutlastError, OSError):
        return error
    if row is None or row.error is None:
        return error
    kind = type(error).__name__
    return CommandFailed(
        f"the run cannot go on: {kind}: {error}\n"
        f"  What it has done is recorded. Put the code right and run it again with --id {id_}."
    )


async def _look(id_: str, db: str | None) -> RunRow | None:
    async with opened(db) as service:
        try:
            return await service.find(WorkflowId(id_))
        except RunNotFound:
            return None
