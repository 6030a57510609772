"""The PostgreSQL store: any number of processes on any number of machines, one database.

Theory of operation
===================
A call of this store is a statement; one that writes is a call of a function in the database, and its own transaction
(`migrations/postgres`). A batch of commits is one such call, with an array per column: one round trip and one fsync
for all of them, and the losers are told by name. So no transaction is ever open between two messages: a process that
stops or dies anywhere holds no lock, and nothing has to be rolled back.

Statements go over a few lines (`postgres_connection.py`). Two are for commits: while the server waits for the disk on
behalf of one batch, it works on the next. Each run is in one batch at a time, so batches that overtake each other
change nothing. The other lines are for the rest, so that claims and reading do not stand behind commits.

When a connection breaks while something is being written, the caller is told `CommitUnknown`, and the server may still
be at work on it: what is read a moment later may not yet be the last word. Doing the same again is: the fence, or the
unique index, waits for the other transaction, and then says what it came to.

Hints and the sign of life of nodes go over one more connection (`postgres_session.py`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from outlast.model.ids import ActivityId, MessageId, Namespace, NodeId, RunId, WorkflowId
from outlast.store import postgres_rows as rows
from outlast.store import postgres_sql as sql
from outlast.store.api import (
    MAILBOX_LIMIT,
    Answer,
    Claim,
    Claimed,
    Commit,
    JournalRow,
    Mail,
    NewMail,
    NodeRow,
    Release,
    RunFilter,
    RunRow,
    RunStatus,
    Sent,
    Task,
    TaskClaim,
)
from outlast.store.contract import as_text, check_batch, check_delivery
from outlast.store.home import Home
from outlast.store.postgres_connection import Line, close, connect, is_pooled, without_password
from outlast.store.postgres_migrate import check_postgres, migrate_postgres
from outlast.store.postgres_session import Session, Witness

COMMIT_LINES = 2
"""Measured: a second one lets the server work while it syncs; a third only makes the batches smaller."""

OTHER_LINES = 2

SOON_US = 1_000_000
"""A run that is given back and due within this time is told of; the others are found by polling."""

ENDS_S = 1.0
"""Who waits for ends, or for replies, asks several times in this time."""

_Result = TypeVar("_Result")


class PostgresStore:
    """The `Store` protocol on a PostgreSQL database, 14 or newer; also through PgBouncer.

    `create=False`: a database without our schema, or with an older one, is an error and is not changed.
    """

    def __init__(self, url: str, *, create: bool = True, mailbox_limit: int = MAILBOX_LIMIT) -> None:
        self._url = url
        self._where = without_password(url)
        self._create = create
        self._mailbox_limit = mailbox_limit
        self._client = f"outlast {secrets.token_hex(8)}"
        """How the server knows the connections of this store, and those of no other."""
        self._home = Home(self._where, "Connections", "database")
        self._commit_lines: list[Line] = []
        self._other_lines: list[Line] = []
        self._session: Session | None = None
        """None behind a pooler."""
        self._witness = Witness(self._changed)
        self._callbacks: list[Callable[[], None]] = []
        self._committing: set[asyncio.Task[list[Answer]]] = set()

    async def open(self) -> None:
        self._home.check_process()
        assert not self._home.is_open, "opened twice"
        connection = await connect(self._url, self._where, self._client, pooled=True)
        try:
            pooled = await is_pooled(connection)
            await (migrate_postgres if self._create else check_postgres)(connection, self._where)
        finally:
            await close(connection)
        if not pooled:
            session = Session(self._url, self._where, self._client, self._changed, self._do_without_session)
            await session.open()
            self._session = session
        self._commit_lines = [Line(self._url, self._where, self._client, pooled=pooled) for _ in range(COMMIT_LINES)]
        self._other_lines = [Line(self._url, self._where, self._client, pooled=pooled) for _ in range(OTHER_LINES)]
        self._home.open()

    async def close(self) -> None:
        """Its nodes are gone from now on."""
        self._home.check_process()
        if self._committing:
            await asyncio.wait(self._committing)
        for line in self._commit_lines + self._other_lines:
            await line.close()
        if self._session is not None:
            await self._session.close()

    def on_change(self, callback: Callable[[], None]) -> None:
        self._home.check_process()
        self._callbacks.append(callback)

    def _changed(self) -> None:
        for callback in self._callbacks:
            callback()

    @property
    def poll_s(self) -> float:
        """Hints come by NOTIFY, and looking costs statements; behind a pooler looking is all there is."""
        return 0.25 if self._session is None and self._home.is_open else 1.0

    async def now_us(self) -> int:
        [(now_us,)] = await self._read(sql.NOW_US)
        return int(now_us)

    # --- ways to the server -----------------------------------------------------------------------------------------

    async def _read(self, statement: str, *values: Any) -> list[Any]:
        self._home.check()
        return await _least_busy(self._other_lines).fetch(statement, values)

    async def _write(self, statement: str, *values: Any) -> list[Any]:
        self._home.check()
        return await _least_busy(self._other_lines).fetch(statement, values, writing=True)

    def _tell(self, *words: str) -> None:
        if self._session is not None and words:
            self._session.tell(*words)

    # --- nodes ------------------------------------------------------------------------------------------------------

    async def join(self, name: str) -> NodeId:
        session = self._session
        pid, started = (None, None) if session is None else (session.pid, session.started)
        [(node,)] = await self._write(sql.JOIN, name, self._client, pid, started)
        if session is not None:
            session.nodes.add(NodeId(node))
            if session.pid != pid:  # cut in the meantime
                await self._write(sql.REGISTER, [node], session.pid, session.started)
        return NodeId(node)

    async def heartbeat(self, node: NodeId) -> bool:
        session = self._session
        pid, started = (None, None) if session is None else (session.pid, session.started)
        return bool(await self._write(sql.HEARTBEAT, node, pid, started))

    async def nodes(self) -> list[NodeRow]:
        found: list[NodeRow] = []
        for record in await self._read(sql.NODES):
            node = NodeId(record["node_id"])
            seen = (record["counter"], record["backend_pid"], record["backend_start"])
            gone = self._witness.believes(node, seen, gone=record["gone"])
            found.append(NodeRow(node, record["name"], record["alive"], record["counter"], gone))
        self._witness.forget({row.node_id for row in found})
        return found

    async def _do_without_session(self, nodes: list[NodeId]) -> None:
        await self._write(sql.REGISTER, nodes, None, None)

    async def declare_dead(self, node: NodeId) -> bool:
        dead = bool(await self._write(sql.DECLARE_DEAD, node))
        if self._session is not None:
            self._session.nodes.discard(node)
        if dead:
            self._tell("q", "t")
        return dead

    # --- the owner's side -------------------------------------------------------------------------------------------

    def commit(self, batch: Sequence[Commit]) -> asyncio.Task[list[Answer]]:
        self._home.check()
        check_batch(batch)
        task = asyncio.get_running_loop().create_task(self._commit(batch))
        self._committing.add(task)
        task.add_done_callback(self._committing.discard)
        return task

    async def _commit(self, batch: Sequence[Commit]) -> list[Answer]:
        # In order, since they are locked as they come: the same runs may be in a batch that was given up and goes on.
        turns = sorted((commit for commit in batch if commit.fence is not None), key=lambda commit: commit.run_id)
        starts = [commit for commit in batch if commit.create is not None]
        if not batch:
            return []
        statement = sql.STARTS if not turns else sql.TURNS_AND_STARTS if starts else sql.TURNS
        values: list[Any] = []
        if turns:
            values += rows.turn_values(turns)
        if starts:
            values += rows.start_values(starts)
        refused = await _least_busy(self._commit_lines).fetch(statement, values, writing=True)
        answers = dict.fromkeys((commit.run_id for commit in batch), Answer.COMMITTED)
        place: int
        for is_turn, place, answer in refused:
            refused_one = turns[place - 1] if is_turn else starts[place - 1]
            answers[refused_one.run_id] = Answer(answer)
        self._tell(*_news([commit for commit in batch if answers[commit.run_id] is Answer.COMMITTED]))
        return list(answers.values())

    async def claim(self, claim: Claim) -> list[Claimed]:
        queues = sorted(set(claim.queues))
        if self._session is not None:
            self._session.queues.update(queues)
        records = await self._write(
            sql.CLAIM_RUNS, claim.node, claim.namespace, queues, sorted(set(claim.workflows)), claim.max_format,
            claim.now_us, claim.limit, claim.parked, claim.suspect,
        )  # fmt: skip
        return [Claimed(rows.run_row(record), record["lost"]) for record in records]

    async def take(self, node: NodeId, run_id: RunId) -> Claimed | None:
        for record in await self._write(sql.TAKE_RUN, node, run_id):
            return Claimed(rows.run_row(record), record["lost"])
        return None

    async def mail_of(self, node: NodeId, limit: int) -> list[Mail]:
        return [rows.mail(record) for record in await self._read(sql.MAIL_OF, node, limit)]

    async def mail_for(self, run_ids: Sequence[RunId]) -> list[Mail]:
        return [rows.mail(record) for record in await self._read(sql.MAIL_FOR, list(run_ids))]

    # --- the sender's side ------------------------------------------------------------------------------------------

    async def send(self, mail: Sequence[NewMail]) -> list[Sent]:
        records = await self._write(
            sql.SEND,
            [each.run_id for each in mail],
            [each.message_id for each in mail],
            [each.at_us for each in mail],
            [as_text(each.body, f"message {each.message_id}") for each in mail],
            [each.beyond_limit for each in mail],
            self._mailbox_limit,
        )
        answers = [Sent(record["answer"]) for record in records]
        self._tell(*(_receiver(each) for each, sent in zip(records, answers, strict=True) if sent is Sent.ACCEPTED))
        return answers

    async def replies(self, message_ids: Sequence[MessageId]) -> dict[MessageId, bytes]:
        if self._session is not None:
            self._session.awaits_replies_until = time.monotonic() + ENDS_S
        found = await self._read(sql.REPLIES, list(message_ids))
        return {MessageId(message_id): body.encode() for message_id, body in found}

    async def forget_replies(self, before_us: int, limit: int) -> int:
        [(forgotten,)] = await self._write(sql.FORGET_REPLIES, before_us, limit)
        return int(forgotten)

    # --- dispatched activities --------------------------------------------------------------------------------------

    async def claim_tasks(self, claim: TaskClaim) -> list[Task]:
        queues = sorted(set(claim.queues))
        if self._session is not None:
            self._session.task_queues.update(queues)
        held = [None] * 3 if claim.held is None else [[each[field] for each in claim.held] for field in range(3)]
        records = await self._write(
            sql.CLAIM_TASKS, claim.node, claim.namespace, queues, list(claim.activities), claim.now_us, claim.limit,
            *held,
        )  # fmt: skip
        return [rows.task(record) for record in records]

    async def deliver(self, node: NodeId, task: Task, mail: NewMail) -> bool:
        check_delivery(task, mail)
        body = as_text(mail.body, f"message {mail.message_id}")
        delivered = await self._write(
            sql.DELIVER, node, task.run_id, task.activity_id, task.attempt, mail.message_id, mail.at_us, body
        )
        self._tell(*(_receiver(record) for record in delivered))
        return bool(delivered)

    async def tasks_of(self, run_ids: Sequence[RunId]) -> dict[RunId, list[ActivityId]]:
        found: dict[RunId, list[ActivityId]] = {}
        for run_id, activity_id in await self._read(sql.TASKS_OF, list(run_ids)):
            found.setdefault(RunId(run_id), []).append(ActivityId(activity_id))
        return found

    # --- reading ----------------------------------------------------------------------------------------------------

    async def backlog(self, namespace: Namespace, queue: str, now_us: int, limit: int) -> int:
        [(count,)] = await self._read(sql.BACKLOG, namespace, queue, now_us, limit)
        return int(count)

    async def run(self, run_id: RunId) -> RunRow | None:
        return _first(await self._read(sql.RUN, run_id))

    async def closed_of(self, run_ids: Sequence[RunId]) -> list[RunRow]:
        if self._session is not None:
            self._session.awaits_ends_until = time.monotonic() + ENDS_S
        return [rows.run_row(record) for record in await self._read(sql.CLOSED_OF, list(run_ids))]

    async def find(self, namespace: Namespace, workflow_id: WorkflowId) -> RunRow | None:
        return _first(await self._read(sql.FIND, namespace, workflow_id))

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        statement, values = listing(wanted)
        return [rows.run_row(record) for record in await self._read(statement, *values)]

    async def history(self, run_id: RunId, from_event: int = 1) -> list[JournalRow]:
        return [rows.journal_row(record) for record in await self._read(sql.HISTORY, run_id, from_event)]

    async def histories(self, run_ids: Sequence[RunId]) -> dict[RunId, list[JournalRow]]:
        found: dict[RunId, list[JournalRow]] = {run_id: [] for run_id in run_ids}
        for record in await self._read(sql.HISTORIES, list(found)):
            row = rows.journal_row(record)
            found[row.run_id].append(row)
        return found


def listing(wanted: RunFilter) -> tuple[str, list[Any]]:
    """The statement, and its parameters."""
    # Runs of one node are found by that, and not by walking over all runs in their order: nodes look through their own
    # every few seconds. The planner does not know how few of all they are.
    order = "run_id" if wanted.owner is None else "run_id || ''"
    conditions = ["namespace = $1"]
    values: list[Any] = [wanted.namespace]
    for column, value in (
        ("workflow_id = $", wanted.workflow_id),
        ("workflow = $", wanted.workflow),
        ("owner = $", wanted.owner),
        (f"{order} < $", wanted.before),
    ):
        if value is not None:
            values.append(value)
            conditions.append(f"{column}{len(values)}")
    if wanted.status is not None:
        # Literals where an index is partial.
        is_open = wanted.status is RunStatus.OPEN
        conditions.append("status = 'open'" if is_open else f"status <> 'open' AND status = '{wanted.status}'")
    values.append(wanted.limit)
    return sql.list_runs(conditions, order, f"${len(values)}"), values


def _least_busy(lines: list[Line]) -> Line:
    return min(lines, key=lambda line: line.waiting)


def _news(written: list[Commit]) -> set[str]:
    """What others should hear of these commits; see `postgres_session.py` for the words."""
    words = {f"t{task.queue}" for commit in written for task in commit.add_tasks}
    for commit in written:
        if commit.replies:
            words.add("r")
        if commit.status is not None:
            words.add("c")
        elif (create := commit.create) is not None:
            if create.owner is None:
                words.add(f"q{create.queue}")
            elif create.mail:
                words.add(f"m{create.owner}")
        elif commit.release is not None and _is_due_soon(commit.release, commit.at_us):
            words.add("q")
    return words


def _is_due_soon(release: Release, now_us: int) -> bool:
    return release.error is None and release.wake_at_us is not None and release.wake_at_us <= now_us + SOON_US


def _receiver(record: rows.Record) -> str:
    """Whom mail concerns: the owner of its run, or whoever may claim it."""
    owner = record["owner"]
    return f"q{record['queue']}" if owner is None else f"m{owner}"


def _first(records: list[Any]) -> RunRow | None:
    return rows.run_row(records[0]) if records else None
