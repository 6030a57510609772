"""`outlast list`: a table of runs. Must answer at once with a hundred thousand runs in the file."""

from __future__ import annotations

import click
import msgspec
from msgspec import Struct

from outlast.cli.errors import say
from outlast.cli.opening import look
from outlast.cli.options import common_options
from outlast.cli.showing import STATUS_WORDS
from outlast.cli.texts import error_text, failure_text, one_line
from outlast.cli.times import rounded_us, to_the_microsecond
from outlast.engine.run import RunState
from outlast.model.durations import format_duration
from outlast.model.events import EVENT_FORMAT, WorkflowExecutionFailed, decode_events
from outlast.model.ids import RunId
from outlast.runtime.service import Service
from outlast.store.api import JournalRow, RunFilter, RunRow, RunStatus

EVENTS_READ = 20_000
"""Where a run stands is read from its history. So many events are read for one list (some 50 ms); runs beyond that
are listed without their step."""

STEP_LIMIT = 48

STATUSES = {word.lower(): status for status, word in STATUS_WORDS.items()}


class Entry(Struct, frozen=True, omit_defaults=False):
    """One run, as `-o json` prints it."""

    workflow: str
    workflow_id: str
    run_id: str
    status: str
    step: str | None
    """What an open run waits for."""
    error: str | None
    """How a run failed, or why the last turn of an open one did."""
    queue: str
    started_at: str
    closed_at: str | None
    duration_us: int
    events: int


@click.command
@click.option("--status", type=click.Choice(list(STATUSES), case_sensitive=False), help="Only runs with this status.")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many runs.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@common_options
def list_command(status: str | None, workflow: str | None, limit: int, output: str, db: str | None) -> None:
    """List runs, newest first. Times are UTC."""

    async def at(service: Service) -> list[Entry]:
        wanted = RunFilter(
            service.namespace,
            workflow=workflow,
            status=None if status is None else STATUSES[status.lower()],
            limit=limit + 1,
        )
        rows = await service.runs(wanted)
        return await _entries(service, rows)

    entries = look(db, at)
    shown = entries[:limit]
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return
    if shown:
        click.echo("\n".join(table([_cells(entry) for entry in shown])))
    else:
        say("no runs" if status is workflow is None else "no such runs")
    if len(entries) > limit:
        say(f"the {limit} newest are shown; --limit N shows more")


async def _entries(service: Service, rows: list[RunRow]) -> list[Entry]:
    now_us = service.clock.now_us()
    budget = EVENTS_READ
    wanted: list[RunId] = []
    for row in rows:
        if row.format > EVENT_FORMAT:  # of a newer release: nothing but its row can be read
            continue
        if row.status in (RunStatus.OPEN, RunStatus.FAILED) and row.next_event <= budget:
            budget -= row.next_event
            wanted.append(row.run_id)
    histories = await service.store.histories(wanted)
    return [_entry(row, histories.get(row.run_id, []), now_us) for row in rows]


def _entry(row: RunRow, history: list[JournalRow], now_us: int) -> Entry:
    state = RunState(row.run_id)
    for turn in history:
        if turn.first_event >= row.next_event:  # committed after the row was read
            break
        for event in decode_events(turn.events):
            state.apply(event, turn.at_us)
    error = None if row.error is None else error_text(row.error)
    if isinstance(state.outcome, WorkflowExecutionFailed):
        error = failure_text(state.outcome.failure)
    closed_at_us = row.closed_at_us
    return Entry(
        workflow=row.workflow,
        workflow_id=row.workflow_id,
        run_id=row.run_id,
        status=STATUS_WORDS[row.status].lower(),
        step=state.step(),
        error=error,
        queue=row.queue,
        started_at=to_the_microsecond(row.started_at_us),
        closed_at=None if closed_at_us is None else to_the_microsecond(closed_at_us),
        duration_us=max(0, (now_us if closed_at_us is None else closed_at_us) - row.started_at_us),
        events=row.next_event - 1,
    )


def _cells(entry: Entry) -> list[str]:
    at = one_line(entry.error if entry.error is not None else entry.step or "", STEP_LIMIT)
    # To the second: the fraction is cut off, not rounded.
    started = f"{entry.started_at[:19]}Z"
    return [
        one_line(entry.workflow),
        one_line(entry.workflow_id),
        entry.status.capitalize(),
        at,
        started,
        format_duration(rounded_us(entry.duration_us)),
    ]


def table(rows: list[list[str]]) -> list[str]:
    """Columns side by side, under their names. Own lines of code: importing a library for it takes longer than all
    the rest of the command."""
    rows = [["WORKFLOW", "ID", "STATUS", "STEP OR ERROR", "STARTED", "DURATION"], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
