"""The floor: what SQLite itself allows. The same journal commits that a durable engine makes, and no engine.

Theory of operation
===================
A "run" of N activities is a coroutine that makes N + 1 commits, one after another, and waits for each:
- the first inserts the run's row and its first journal row;
- the others are *guarded appends*: an UPDATE of the run's row that holds only if owner and next_event are what the
  run believes, and a journal row; the last also closes the run.

One writer thread has the connection. Whatever the runs ask for in one turn of the event loop goes to it as one list;
it takes all lists that wait, and writes them in one transaction (one fsync): the UPDATEs one by one, since each must
tell whether its guard held, the inserts with `executemany`. Answers go back with one `call_soon_threadsafe`.

Schema, sizes of the rows and settings are those of Outlast (WAL, synchronous=FULL, a large log); its extra indexes
for claims are left out, since no engine is here to claim anything. No JSON is made: the rows are ready-made texts.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

from bench.journals import check_journal, journal_bytes
from bench.load import Setting, Subject, main, step_result

SCHEMA = """
CREATE TABLE runs (
    run_id        TEXT    NOT NULL PRIMARY KEY,
    workflow_id   TEXT    NOT NULL,
    workflow      TEXT    NOT NULL,
    queue         TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    owner         INTEGER,
    next_event    INTEGER NOT NULL,
    turn_id       INTEGER NOT NULL,
    started_at_us INTEGER NOT NULL,
    closed_at_us  INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX runs_open_id ON runs (workflow_id) WHERE status = 'open';
CREATE TABLE journal (
    seq         INTEGER PRIMARY KEY,
    run_id      TEXT    NOT NULL,
    first_event INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    turn_id     INTEGER NOT NULL,
    at_us       INTEGER NOT NULL,
    events      TEXT    NOT NULL
);
CREATE UNIQUE INDEX journal_run ON journal (run_id, first_event);
"""
PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    # 64 MB of log before it is written back, and a cache that holds the pages in use: as Outlast has them.
    "PRAGMA wal_autocheckpoint = 16384",
    "PRAGMA cache_size = -65536",
)

INSERT_RUN = "INSERT INTO runs VALUES (?, ?, 'chain', 'default', 'open', 1, ?, ?, ?, NULL)"
GUARD = (
    "UPDATE runs SET next_event = ?, turn_id = ? WHERE run_id = ? AND owner = 1 AND next_event = ? AND status = 'open'"
)
GUARD_AND_CLOSE = (
    "UPDATE runs SET next_event = ?, turn_id = ?, status = 'completed', owner = NULL, closed_at_us = ? "
    "WHERE run_id = ? AND owner = 1 AND next_event = ? AND status = 'open'"
)
INSERT_JOURNAL = "INSERT INTO journal (run_id, first_event, count, turn_id, at_us, events) VALUES (?, ?, ?, ?, ?, ?)"

# The events that Outlast writes for the workflow `chain` of `outlast_driver.py`, byte for byte of the same shape.
_SCHEDULED = '{"type":"ActivityScheduled","activity_id":"7","activity":"step","arguments":{"args":[{"data":7}]}}'
_COMPLETED = (
    '{"type":"ActivityCompleted","activity_id":"7","started_at_us":1700000000000000,"result":{"data":"step 7 done"}}'
)
FIRST_EVENTS = (
    '[{"type":"WorkflowExecutionStarted","workflow":"chain","workflow_id":"run-10-1000","queue":"default",'
    f'"arguments":{{"args":[{{"data":10}}]}}}},{_SCHEDULED}]'
)
NEXT_EVENTS = f"[{_COMPLETED},{_SCHEDULED}]"
LAST_EVENTS = f'[{_COMPLETED},{{"type":"WorkflowExecutionCompleted","result":{{"data":"step 7 done"}}}}]'

AT_US = 1_700_000_000_000_000
"""The time in every row. A program that made only commits would not look at the clock for each."""


@dataclass(frozen=True, slots=True)
class Append:
    """One commit of one run."""

    run_id: str
    first_event: int
    turn_id: int
    events: str
    answer: asyncio.Future[bool]
    create: str | None = None
    """The workflow id of a run that begins."""
    close: bool = False


class Writer:
    """The thread that has the connection, and the way to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[list[Append] | None] = SimpleQueue()
        self._forming: list[Append] = []
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="floor-writer")
        with closing(self._connect()) as db:
            db.executescript(SCHEMA)
        self._thread.start()

    def append(
        self, run_id: str, first_event: int, turn_id: int, events: str, create: str | None = None, close: bool = False
    ) -> asyncio.Future[bool]:
        if self._failed is not None:
            raise self._failed
        answer: asyncio.Future[bool] = self._loop.create_future()
        if not self._forming:
            self._loop.call_soon(self._hand_over)
        self._forming.append(Append(run_id, first_event, turn_id, events, answer, create, close))
        return answer

    async def close(self) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _hand_over(self) -> None:
        self._queue.put(self._forming)
        self._forming = []

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None)
        for pragma in PRAGMAS:
            db.execute(pragma)
        return db

    def _work(self) -> None:
        with closing(self._connect()) as db:
            while (batch := self._next_batch()) is not None:
                try:
                    answers = self._write(db, batch)
                except BaseException as error:
                    self._failed = error
                    self._loop.call_soon_threadsafe(_fail, batch, error)
                    return
                self._loop.call_soon_threadsafe(_answer, batch, answers)

    def _next_batch(self) -> list[Append] | None:
        """All that waits; None at the end."""
        batch = self._queue.get()
        while batch is not None:
            try:
                more = self._queue.get_nowait()
            except Empty:
                return batch
            if more is None:
                self._queue.put(None)
                return batch
            batch += more
        return None

    def _write(self, db: sqlite3.Connection, batch: list[Append]) -> list[bool]:
        answers: list[bool] = []
        db.execute("BEGIN IMMEDIATE")
        begun = [(each.run_id, each.create, each.first_event + 2, each.turn_id, AT_US) for each in batch if each.create]
        if begun:
            db.executemany(INSERT_RUN, begun)
        rows: list[tuple[str, int, int, int, int, str]] = []
        for each in batch:
            holds = each.create is not None or _guard(db, each)
            answers.append(holds)
            if holds:
                rows.append((each.run_id, each.first_event, 2, each.turn_id, AT_US, each.events))
        db.executemany(INSERT_JOURNAL, rows)
        db.execute("COMMIT")
        return answers


