"""The reading half of the SQLite store: one connection, and what is read through it.

Each method is one statement, so it sees one state of the database: the last one that was committed before the call.
It neither waits for writers nor keeps them waiting.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from outlast.model.ids import ActivityId, MessageId, Namespace, NodeId, RunId, WorkflowId
from outlast.store import sqlite_sql as sql
from outlast.store.api import Claim, JournalRow, Mail, NodeRow, RunFilter, RunRow, RunStatus, TaskClaim
from outlast.store.liveness import LockFile
from outlast.store.sqlite_claims import look_for_runs, look_for_tasks
from outlast.store.sqlite_errors import translated
from outlast.store.sqlite_rows import (
    Value,
    as_json,
    decode_journal,
    decode_mail,
    decode_nodes,
    decode_replies,
    decode_runs,
    decode_task_ids,
)


class SqliteReader:
    """One connection to the file. Not to be used by two threads at once."""

    def __init__(self, db: sqlite3.Connection, path: str, lock_file: LockFile | None) -> None:
        self._db = db
        self._path = path
        self._lock_file = lock_file
        db.execute("PRAGMA query_only = 1")

    def close(self) -> None:
        """Idempotent."""
        self._db.close()

    def backlog(self, namespace: Namespace, queue: str, now_us: int, limit: int) -> int:
        wanted: dict[str, Value] = {"namespace": namespace, "queue": queue, "now_us": now_us, "limit": limit}
        return int(self._read(sql.BACKLOG, wanted))

    def finds_runs(self, claim: Claim) -> bool:
        """Whether there is something to claim."""
        return self._read(*look_for_runs(claim)) == "1"

    def finds_tasks(self, claim: TaskClaim) -> bool:
        return self._read(*look_for_tasks(claim)) == "1"

    def run(self, run_id: RunId) -> RunRow | None:
        return _first(decode_runs(self._read(sql.RUN, (run_id,))))

    def find(self, namespace: Namespace, workflow_id: WorkflowId) -> RunRow | None:
        return _first(decode_runs(self._read(sql.FIND, {"namespace": namespace, "workflow_id": workflow_id})))

    def runs(self, wanted: RunFilter) -> list[RunRow]:
        conditions = [sql.FILTER_NAMESPACE]
        if wanted.workflow_id is not None:
            conditions.append(sql.FILTER_WORKFLOW_ID)
        if wanted.workflow is not None:
            conditions.append(sql.FILTER_WORKFLOW)
        if wanted.status is not None:
            conditions.append(sql.FILTER_OPEN if wanted.status is RunStatus.OPEN else sql.FILTER_CLOSED_AS)
        if wanted.owner is not None:
            conditions.append(sql.FILTER_OWNER)
        if wanted.before is not None:
            conditions.append(sql.FILTER_BEFORE)
        values: dict[str, Value] = {
            "namespace": wanted.namespace,
            "workflow_id": wanted.workflow_id,
            "workflow": wanted.workflow,
            "status": None if wanted.status is None else wanted.status.value,
            "owner": wanted.owner,
            "before": wanted.before,
            "limit": wanted.limit,
        }
        return decode_runs(self._read(sql.list_runs(conditions), values))

    def history(self, run_id: RunId, from_event: int = 1) -> list[JournalRow]:
        return decode_journal(self._read(sql.HISTORY, {"run_id": run_id, "from_event": from_event}))

    def histories(self, run_ids: Sequence[RunId]) -> dict[RunId, list[JournalRow]]:
        found: dict[RunId, list[JournalRow]] = {run_id: [] for run_id in run_ids}
        for row in decode_journal(self._read(sql.HISTORIES, (as_json(list(found)),))):
            found[row.run_id].append(row)
        return found

    def closed_of(self, run_ids: Sequence[RunId]) -> list[RunRow]:
        return decode_runs(self._read(sql.CLOSED_OF, (as_json(list(run_ids)),)))

    def tasks_of(self, run_ids: Sequence[RunId]) -> dict[RunId, list[ActivityId]]:
        found: dict[RunId, list[ActivityId]] = {}
        for run_id, activity_id in decode_task_ids(self._read(sql.TASKS_OF, (as_json(list(run_ids)),))):
            found.setdefault(run_id, []).append(activity_id)
        return found

    def mail_of(self, node: NodeId, limit: int) -> list[Mail]:
        return decode_mail(self._read(sql.MAIL_OF, (node, limit)))

    def mail_for(self, run_ids: Sequence[RunId]) -> list[Mail]:
        return decode_mail(self._read(sql.MAIL_FOR, (as_json(list(run_ids)),)))

    def replies(self, message_ids: Sequence[MessageId]) -> dict[MessageId, bytes]:
        found = decode_replies(self._read(sql.REPLIES, (as_json(list(message_ids)),)))
        return {message_id: body.encode() for message_id, body in found}

    def nodes(self) -> list[NodeRow]:
        return [
            NodeRow(node, name, alive, counter, self._is_gone(node, locked))
            for node, name, alive, counter, locked in decode_nodes(self._read(sql.NODES, ()))
        ]

    def _is_gone(self, node: NodeId, locked: int | None) -> bool:
        """`locked`: the inode of the file in which the node locked its byte. Another file proves nothing."""
        return self._lock_file is not None and locked == self._lock_file.inode and self._lock_file.is_gone(node)

    def _read(self, statement: str, values: Sequence[Value] | dict[str, Value]) -> str:
        """All SELECTs of ours give one row with one value."""
        try:
            (text,) = self._db.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise translated(error, self._path) from error
        assert isinstance(text, str)
        return text


def _first(runs: list[RunRow]) -> RunRow | None:
    return runs[0] if runs else None
