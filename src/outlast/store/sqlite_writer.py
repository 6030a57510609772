"""The writing half of the SQLite store, without threads or asyncio: one connection, and what is written through it.

Theory of operation
===================
`write` takes what several callers want to write at the same moment, and commits it in one transaction, so that one
fsync serves them all. Optimistic: all turns of all callers are one INSERT into the view `turns` (see
`sqlite_procedures.py`; into a wider one if any of them has messages), which mostly is all there is to do; then the
statement is its own transaction. If the trigger refuses a turn, the statement has done nothing; it is tried again in
halves, until the refused turns stand alone. So a loser writes nothing and fails nobody else, and winners share one
transaction whatever happens.

If another process has the write lock, the thread pauses until BEGIN IMMEDIATE says that it is free, and then tries its
statement again, as one: a transaction of several would hold the lock while it waits for the interpreter's in between.
The question costs 3 us, a large INSERT that finds the file locked 150. Nothing tells when the lock becomes free, and
until somebody asks again nobody has it; so the pauses begin short, and grow with the time that has been waited.

An error that is no refusal rolls everything back. If it is about the database (busy, disk full) it is everybody's
answer; else it is a bug or a value that SQLite cannot hold, and each caller's part is tried in a transaction of its
own, so that it fails only the one whose it is.

The simulator may drive this class inline; `sqlite.py` puts a thread around it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import TypeAlias, TypeVar

from msgspec import Struct

from outlast.model.errors import Busy, CommitUnknown, OutlastError, StoreUnavailable
from outlast.model.ids import NodeId, RunId
from outlast.store import sqlite_sql as sql
from outlast.store.api import MAILBOX_LIMIT, Answer, Claim, Claimed, Commit, NewMail, Sent, Task, TaskClaim
from outlast.store.contract import check_batch, check_delivery
from outlast.store.liveness import LockFile
from outlast.store.sqlite_claims import claim_runs, claim_tasks, take_run
from outlast.store.sqlite_errors import translated
from outlast.store.sqlite_open import BUSY_TIMEOUT_S
from outlast.store.sqlite_procedures import insert_outgoing, insert_turns, insert_turns_with_messages, procedures
from outlast.store.sqlite_rows import NO_MAIL, NO_MESSAGES, NO_TURN, Row, mail_row, turn_row, with_messages

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows for which statements are prepared; in between, empty rows fill up. Beyond 256 a larger one gains nothing."""

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.0002, 0.001
"""Between two tries to get the write lock: a quarter of what has been waited, within these. A write takes 1 to 2 ms.
SQLite's own pauses grow to 100 ms, in which a busy neighbour commits fifty times."""


class Turns(Struct, frozen=True, gc=False):
    """To write: a batch of commits. Answered by a list of `Answer`."""

    rows: list[Row]


class Outgoing(Struct, frozen=True, gc=False):
    """To write: messages. Answered by a list of `Sent`."""

    rows: list[Row]


class Call(Struct, frozen=True, gc=False):
    """To write: what a method of the writer does, inside the transaction. Answered by what it returns."""

    do: Callable[[SqliteWriter], object]


Operation: TypeAlias = Turns | Outgoing | Call

_Outcome = TypeVar("_Outcome", Answer, Sent)

_Statement: TypeAlias = Callable[[int], str]
"""The text of an INSERT into a view with triggers, by number of rows."""


def turns(batch: Sequence[Commit]) -> Turns:
    check_batch(batch)
    return Turns([turn_row(commit) for commit in batch])


def outgoing(mail: Sequence[NewMail]) -> Outgoing:
    return Outgoing([mail_row(message) for message in mail])