def _guard(db: sqlite3.Connection, each: Append) -> bool:
    first_event = each.first_event
    if each.close:
        cursor = db.execute(GUARD_AND_CLOSE, (first_event + 2, each.turn_id, AT_US, each.run_id, first_event))
    else:
        cursor = db.execute(GUARD, (first_event + 2, each.turn_id, each.run_id, first_event))
    return cursor.rowcount == 1


def _answer(batch: list[Append], answers: list[bool]) -> None:
    for each, holds in zip(batch, answers, strict=True):
        each.answer.set_result(holds)


def _fail(batch: list[Append], error: BaseException) -> None:
    for each in batch:
        if not each.answer.done():
            each.answer.set_exception(error)


class Journal(Protocol):
    """What makes commits durable: SQLite here, PostgreSQL in `postgres_floor.py`."""

    def append(
        self, run_id: str, first_event: int, turn_id: int, events: str, create: str | None = None, close: bool = False
    ) -> asyncio.Future[bool]:
        """True if the guard held and the commit is on disk."""
        ...


class Floor:
    """Runs that are nothing but their commits."""

    def __init__(self, writer: Journal) -> None:
        self._writer = writer
        self._runs = 0
        self._turns = 0

    async def run_once(self, workflow_id: str, activities: int) -> str:
        # 32 digits that grow, like the ids of Outlast: so that rows go to the same places of the file.
        self._runs += 1
        run_id = f"{self._runs:032x}"
        await self._commit(run_id, 1, FIRST_EVENTS, create=workflow_id)
        for index in range(1, activities):
            await self._commit(run_id, 1 + 2 * index, NEXT_EVENTS)
        await self._commit(run_id, 1 + 2 * activities, LAST_EVENTS, close=True)
        return step_result(activities - 1)

    async def _commit(
        self, run_id: str, first_event: int, events: str, create: str | None = None, close: bool = False
    ) -> None:
        self._turns += 1
        if not await self._writer.append(run_id, first_event, self._turns, events, create, close):
            raise AssertionError(f"the guard of run {run_id} at event {first_event} did not hold")


@asynccontextmanager
async def open_floor(setting: Setting) -> AsyncIterator[Subject]:
    path = setting.folder / "floor.db"
    writer = Writer(path)
    notes: dict[str, str | float] = {"synchronous": "FULL", "journal mode": "WAL"}

    async def check(done: int, activities: int) -> None:
        await check_journal(f"sqlite:///{path}", done, activities)
        notes["bytes per commit"] = await journal_bytes(f"sqlite:///{path}")

    try:
        yield Subject(Floor(writer).run_once, check, notes=notes)
    finally:
        await writer.close()


if __name__ == "__main__":
    main(open_floor)
