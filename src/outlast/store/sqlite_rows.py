"""What goes into the SQL statements of the SQLite store, and what comes out of them, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from outlast.model.ids import ActivityId, MessageId, NodeId, RunId, TurnId
from outlast.store.api import Commit, JournalRow, Mail, NewMail, NewTask, RunRow, RunStatus, Task
from outlast.store.contract import as_text
from outlast.store.sqlite_procedures import MESSAGE_COLUMNS, OUTGOING_COLUMNS, TURN_COLUMNS

Value: TypeAlias = int | str | None
Row: TypeAlias = tuple[Value, ...]

Candidate: TypeAlias = tuple[RunId, int, int, NodeId | None]
"""A run that could be claimed: run_id, priority, due_us, owner."""

# --- in ---------------------------------------------------------------------------------------------------------

NO_TURN: Row = (None,) * len(TURN_COLUMNS)
NO_MESSAGES: Row = (None,) * len(MESSAGE_COLUMNS)
NO_MAIL: Row = (None,) * len(OUTGOING_COLUMNS)

_encode_json = msgspec.json.Encoder().encode


def as_json(value: object) -> str:
    return _encode_json(value).decode()


def turn_row(commit: Commit) -> Row:
    """With the columns for messages only if it has any."""
    events = as_text(commit.events, f"the events of run {commit.run_id}")
    status = None if commit.status is None else commit.status.value
    if (create := commit.create) is not None:
        messages: Row = ()
        if create.mail:
            messages = (_messages(create.mail, "message"), None)
            create = replace(create, mail=())
        return (
            *(commit.run_id, create.owner, 1, commit.count, commit.turn_id, commit.at_us, events),
            *(status, create.wake_at_us, None, None, *_tasks(commit), as_json(create), *messages),
        )
    fence = commit.fence
    assert fence is not None
    wake_at_us, error = None, None
    if (release := commit.release) is not None:
        status, wake_at_us, error = RunStatus.OPEN.value, release.wake_at_us, release.error
    consume = as_json(commit.consume) if commit.consume else None
    row: Row = (
        *(commit.run_id, fence.owner, fence.next_event, commit.count, commit.turn_id, commit.at_us, events),
        *(status, wake_at_us, error, consume, *_tasks(commit), None),
    )
    if not commit.replies:
        return row
    replies = ((reply.message_id, reply.body) for reply in commit.replies)
    return (*row, None, _messages(replies, "the reply to message"))


def with_messages(rows: Sequence[Row]) -> list[Row]:
    """All of them with the columns for messages."""
    return [row if len(row) > len(NO_TURN) else row + NO_MESSAGES for row in rows]


def _messages(messages: Iterable[tuple[MessageId, bytes]], what: str) -> str:
    return as_json([(message_id, as_text(body, f"{what} {message_id}")) for message_id, body in messages])


def _tasks(commit: Commit) -> tuple[str | None, str | None]:
    """drop_tasks and add_tasks. A run that closes loses its tasks anyway."""
    if commit.status is not None:
        return None, None
    dropped = as_json(commit.drop_tasks) if commit.drop_tasks else None
    added = as_json([_task(task) for task in commit.add_tasks]) if commit.add_tasks else None
    return dropped, added


def _task(task: NewTask) -> dict[str, Value]:
    return {
        "activity_id": task.activity_id,
        "activity": task.activity,
        "queue": task.queue,
        "attempt": task.attempt,
        "visible_at_us": task.visible_at_us,
        "body": as_text(task.body, f"the task of activity {task.activity_id}"),
    }


def mail_row(mail: NewMail) -> Row:
    body = as_text(mail.body, f"message {mail.message_id}")
    return (mail.run_id, mail.message_id, mail.at_us, body, mail.beyond_limit)


# --- out --------------------------------------------------------------------------------------------------------

decode_runs = msgspec.json.Decoder(list[RunRow]).decode
decode_candidates = msgspec.json.Decoder(list[Candidate]).decode
decode_nodes = msgspec.json.Decoder(list[tuple[NodeId, str, bool, int, int | None]], strict=False).decode
"""node_id, name, alive, counter, lock_file"""

decode_task_ids = msgspec.json.Decoder(list[tuple[RunId, ActivityId]]).decode

_decode_journal = msgspec.json.Decoder(list[tuple[RunId, int, int, TurnId | None, int, str]]).decode
_decode_mail = msgspec.json.Decoder(list[tuple[int, RunId, MessageId, int, str]]).decode
decode_replies = msgspec.json.Decoder(list[tuple[MessageId, str]]).decode
_decode_tasks = msgspec.json.Decoder(list[tuple[RunId, ActivityId, str, str, int, str, bool]], strict=False).decode


def decode_journal(text: str) -> list[JournalRow]:
    return [
        JournalRow(run_id, first_event, count, turn_id, at_us, events.encode())
        for run_id, first_event, count, turn_id, at_us, events in _decode_journal(text)
    ]


def decode_mail(text: str) -> list[Mail]:
    return [
        Mail(mail_id, run_id, message_id, at_us, body.encode())
        for mail_id, run_id, message_id, at_us, body in _decode_mail(text)
    ]


def decode_tasks(text: str) -> list[Task]:
    return [
        Task(run_id, activity_id, activity, queue, attempt, body.encode(), lost)
        for run_id, activity_id, activity, queue, attempt, body, lost in _decode_tasks(text)
    ]
