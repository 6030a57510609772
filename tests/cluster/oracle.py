"""The oracle: holds what really happened against what the database says.

Theory of operation
===================
Two records are independent of each other: the marks that attempts left in a file while they ran, and the histories.
For every run the oracle checks that its history keeps the invariants (a second set of books does that), that it is
complete, and that it agrees with the marks:

- an attempt with one number begins at most once, anywhere, and ends at most once, where it began, after it began;
- an attempt whose success or failure is recorded did begin and end so, exactly once;
- nothing ran that is not recorded: each beginning belongs to an attempt that the history says failed, was lost, or
  brought the result. So what is recorded as completed never ran again, neither under its number nor a later one;
- an attempt that is recorded as lost may have run or not. It may even begin late, in a process that was stopped
  between its commit and the effect of that, and nowhere else.

And the database must be clean: exactly the runs that were started, none of them open, no message and no task left.

Only what the user is promised is checked, so nothing here depends on how nodes share the work.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.marks import Mark, read_marks
from outlast import Client
from outlast.engine.invariants import check_history
from outlast.model.events import (
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityCompleted,
    ActivityScheduled,
    HistoryEvent,
    WorkflowExecutionCompleted,
    decode_events,
)
from outlast.model.ids import RunId
from outlast.store.api import JournalRow, RunFilter, RunRow, RunStatus

BATCH = 200
"""Histories that are read at a time."""

COMPLETED = "completed"
FAILED = "failed"
LOST = "lost"

Fates = dict[tuple[str, int], str]
"""What the histories say of each attempt: by idempotency key and number."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, for tests that also want to see that something happened at all."""

    runs: int
    completed: int
    failed: int
    lost: int
    late: int
    """Lost attempts that began after the one that brought the result had ended."""


async def judge(client: Client, marks: Path, workflow_ids: Collection[str], stopped: Collection[int] = ()) -> Verdict:
    """Check everything. `stopped`: processes that were stopped for a while with SIGSTOP."""
    rows = await _check_database(client, workflow_ids)
    fates: Fates = {}
    for start in range(0, len(rows), BATCH):
        run_ids = [row.run_id for row in rows[start : start + BATCH]]
        histories = await client.service.store.histories(run_ids)
        for run_id in run_ids:
            _check_run(run_id, events_of(histories[run_id]), fates)
    late = check_marks(read_marks(marks), fates, stopped)
    count = list(fates.values()).count
    return Verdict(len(rows), count(COMPLETED), count(FAILED), count(LOST), late)


async def _check_database(client: Client, workflow_ids: Collection[str]) -> Sequence[RunRow]:
    store, namespace = client.service.store, client.service.namespace
    rows = await store.runs(RunFilter(namespace, limit=len(workflow_ids) + 1))
    assert sorted(row.workflow_id for row in rows) == sorted(workflow_ids), "each was started once"
    unfinished = [row for row in rows if row.status is not RunStatus.COMPLETED]
    assert unfinished == []
    run_ids = [row.run_id for row in rows]
    for start in range(0, len(run_ids), BATCH):
        assert await store.mail_for(run_ids[start : start + BATCH]) == []
        assert await store.tasks_of(run_ids[start : start + BATCH]) == {}
    return rows


def events_of(rows: Sequence[JournalRow]) -> list[HistoryEvent]:
    return [
        HistoryEvent(row.first_event + index, row.at_us, event)
        for row in rows
        for index, event in enumerate(decode_events(row.events))
    ]


def _check_run(run_id: RunId, history: Sequence[HistoryEvent], fates: Fates) -> None:
    """The history by itself. What it says of attempts goes into `fates`."""
    check_history(history)
    assert isinstance(history[-1].event, WorkflowExecutionCompleted), run_id
    scheduled: set[str] = set()
    completed: set[str] = set()
    for item in history:
        match item.event:
            case ActivityScheduled(activity_id=activity_id):
                scheduled.add(activity_id)
            case ActivityCompleted(activity_id=activity_id, attempt=attempt):
                completed.add(activity_id)
                fates[f"{run_id}/{activity_id}", attempt] = COMPLETED
            case ActivityAttemptFailed(activity_id=activity_id, attempt=attempt):
                fates[f"{run_id}/{activity_id}", attempt] = FAILED
            case ActivityAttemptLost(activity_id=activity_id, attempt=attempt):
                fates[f"{run_id}/{activity_id}", attempt] = LOST
            case _:
                pass
    assert completed == scheduled, f"run {run_id} has completed without waiting for its activities"


def check_marks(marks: Sequence[Mark], fates: Fates, stopped: Collection[int]) -> int:
    begins: dict[tuple[str, int], Mark] = {}
    ends: dict[tuple[str, int], Mark] = {}
    for mark in marks:
        name = mark.key, mark.attempt
        if mark.phase == "begin":
            assert name not in begins, f"it began twice: {begins[name]}, {mark}"
            begins[name] = mark
        else:
            assert name not in ends, f"it ended twice: {ends[name]}, {mark}"
            assert name in begins, f"it ended but never began: {mark}"
            assert begins[name].pid == mark.pid, f"it ended elsewhere: {begins[name]}, {mark}"
            ends[name] = mark
    for name, begin in begins.items():
        assert name in fates, f"it ran, but the history knows nothing of it: {begin}"
    for name, fate in fates.items():
        if fate != LOST:
            phase = {COMPLETED: "end", FAILED: "fail"}[fate]
            assert name in begins, f"recorded as {fate}, but it never ran: {name}"
            assert name in ends, f"recorded as {fate}, but it never came to its end: {name}"
            assert ends[name].phase == phase, f"recorded as {fate}: {ends[name]}"
    return _check_late(begins, ends, fates, stopped)


def _check_late(
    begins: dict[tuple[str, int], Mark], ends: dict[tuple[str, int], Mark], fates: Fates, stopped: Collection[int]
) -> int:
    """Attempts that began when the activity had been done already."""
    done_at = {key: ends[key, attempt].place for (key, attempt), fate in fates.items() if fate == COMPLETED}
    late = [mark for mark in begins.values() if mark.place > done_at.get(mark.key, mark.place)]
    for mark in late:
        assert mark.pid in stopped, f"it began after the activity was done, in a process that was never stopped: {mark}"
    return len(late)
