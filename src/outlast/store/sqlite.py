"""The SQLite store: a file, threads, and asyncio in front of them.

Theory of operation
===================
One thread writes, one reads; each has its own connection (`SqliteWriter`, `SqliteReader`) and a queue. What the event
loop wants during one of its ticks is collected and put into the queue once, at the end of the tick. The thread
takes all that is in its queue, answers it together, and tells the loop once. So while one transaction is being
synced, the next one forms, and thousands of callers cost one fsync.

What was acknowledged is on disk: an answer leaves the writer after COMMIT. What is read was committed before the
read began; SQLite's log gives every statement the last committed state, without locks.

Between two transactions, and every few milliseconds when there is nothing to do, the writer looks whether somebody
else has written (`sqlite_watch.py`), and then calls `on_change`. When nothing has happened for a while it writes the
log back into the file, so that this rarely has to happen under load.

A fork copies neither threads nor locks: in the child every method of the store raises. Around a fork, the threads of
the parent are kept out of SQLite, so that the child does not inherit a transaction under way, or a locked mutex;
and the child never closes its copies of the connections, which might write to the parent's log.

A process that is stopped (SIGSTOP) inside a transaction keeps the write lock of the file: all others get Busy until
it goes on or is killed. That is seen and not cured here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar, cast

from outlast.model.errors import InvalidArgument
from outlast.model.ids import ActivityId, MessageId, Namespace, NodeId, RunId, WorkflowId
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
    RunFilter,
    RunRow,
    Sent,
    Task,
    TaskClaim,
)
from outlast.store.contract import check_delivery
from outlast.store.home import Home
from outlast.store.liveness import lock_file_of
from outlast.store.sqlite_open import SYNCHRONOUS, connect, open_database
from outlast.store.sqlite_reader import SqliteReader
from outlast.store.sqlite_thread import DatabaseThread
from outlast.store.sqlite_watch import ChangeWatch
from outlast.store.sqlite_writer import Call, Operation, SqliteWriter, outgoing, turns

CHECKPOINT_AFTER_S = 0.5
"""Quiet for so long after a write: then the log is written back. Short breaks in the load must not cause one each."""

OPERATIONS = 1024
"""In one transaction. More callers at once only make all of them wait longer."""

_Result = TypeVar("_Result")
_Read: TypeAlias = Callable[[SqliteReader], object]


class SqliteStore:
    """The `Store` protocol on one SQLite file, for any number of processes of one machine.

    `synchronous`: "FULL" (what is acknowledged survives a power failure), "NORMAL" (it survives a crash of the
    process; a power failure may take back the last moments), "OFF" (only for tests). `create=False`: a missing file
    is an error.
    """

    def __init__(
        self, path: str, *, synchronous: str = "FULL", create: bool = True, mailbox_limit: int = MAILBOX_LIMIT
    ) -> None:
        if synchronous not in SYNCHRONOUS:
            raise InvalidArgument(f"synchronous={synchronous!r}: expected one of {', '.join(SYNCHRONOUS)}")
        self._path = path
        self._synchronous = synchronous
        self._create = create
        self._mailbox_limit = mailbox_limit
        self._home = Home(self._path, "Connections and locks of SQLite", "file")
        self._writer: DatabaseThread[Operation] | None = None
        self._reader: DatabaseThread[_Read] | None = None
        self._callbacks: list[Callable[[], None]] = []

    async def open(self) -> None:
        self._home.check_process()
        assert self._writer is None, "opened twice"
        writer = DatabaseThread("outlast-sqlite-writer", self._connect_writer)
        reader = DatabaseThread("outlast-sqlite-reader", self._connect_reader)
        try:
            await writer.start()
            await reader.start()
        except BaseException:
            await reader.close()
            await writer.close()
            raise
        self._home.open()
        self._writer, self._reader = writer, reader

    def _connect_writer(self) -> _WriterServer:
        db = open_database(self._path, create=self._create, synchronous=self._synchronous)
        writer = SqliteWriter(db, self._path, lock_file_of(self._path), self._mailbox_limit)
        return _WriterServer(writer, ChangeWatch(writer, self._path), self._others_wrote)

    def _connect_reader(self) -> _ReaderServer:
        db = connect(self._path, create=False, synchronous=self._synchronous)
        return _ReaderServer(SqliteReader(db, self._path, lock_file_of(self._path)))

    async def close(self) -> None:
        self._home.check_process()
        for thread in (self._reader, self._writer):
            if thread is not None:
                await thread.close()

    def on_change(self, callback: Callable[[], None]) -> None:
        self._home.check_process()
        self._callbacks.append(callback)

    def _others_wrote(self) -> None:
        """Called in the writer thread."""
        if self._writer is not None:
            for callback in self._callbacks:
                self._writer.call_loop(callback)

    # --- ways into the threads ----------------------------------------------------------------------------------

    def _write(self, operation: Operation) -> asyncio.Future[object]:
        self._home.check()
        assert self._writer is not None
        return self._writer.submit(operation)

    async def _call(self, do: Callable[[SqliteWriter], _Result]) -> _Result:
        return cast(_Result, await self._write(Call(do)))

    async def _read(self, do: Callable[[SqliteReader], _Result]) -> _Result:
        self._home.check()
        assert self._reader is not None
        return cast(_Result, await self._reader.submit(do))

    # --- the protocol -------------------------------------------------------------------------------------------

    @property
    def poll_s(self) -> float:
        """A look costs a few reads of memory."""
        return 0.25

    async def now_us(self) -> None:
        """None: all its nodes are on one machine."""

    async def join(self, name: str) -> NodeId:
        return await self._call(lambda writer: writer.join(name))

    async def heartbeat(self, node: NodeId) -> bool:
        return await self._call(lambda writer: writer.heartbeat(node))

    async def nodes(self) -> list[NodeRow]:
        return await self._read(lambda reader: reader.nodes())

    async def declare_dead(self, node: NodeId) -> bool:
        return await self._call(lambda writer: writer.declare_dead(node))

    def commit(self, batch: Sequence[Commit]) -> asyncio.Future[list[Answer]]:
        written = self._write(turns(batch))
        assert self._writer is not None
        self._writer.hand_over()
        return cast("asyncio.Future[list[Answer]]", written)

    async def claim(self, claim: Claim) -> list[Claimed]:
        if not await self._read(lambda reader: reader.finds_runs(claim)):  # see `sqlite_claims.py`
            return []
        return await self._call(lambda writer: writer.claim(claim))

    async def take(self, node: NodeId, run_id: RunId) -> Claimed | None:
        return await self._call(lambda writer: writer.take(node, run_id))

    async def mail_of(self, node: NodeId, limit: int) -> list[Mail]:
        return await self._read(lambda reader: reader.mail_of(node, limit))

    async def mail_for(self, run_ids: Sequence[RunId]) -> list[Mail]:
        return await self._read(lambda reader: reader.mail_for(run_ids))

    async def send(self, mail: Sequence[NewMail]) -> list[Sent]:
        return cast(list[Sent], await self._write(outgoing(mail)))

    async def replies(self, message_ids: Sequence[MessageId]) -> dict[MessageId, bytes]:
        return await self._read(lambda reader: reader.replies(message_ids))

    async def forget_replies(self, before_us: int, limit: int) -> int:
        return await self._call(lambda writer: writer.forget_replies(before_us, limit))

    async def claim_tasks(self, claim: TaskClaim) -> list[Task]:
        if not await self._read(lambda reader: reader.finds_tasks(claim)):
            return []
        return await self._call(lambda writer: writer.claim_tasks(claim))

    async def deliver(self, node: NodeId, task: Task, mail: NewMail) -> bool:
        check_delivery(task, mail)
        return await self._call(lambda writer: writer.deliver(node, task, mail))

    async def tasks_of(self, run_ids: Sequence[RunId]) -> dict[RunId, list[ActivityId]]:
        return await self._read(lambda reader: reader.tasks_of(run_ids))

    async def backlog(self, namespace: Namespace, queue: str, now_us: int, limit: int) -> int:
        return await self._read(lambda reader: reader.backlog(namespace, queue, now_us, limit))

    async def run(self, run_id: RunId) -> RunRow | None:
        return await self._read(lambda reader: reader.run(run_id))

    async def closed_of(self, run_ids: Sequence[RunId]) -> list[RunRow]:
        return await self._read(lambda reader: reader.closed_of(run_ids))

    async def find(self, namespace: Namespace, workflow_id: WorkflowId) -> RunRow | None:
        return await self._read(lambda reader: reader.find(namespace, workflow_id))

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        return await self._read(lambda reader: reader.runs(wanted))

    async def history(self, run_id: RunId, from_event: int = 1) -> list[JournalRow]:
        return await self._read(lambda reader: reader.history(run_id, from_event))

    async def histories(self, run_ids: Sequence[RunId]) -> dict[RunId, list[JournalRow]]:
        return await self._read(lambda reader: reader.histories(run_ids))


class _WriterServer:
    """What the writer thread does: transactions, and between them a look at the file."""

    def __init__(self, writer: SqliteWriter, watch: ChangeWatch, others_wrote: Callable[[], None]) -> None:
        self._writer = writer
        self._watch = watch
        self._others_wrote = others_wrote
        self._wrote_at: float | None = None
        """Last write that is perhaps still in the log; None if there is none."""

    def answer(self, requests: Sequence[Operation]) -> list[object]:
        answers: list[object] = []
        for start in range(0, len(requests), OPERATIONS):
            answers += self._writer.write(requests[start : start + OPERATIONS])
        self._wrote_at = time.monotonic()
        self._watch.wrote(self._wrote_at)
        return answers

    def idle(self) -> float:
        now = time.monotonic()
        if self._watch.others_wrote(now):
            self._others_wrote()
        if self._wrote_at is not None and now - self._wrote_at >= CHECKPOINT_AFTER_S:
            self._writer.checkpoint()
            self._wrote_at = None
        return self._watch.pause_s(now)

    def close(self) -> None:
        self._writer.close()


class _ReaderServer:
    """What the reader thread does: one read after the other."""

    def __init__(self, reader: SqliteReader) -> None:
        self._reader = reader

    def answer(self, requests: Sequence[_Read]) -> list[object]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: _Read) -> object:
        try:
            return request(self._reader)
        except Exception as error:
            return error

    def idle(self) -> None:
        return None

    def close(self) -> None:
        self._reader.close()
