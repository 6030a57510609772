"""How the SQLite store writes: what shares a transaction, who fails when something fails, and what stays fast."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from outlast.model.errors import Busy, DurableCallError, NotADatabase, StoreUnavailable
from outlast.model.ids import MessageId, NodeId
from outlast.store import sqlite_sql as sql
from outlast.store import sqlite_writer
from outlast.store.api import Answer, Sent
from outlast.store.sqlite import SqliteStore
from outlast.store.sqlite_open import open_database
from outlast.store.sqlite_reader import SqliteReader
from outlast.store.sqlite_thread import DatabaseThread
from outlast.store.sqlite_writer import Call, Operation, SqliteWriter, outgoing, turns
from store.building import claim, committed, mail, row, run_id, start, task_claim, turn

A = NodeId(1)


class Recorded:
    """A connection that notes the first word of each statement it is given."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.statements: list[str] = []

    def execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        self.statements.append(statement.split()[0])
        return self._db.execute(statement, values)

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)


class Inline:
    """Both halves of the store without threads, and what the writer asks of SQLite."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.db = open_database(path, create=True, synchronous="OFF")
        recorded = Recorded(self.db)
        self.writer = SqliteWriter(cast(sqlite3.Connection, recorded), path, None)
        self.reader = SqliteReader(open_database(path, create=False, synchronous="OFF"), path, None)
        self.statements = recorded.statements
        self.statements.clear()


@pytest.fixture
def inline(tmp_path: Path) -> Iterator[Inline]:
    inline = Inline(str(tmp_path / "outlast.db"))
    yield inline
    inline.reader.close()
    inline.writer.close()


# --- transactions -----------------------------------------------------------------------------------------------


def test_batches_of_many_callers_are_one_statement(inline: Inline) -> None:
    answers = inline.writer.write([turns([start(number, owner=A)]) for number in range(100)])
    assert answers == [[Answer.COMMITTED]] * 100
    assert inline.statements == ["INSERT"]

    inline.statements.clear()
    assert inline.writer.write([turns([turn(number, A, 2) for number in range(100)])]) == [[Answer.COMMITTED] * 100]
    assert inline.writer.write([outgoing([mail(number, "m") for number in range(100)])]) == [[Sent.ACCEPTED] * 100]
    assert inline.statements == ["INSERT", "INSERT"]

    inline.statements.clear()
    batch = [turn(number, A, 3, replies={f"m{number}": b"1"} if number == 7 else None) for number in range(50)]
    starts = [start(number, mail=["m"] if number == 107 else []) for number in range(100, 150)]
    assert inline.writer.write([turns(batch), turns(starts)]) == [[Answer.COMMITTED] * 50] * 2
    assert inline.statements == ["INSERT"]
    assert inline.reader.replies([MessageId("m7")]) == {"m7": b"1"}
    assert [each.run_id for each in inline.reader.mail_for([run_id(107)])] == [run_id(107)]


def test_different_operations_share_one_transaction(inline: Inline) -> None:
    answers = inline.writer.write(
        [
            Call(lambda writer: writer.join("n")),
            turns([start(1), start(2)]),
            outgoing([mail(1, "m"), mail(9, "m")]),
            Call(lambda writer: writer.claim(claim(A))),
            turns([start(2)]),
        ]
    )

    assert answers[:3] == [A, [Answer.COMMITTED] * 2, [Sent.ACCEPTED, Sent.NO_SUCH_RUN]]
    assert isinstance(answers[3], list)
    assert [each.run.run_id for each in answers[3]] == [run_id(1), run_id(2)]
    assert answers[4] == [Answer.ID_IN_USE]
    assert (inline.statements.count("BEGIN"), inline.statements.count("COMMIT")) == (1, 1)


def test_very_many_rows_are_written_in_parts_of_one_transaction(inline: Inline) -> None:
    batch = [start(number, owner=A) for number in range(1_000)]

    assert inline.writer.write([turns(batch)]) == [[Answer.COMMITTED] * 1_000]

    assert inline.statements == ["BEGIN", "INSERT", "INSERT", "INSERT", "INSERT", "COMMIT"]


def test_a_bug_in_one_call_fails_only_its_caller(inline: Inline) -> None:
    """A number that SQLite cannot hold, and a call that raises, among good ones."""

    def fail(writer: SqliteWriter) -> None:
        writer.join("is taken back")
        raise ZeroDivisionError

    too_large = turns([start(2, turn_id=2**63)])
    answers = inline.writer.write([turns([start(1)]), too_large, Call(fail), outgoing([mail(1, "m")])])

    assert answers[0] == [Answer.COMMITTED]
    assert isinstance(answers[1], OverflowError)
    assert isinstance(answers[2], ZeroDivisionError)
    assert answers[3] == [Sent.ACCEPTED]
    assert inline.reader.run(run_id(2)) is None
    assert inline.reader.nodes() == []


def test_the_journal_itself_refuses_a_second_row_for_one_event(inline: Inline) -> None:
    """The backstop, should the fence ever fail: here a row of `runs` was set back by hand."""
    inline.writer.write([turns([start(1, owner=A), start(2, owner=A)])])
    inline.writer.write([turns([turn(1, A, 2)])])
    inline.db.execute("UPDATE runs SET next_event = 2 WHERE run_id = ?", (run_id(1),))

    answers = inline.writer.write([turns([turn(1, A, 2)]), turns([turn(2, A, 2)])])

    assert "UNIQUE" in str(answers[0])
    assert answers[1] == [Answer.COMMITTED]
    assert [each.first_event for each in inline.reader.history(run_id(1))] == [1, 2]


# --- a database that does not answer ----------------------------------------------------------------------------


def test_a_full_disk_writes_nothing_and_leaves_a_usable_connection(inline: Inline) -> None:
    inline.writer.write([turns([start(1, owner=A)])])
    (pages,) = inline.db.execute("PRAGMA page_count").fetchone()
    inline.db.execute(f"PRAGMA max_page_count = {pages + 2}")

    alone: list[Operation] = [turns([start(2, count=5_000)])]
    together: list[Operation] = [turns([turn(1, A, 2), start(2, count=5_000)]), outgoing([mail(1, "m")])]
    for operations in (alone, together):
        answers = inline.writer.write(operations)
        assert [type(each) for each in answers] == [StoreUnavailable] * len(operations)
        assert "disk is full" in str(answers[0])
    assert inline.reader.run(run_id(2)) is None
    assert inline.reader.mail_for([run_id(1)]) == []
    assert [each.first_event for each in inline.reader.history(run_id(1))] == [1]

    inline.db.execute("PRAGMA max_page_count = 1000000")
    assert inline.writer.write([turns([turn(1, A, 2), start(2, count=5_000)])]) == [[Answer.COMMITTED] * 2]


def test_a_lock_that_another_process_holds_is_waited_for(inline: Inline, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(inline.path, isolation_level=None)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            other.execute("COMMIT")

    monkeypatch.setattr(time, "sleep", wait)
    alone: list[Operation] = [turns([start(1)])]
    together: list[Operation] = [turns([start(2)]), outgoing([mail(1, "m")])]
    for operations in (alone, together):
        waits.clear()
        other.execute("BEGIN IMMEDIATE")

        answers = inline.writer.write(operations)

        assert answers[0] == [Answer.COMMITTED]
        assert len(waits) == 3
    other.close()


def test_a_lock_that_is_never_released_is_busy_and_nothing_is_written(
    inline: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "BUSY_TIMEOUT_S", 0.01)
    with closing(sqlite3.connect(inline.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        alone = inline.writer.write([turns([start(1)])])
        together = inline.writer.write([turns([start(1)]), outgoing([mail(1, "m")])])

        assert [type(each) for each in alone + together] == [Busy] * 3
        assert "locked by another process" in str(alone[0])
    assert inline.reader.run(run_id(1)) is None
    assert inline.writer.write([turns([start(1)])]) == [[Answer.COMMITTED]]


def test_reading_does_not_wait_for_a_writer(inline: Inline) -> None:
    inline.writer.write([turns([start(1)])])
    with closing(sqlite3.connect(inline.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM runs")

        assert inline.reader.run(run_id(1)) is not None


async def test_a_claim_that_finds_nothing_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    node = await store.join("n")
    await store.commit([start(1, owner=node)])
    with closing(sqlite3.connect(tmp_path / "outlast.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        for wanted in (claim(node), claim(node, parked=True), claim(node, suspect=True)):
            assert await store.claim(wanted) == []
        for held in (None, ()):
            assert await store.claim_tasks(task_claim(node, held=held)) == []
    await store.close()


# --- threads and loops --------------------------------------------------------------------------------------------


async def opened(tmp_path: Path) -> SqliteStore:
    store = SqliteStore(str(tmp_path / "outlast.db"), synchronous="OFF")
    await store.open()
    return store


async def test_what_a_cancelled_caller_asked_for_is_done_and_fails_nobody(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    calls = [asyncio.ensure_future(store.commit([start(number)])) for number in range(3)]
    calls[1].cancel()

    answers = await asyncio.gather(*calls, return_exceptions=True)

    assert answers[::2] == [[Answer.COMMITTED]] * 2
    assert isinstance(answers[1], asyncio.CancelledError)
    await row(store, 1)
    await store.close()


async def test_close_waits_for_what_is_under_way(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    calls = [asyncio.ensure_future(store.commit([start(number)])) for number in range(50)]
    await asyncio.sleep(0)

    await store.close()

    assert await asyncio.gather(*calls) == [[Answer.COMMITTED]] * 50


def test_a_store_is_used_on_the_loop_on_which_it_was_opened(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    store = SqliteStore(str(tmp_path / "outlast.db"), synchronous="OFF")
    loop.run_until_complete(store.open())

    async def elsewhere() -> None:
        with pytest.raises(DurableCallError, match="another event loop"):
            await store.commit([start(1)])

    asyncio.run(elsewhere())
    assert loop.run_until_complete(committed(store, start(1))) == [Answer.COMMITTED]
    loop.run_until_complete(store.close())
    loop.close()


def test_threads_end_with_their_loop_even_if_nobody_closed_the_store(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    async def forgetful() -> None:
        await (await opened(tmp_path)).commit([start(1)])

    asyncio.run(forgetful())

    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


class Faulty:
    """A server that fails whenever it can."""

    def __init__(self) -> None:
        self.looks = 0

    def answer(self, requests: Sequence[str]) -> list[object]:
        if "fail" in requests:
            raise ZeroDivisionError
        return [request.upper() for request in requests]

    def idle(self) -> float:
        self.looks += 1
        raise OSError("the disk is on fire")

    def close(self) -> None:
        pass


async def test_a_thread_survives_whatever_fails_in_it(caplog: pytest.LogCaptureFixture) -> None:
    faulty = Faulty()
    thread: DatabaseThread[str] = DatabaseThread("faulty", lambda: faulty)
    await thread.start()

    assert await thread.submit("a") == "A"
    for failing in (thread.submit("fail"), thread.submit("b")):
        with pytest.raises(ZeroDivisionError):
            await failing
    assert await thread.submit("c") == "C"

    await thread.close()
    assert faulty.looks
    assert "the disk is on fire" in caplog.text


async def test_a_store_that_could_not_be_opened_can_be_opened_later(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "later" / "outlast.db"), synchronous="OFF")
    with pytest.raises(NotADatabase):
        await store.open()
    await store.close()

    (tmp_path / "later").mkdir()
    await store.open()

    assert await store.commit([start(1)]) == [Answer.COMMITTED]
    await store.close()


# --- what stays fast ----------------------------------------------------------------------------------------------

CLAIMS = {"lost": sql.LOST_RUNS, "due": sql.DUE_RUNS, "woken": sql.WOKEN_RUNS, "lost tasks": sql.LOST_TASKS}
LOOKS = {"any run": sql.finds_any(tuple(CLAIMS.values())), "any task": sql.finds_any((sql.OWN_TASKS, sql.FREE_TASKS))}
OTHERS = {
    "free tasks": sql.FREE_TASKS,
    "nodes": sql.NODES,
    "find": sql.FIND,
    "run": sql.RUN,
    "history": sql.HISTORY,
    "histories": sql.HISTORIES,
    "mail of": sql.MAIL_OF,
    "mail for": sql.MAIL_FOR,
    "forget": sql.FORGET_DEAD_NODES,
    "replies": sql.REPLIES,
    "forget replies": sql.FORGET_REPLIES,
}


@pytest.mark.parametrize("name", [*CLAIMS, *LOOKS, *OTHERS])
def test_no_statement_of_every_day_reads_a_whole_table(inline: Inline, name: str) -> None:
    statement = {**CLAIMS, **LOOKS, **OTHERS}[name]
    values = dict.fromkeys(re.findall(r":(\w+)", statement))
    positional = [None] * statement.count("?")

    plan = inline.db.execute(f"EXPLAIN QUERY PLAN {statement}", positional or values).fetchall()

    large = ("runs", "run", "journal", "mailbox", "tasks", "replies")
    assert plan
    assert [step for *_, step in plan if step.startswith(tuple(f"SCAN {table}" for table in large))] == []
