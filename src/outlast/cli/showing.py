"""`outlast show` and `outlast history`: one run, to be read by people, and by programs."""

from __future__ import annotations

from typing import NamedTuple

import click
import msgspec

from outlast.cli.narration import narrate
from outlast.cli.opening import find, look
from outlast.cli.options import common_options
from outlast.cli.texts import error_text, failure_chain, one_line
from outlast.cli.times import on_the_clock, rounded_us, to_the_microsecond, to_the_second
from outlast.engine.run import RunState
from outlast.model.durations import format_duration
from outlast.model.events import HistoryEvent, WorkflowExecutionFailed
from outlast.model.inputs import decode_message
from outlast.runtime.service import Service
from outlast.store.api import Mail, NodeRow, RunRow, RunStatus

RULE = "─" * 37

STATUS_WORDS = {
    RunStatus.OPEN: "Running",
    RunStatus.COMPLETED: "Completed",
    RunStatus.FAILED: "Failed",
    RunStatus.CANCELLED: "Cancelled",
    RunStatus.TERMINATED: "Terminated",
}


class Sight(NamedTuple):
    """Everything that is shown of a run."""

    row: RunRow
    history: list[HistoryEvent]
    mail: list[Mail]
    nodes: list[NodeRow]
    now_us: int


@click.command
@click.argument("id_", metavar="ID")
@common_options
def show_command(id_: str, db: str | None) -> None:
    """Show the run with this ID: where it stands, and everything that happened so far. Times are UTC.

    ID is the workflow id (then the open run, else the last one), or a run id.
    """

    async def at(service: Service) -> Sight:
        return await see(service, await find(service, id_, db))

    click.echo("\n".join(describe(look(db, at))))


async def see(service: Service, row: RunRow) -> Sight:
    mail = await service.store.mail_for([row.run_id])
    nodes = await service.store.nodes() if row.status is RunStatus.OPEN else []
    # Up to the row, so that what is shown was all true at one moment; the run may have gone on since.
    history = (await service.history(row.run_id))[: row.next_event - 1]
    return Sight(row, history, mail, nodes, service.clock.now_us())


def describe(sight: Sight) -> list[str]:
    row, history = sight.row, sight.history
    state = RunState(row.run_id)
    for item in history:
        state.apply(item.event, item.at_us)
    lines = [
        one_line(f"Workflow: {row.workflow}/{row.workflow_id}", 1_000),
        f"Status: {STATUS_WORDS[row.status]}{_remark(row, state)}",
        f"Started: {to_the_second(row.started_at_us)}",
    ]
    if row.closed_at_us is not None:
        took = format_duration(rounded_us(row.closed_at_us - row.started_at_us))
        lines.append(f"Ended: {to_the_second(row.closed_at_us)} (after {took})")
    elif row.error is not None:
        lines += _parked(row)
    elif (waiting := waits_for_a_worker(sight)) is not None:
        lines.append(f"Waiting: {waiting}")
    lines += [f"Message: {type(decode_message(mail.body)).__name__} (not yet taken)" for mail in sight.mail]
    lines.append(RULE)
    lines += [f"[{on_the_clock(line.at_us, row.started_at_us)}] {line.text}" for line in narrate(history)]
    if isinstance(state.outcome, WorkflowExecutionFailed):
        lines += [RULE, *failure_chain(state.outcome.failure)]
    return lines


def _remark(row: RunRow, state: RunState) -> str:
    if row.status is not RunStatus.OPEN:
        return ""
    if row.error is not None:
        return " (parked: its last turn failed)"
    step = state.step()
    return "" if step is None else f" (step: {one_line(step)})"


def _parked(row: RunRow) -> list[str]:
    assert row.error is not None
    first, *more = error_text(row.error).splitlines() or [""]
    lines = [f"Error: {one_line(first, 400)}", *(f"  {one_line(line, 400)}" for line in more)]
    if row.wake_at_us is not None:
        lines.append(f"Tried again: at {to_the_second(row.wake_at_us)}, and when a worker is started")
    return lines


def waits_for_a_worker(sight: Sight) -> str | None:
    """What to tell of a run that could go on if somebody hosted it. None: it is hosted, or has nothing to do yet."""
    row = sight.row
    wanted = f"for a worker that hosts {row.workflow} on queue {row.queue}"
    if row.owner is not None:
        owner = next((node for node in sight.nodes if node.node_id == row.owner), None)
        if owner is not None and owner.alive and not owner.gone:
            return None
        return f"{wanted}; the one that had it ({'?' if owner is None else one_line(owner.name)}) has ended"
    if sight.mail or (row.wake_at_us is not None and row.wake_at_us <= sight.now_us):
        return wanted
    if any(node.alive and not node.gone for node in sight.nodes):
        return None
    due = "when it gets a message" if row.wake_at_us is None else f"at {to_the_second(row.wake_at_us)}"
    return f"{wanted}; none is running, and it has to go on {due}"


@click.command
@click.argument("id_", metavar="ID")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="text: one event per line. json: an array of objects with position, at and event.",
)
@common_options
def history_command(id_: str, output: str, db: str | None) -> None:
    """Print the recorded history of the run with this ID (a workflow id or a run id), unabridged. Times are UTC."""

    async def at(service: Service) -> list[HistoryEvent]:
        row = await find(service, id_, db)
        return await service.history(row.run_id)

    history = look(db, at)
    click.echo(history_json(history) if output == "json" else history_text(history))


def history_json(history: list[HistoryEvent]) -> str:
    """The published form. One event per line, so that two histories can be compared by line."""
    items = [
        msgspec.json.encode({"position": item.position, "at": to_the_microsecond(item.at_us), "event": item.event})
        for item in history
    ]
    return "[\n" + ",\n".join(item.decode() for item in items) + "\n]"


def history_text(history: list[HistoryEvent]) -> str:
    width = len(str(len(history)))
    return "\n".join(
        f"{item.position:>{width}}  {to_the_microsecond(item.at_us)}  {msgspec.json.encode(item.event).decode()}"
        for item in history
    )