class SqliteWriter:
    """One connection to the file. Not to be used by two threads at once."""

    def __init__(
        self, db: sqlite3.Connection, path: str, lock_file: LockFile | None, mailbox_limit: int = MAILBOX_LIMIT
    ) -> None:
        self._db = db
        self._path = path
        self._lock_file = lock_file
        self._joined: list[NodeId] = []
        self._joining: list[NodeId] = []
        """Nodes whose byte is locked and whose row is not committed yet."""
        for statement in procedures(mailbox_limit):
            db.execute(statement)
        # From now on `_with_write_lock` waits, in its own way.
        db.execute("PRAGMA busy_timeout = 0")

    def close(self) -> None:
        """Its nodes are gone from now on. Idempotent."""
        if self._lock_file is not None:
            for node in self._joined:
                self._lock_file.let_go(node)
        self._joined.clear()
        self._db.close()

    def write(self, operations: Sequence[Operation]) -> list[object]:
        """Commit all operations in one transaction. One answer for each: its result, or an exception."""
        try:
            return self._write_together(operations)
        except (Busy, StoreUnavailable, CommitUnknown) as error:
            return [_copy(error) for _ in operations]
        except Exception as error:
            if len(operations) == 1:
                return [error]
            return [answer for operation in operations for answer in self.write([operation])]

    def _write_together(self, operations: Sequence[Operation]) -> list[object]:
        turn_rows = [row for operation in operations if isinstance(operation, Turns) for row in operation.rows]
        mail_rows = [row for operation in operations if isinstance(operation, Outgoing) for row in operation.rows]
        calls = any(isinstance(operation, Call) for operation in operations)
        insert, no_turn = insert_turns, NO_TURN
        if max(map(len, turn_rows), default=0) > len(NO_TURN):
            turn_rows = with_messages(turn_rows)
            insert, no_turn = insert_turns_with_messages, NO_TURN + NO_MESSAGES
        if not calls and not mail_rows and self._wrote_alone(insert, turn_rows, no_turn):
            return [[Answer.COMMITTED] * len(_rows(operation)) for operation in operations]
        if not calls and not turn_rows and self._wrote_alone(insert_outgoing, mail_rows, NO_MAIL):
            return [[Sent.ACCEPTED] * len(_rows(operation)) for operation in operations]
        with self._transaction():
            answers = iter(self._insert(insert, turn_rows, no_turn, Answer, Answer.COMMITTED))
            receipts = iter(self._insert(insert_outgoing, mail_rows, NO_MAIL, Sent, Sent.ACCEPTED))
            return [self._finish(operation, answers, receipts) for operation in operations]

    def _finish(self, operation: Operation, answers: Iterator[Answer], receipts: Iterator[Sent]) -> object:
        """The operation's share of the answers."""
        match operation:
            case Turns(rows):
                return list(islice(answers, len(rows)))
            case Outgoing(rows):
                return list(islice(receipts, len(rows)))
            case Call(do):
                return do(self)

    # --- statements and transactions ----------------------------------------------------------------------------

    def _wrote_alone(self, statement: _Statement, rows: list[Row], empty: Row) -> bool:
        """Write all rows with one statement that commits itself. False, and nothing is written, if it cannot be so."""
        if not 0 < len(rows) <= SIZES[-1]:
            return False
        try:
            self._with_write_lock(*_filled(statement, rows, empty))
        except sqlite3.Error as error:
            if _is_refusal(error):
                return False
            raise translated(error, self._path, committing=True) from error
        return True

    def _insert(
        self, statement: _Statement, rows: list[Row], empty: Row, outcomes: type[_Outcome], done: _Outcome
    ) -> list[_Outcome]:
        """In a transaction: write those of the rows that are not refused."""
        result: list[_Outcome] = []
        for start in range(0, len(rows), SIZES[-1]):
            result += self._insert_or_halve(statement, rows[start : start + SIZES[-1]], empty, outcomes, done)
        return result

    def _insert_or_halve(
        self, statement: _Statement, rows: list[Row], empty: Row, outcomes: type[_Outcome], done: _Outcome
    ) -> list[_Outcome]:
        try:
            self._db.execute(*_filled(statement, rows, empty))
        except sqlite3.Error as error:
            if not _is_refusal(error):
                raise
            if len(rows) == 1:
                return [outcomes(str(error))]
        else:
            return [done] * len(rows)
        half = len(rows) // 2
        return [
            outcome
            for part in (rows[:half], rows[half:])
            for outcome in self._insert_or_halve(statement, part, empty, outcomes, done)
        ]

    def _with_write_lock(self, statement: str, values: Sequence[object] = ()) -> None:
        """Execute a statement that begins a transaction; wait while another process has the write lock."""
        began = time.monotonic()
        while True:
            try:
                self._db.execute(statement, values)
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() - began > BUSY_TIMEOUT_S:
                    raise
            self._wait_until_free(began)

    def _wait_until_free(self, began: float) -> None:
        """Until nobody has the write lock, or it is too late."""
        waited_s = time.monotonic() - began
        while waited_s <= BUSY_TIMEOUT_S:
            time.sleep(min(max(waited_s / 4, SHORTEST_PAUSE_S), LONGEST_PAUSE_S))
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("ROLLBACK")
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
            waited_s = time.monotonic() - began

    @contextmanager
    def _transaction(self) -> Generator[None, None, None]:
        try:
            self._with_write_lock("BEGIN IMMEDIATE")
            yield
        except sqlite3.Error as error:
            self._roll_back()
            raise translated(error, self._path) from error
        except BaseException:
            self._roll_back()
            raise
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise translated(error, self._path, committing=True) from error
        self._joined += self._joining
        self._joining.clear()

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        for node in self._joining:
            assert self._lock_file is not None
            self._lock_file.let_go(node)
        self._joining.clear()

    # --- inside a transaction, by way of Call -------------------------------------------------------------------

    def join(self, name: str) -> NodeId:
        self._db.execute(sql.FORGET_DEAD_NODES)
        added = self._db.execute(sql.JOIN, (name,)).lastrowid
        assert added is not None
        node = NodeId(added)
        # Locked before anybody can see the row, so that nobody sees it without the lock.
        if self._lock_file is not None and self._lock_file.hold(node):
            self._joining.append(node)
            self._db.execute(sql.SET_LOCK_FILE, (self._lock_file.inode, node))
        return node

    def heartbeat(self, node: NodeId) -> bool:
        return self._db.execute(sql.HEARTBEAT, (node,)).rowcount == 1

    def declare_dead(self, node: NodeId) -> bool:
        return self._db.execute(sql.DECLARE_DEAD, (node,)).rowcount == 1

    def claim(self, claim: Claim) -> list[Claimed]:
        return claim_runs(self._db, claim)

    def take(self, node: NodeId, run_id: RunId) -> Claimed | None:
        return take_run(self._db, node, run_id)

    def claim_tasks(self, claim: TaskClaim) -> list[Task]:
        return claim_tasks(self._db, claim)

    def deliver(self, node: NodeId, task: Task, mail: NewMail) -> bool:
        check_delivery(task, mail)
        held = (task.run_id, task.activity_id, task.attempt, node)
        if self._db.execute(sql.REMOVE_TASK, held).rowcount == 0:
            return False
        run_id, message_id, at_us, body, _ = mail_row(mail)
        self._db.execute(sql.DELIVER, {"run_id": run_id, "message_id": message_id, "at_us": at_us, "body": body})
        return True

    def forget_replies(self, before_us: int, limit: int) -> int:
        return self._db.execute(sql.FORGET_REPLIES, (before_us, limit)).rowcount

    # --- outside of transactions --------------------------------------------------------------------------------

    def data_version(self) -> int:
        """A number that changes when another connection has written, of this process or another one."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    def checkpoint(self) -> None:
        """Write the log back into the file, as far as no reader is in the way. Waits for nobody."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _copy(error: OutlastError) -> OutlastError:
    """One for each caller: raising an exception writes into it."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def _rows(operation: Operation) -> list[Row]:
    assert not isinstance(operation, Call)
    return operation.rows


def _is_refusal(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_TRIGGER


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _filled(statement: _Statement, rows: list[Row], empty: Row) -> tuple[str, list[object]]:
    """The statement for this many rows or a few more, and its values."""
    size = next(size for size in SIZES if size >= len(rows))
    return statement(size), list(chain(chain.from_iterable(rows), empty * (size - len(rows))))
