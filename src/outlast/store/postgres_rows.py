"""What goes into the SQL statements of the PostgreSQL store, and what comes out of them, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from outlast.model.ids import ActivityId, MessageId, RunId
from outlast.store.api import Commit, IdReuse, JournalRow, Mail, RunRow, RunStatus, Task
from outlast.store.contract import as_text

Values: TypeAlias = list[Any]
"""Parameters of one statement."""

Record: TypeAlias = Mapping[str, Any]

_encode_json = msgspec.json.Encoder().encode

# --- in ---------------------------------------------------------------------------------------------------------


def turn_values(turns: Sequence[Commit]) -> Values:
    """For `commit_turns_1`: one list per column, NULL for columns that no commit of this batch needs."""
    fences = [commit.fence for commit in turns]
    consumed = [(commit.run_id, mail_id) for commit in turns for mail_id in commit.consume]
    return [
        [commit.run_id for commit in turns],
        [None if fence is None else fence.owner for fence in fences],
        [None if fence is None else fence.next_event for fence in fences],
        [commit.count for commit in turns],
        [commit.turn_id for commit in turns],
        [commit.at_us for commit in turns],
        [as_text(commit.events, f"the events of run {commit.run_id}") for commit in turns],
        *_leaving(turns),
        [run_id for run_id, _ in consumed] or None,
        [mail_id for _, mail_id in consumed] or None,
        _task_changes(turns),
        *_replies(turns),
    ]


def _leaving(turns: Sequence[Commit]) -> Values:
    """statuses, wakes, errors"""
    if all(commit.status is None and commit.release is None for commit in turns):
        return [None, None, None]
    releases = [commit.release for commit in turns]
    return [
        [
            RunStatus.OPEN.value
            if commit.release is not None
            else None
            if commit.status is None
            else commit.status.value
            for commit in turns
        ],
        [None if release is None else release.wake_at_us for release in releases],
        [None if release is None else release.error for release in releases],
    ]


def start_values(starts: Sequence[Commit]) -> Values:
    """For `start_runs_1`."""
    new = [commit.create for commit in starts if commit.create is not None]
    return [
        [commit.run_id for commit in starts],
        [run.owner for run in new],
        [commit.count for commit in starts],
        [commit.turn_id for commit in starts],
        [commit.at_us for commit in starts],
        [as_text(commit.events, f"the events of run {commit.run_id}") for commit in starts],
        [None if commit.status is None else commit.status.value for commit in starts],
        [run.wake_at_us for run in new],
        [run.namespace for run in new],
        [run.workflow_id for run in new],
        [run.workflow for run in new],
        [run.queue for run in new],
        [run.priority for run in new],
        [run.kind for run in new],
        [run.format for run in new],
        [run.id_reuse is IdReuse.NEVER for run in new],
        _task_changes(starts),
        *_mail_of(starts),
    ]


def _replies(turns: Sequence[Commit]) -> Values:
    """replied_by, replied_to, replied_at, replies"""
    if not any(commit.replies for commit in turns):
        return [None, None, None, None]
    replies = [(commit, reply) for commit in turns for reply in commit.replies]
    return [
        [commit.run_id for commit, _ in replies],
        [reply.message_id for _, reply in replies],
        [commit.at_us for commit, _ in replies],
        [as_text(reply.body, f"the reply to message {reply.message_id}") for _, reply in replies],
    ]


def _mail_of(starts: Sequence[Commit]) -> Values:
    """mail_to, mail_ids, mail_bodies"""
    mail = [
        (commit.run_id, message_id, as_text(body, f"message {message_id}"))
        for commit in starts
        if commit.create is not None
        for message_id, body in commit.create.mail
    ]
    return [[each[column] for each in mail] for column in range(3)] if mail else [None, None, None]


def _task_changes(commits: Iterable[Commit]) -> str | None:
    """A run that closes loses its tasks anyway."""
    changes = [
        {
            "run_id": commit.run_id,
            "drop": commit.drop_tasks,
            "add": [
                {
                    "activity_id": task.activity_id,
                    "activity": task.activity,
                    "queue": task.queue,
                    "attempt": task.attempt,
                    "visible_at_us": task.visible_at_us,
                    "body": as_text(task.body, f"the task of activity {task.activity_id}"),
                }
                for task in commit.add_tasks
            ],
        }
        for commit in commits
        if (commit.drop_tasks or commit.add_tasks) and commit.status is None
    ]
    return _encode_json(changes).decode() if changes else None


# --- out --------------------------------------------------------------------------------------------------------


def run_row(record: Record) -> RunRow:
    return RunRow(
        run_id=RunId(record["run_id"]),
        namespace=record["namespace"],
        workflow_id=record["workflow_id"],
        workflow=record["workflow"],
        queue=record["queue"],
        status=RunStatus(record["status"]),
        owner=record["owner"],
        next_event=record["next_event"],
        turn_id=record["turn_id"],
        wake_at_us=record["wake_at_us"],
        claims=record["claims"],
        priority=record["priority"],
        kind=record["kind"],
        format=record["format"],
        started_at_us=record["started_at_us"],
        closed_at_us=record["closed_at_us"],
        error=record["error"],
    )


def journal_row(record: Record) -> JournalRow:
    return JournalRow(
        RunId(record["run_id"]),
        record["first_event"],
        record["count"],
        record["turn_id"],
        record["at_us"],
        record["events"].encode(),
    )


def mail(record: Record) -> Mail:
    return Mail(
        record["mail_id"],
        RunId(record["run_id"]),
        MessageId(record["message_id"]),
        record["at_us"],
        record["body"].encode(),
    )


def task(record: Record) -> Task:
    return Task(
        RunId(record["run_id"]),
        ActivityId(record["activity_id"]),
        record["activity"],
        record["queue"],
        record["attempt"],
        record["body"].encode(),
        record["lost"],
    )
