"""The floor on PostgreSQL: what the server allows to bare group commit by asyncpg. The same commits, and no engine.

Theory of operation
===================
The runs are those of `floor.py`; their commits wait in one list. So many connections each take all that waits and
write it with ONE statement, which is its own transaction: new runs are inserted, the others updated under the guard
(owner, next_event and status are what the run believes) from arrays, and a journal row is inserted for each that won.
The next batch forms while those are on their way.

How many connections are best depends on the machine and on the load (asyncpg sends one statement at a time on each,
so this is also the depth of the pipeline): before the clock starts, 1 to 3 are tried, and the best is kept and told.

Tables, sizes of rows and the closing update are those of Outlast; its indexes for claims are left out, since no engine
is here to claim anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from bench.floor import AT_US, Floor
from bench.journals import check_journal, journal_bytes
from bench.load import Setting, Subject, lanes, main

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS outlast;
CREATE TABLE IF NOT EXISTS outlast.runs (
    next_event    integer NOT NULL,
    claims        integer NOT NULL,
    turn_id       bigint,
    owner         bigint,
    wake_at_us    bigint,
    started_at_us bigint  NOT NULL,
    closed_at_us  bigint,
    priority      bigint  NOT NULL,
    format        integer NOT NULL,
    status        text COLLATE "C" NOT NULL,
    run_id        text COLLATE "C" NOT NULL PRIMARY KEY,
    namespace     text COLLATE "C" NOT NULL,
    workflow_id   text COLLATE "C" NOT NULL,
    workflow      text COLLATE "C" NOT NULL,
    queue         text COLLATE "C" NOT NULL,
    kind          text COLLATE "C" NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
CREATE UNIQUE INDEX IF NOT EXISTS runs_open_id ON outlast.runs (namespace, workflow_id) WHERE status = 'open';
CREATE TABLE IF NOT EXISTS outlast.journal (
    run_id      text COLLATE "C" NOT NULL,
    first_event integer NOT NULL,
    count       integer NOT NULL,
    turn_id     bigint,
    at_us       bigint  NOT NULL,
    events      text    NOT NULL,
    PRIMARY KEY (run_id, first_event)
);
"""

# Written so that no partial index can be thought to help: a plan made while the tables are empty would look through
# all open runs for each turn.
WRITE = """
WITH turn AS (
    SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::text[], $6::boolean[])
               AS turn (run_id, first_event, turn_id, events, workflow_id, closes)
), started AS (
    INSERT INTO outlast.runs (next_event, claims, turn_id, owner, started_at_us, priority, format, status,
                              run_id, namespace, workflow_id, workflow, queue, kind)
    SELECT first_event + 2, 0, turn_id, 1, $7, 0, 1, 'open',
           run_id, 'default', workflow_id, 'chain', 'default', 'python'
      FROM turn WHERE workflow_id IS NOT NULL
), advanced AS (
    UPDATE outlast.runs AS run
       SET next_event   = turn.first_event + 2,
           turn_id      = turn.turn_id,
           claims       = 0,
           status       = CASE WHEN turn.closes THEN 'completed' ELSE run.status END,
           owner        = CASE WHEN turn.closes THEN NULL ELSE run.owner END,
           closed_at_us = CASE WHEN turn.closes THEN $7 ELSE run.closed_at_us END
      FROM turn
     WHERE turn.workflow_id IS NULL AND run.run_id = turn.run_id
       AND run.owner = 1 AND run.next_event = turn.first_event AND run.status IS NOT DISTINCT FROM 'open'
    RETURNING turn.run_id, turn.first_event, turn.turn_id, turn.events
), won AS (
    SELECT run_id, first_event, turn_id, events FROM turn WHERE workflow_id IS NOT NULL
     UNION ALL
    SELECT run_id, first_event, turn_id, events FROM advanced
)
INSERT INTO outlast.journal (run_id, first_event, count, turn_id, at_us, events)
SELECT run_id, first_event, 2, turn_id, $7, events FROM won
RETURNING run_id
"""

# As Outlast has them: the plan is made once, small tables are no reason for another one, and nothing is compiled.
SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

CONNECTIONS = (1, 2, 3)
TRIAL_S = 0.4
"""For each number of connections: long enough to tell them apart where it matters."""

BATCH = 512
"""Commits in one statement, as Outlast limits its own."""


class Append(NamedTuple):
    """One commit of one run, as the columns of `WRITE`."""

    run_id: str
    first_event: int
    turn_id: int
    events: str
    create: str | None
    close: bool
    answer: asyncio.Future[bool]


class Writer:
    """The connections, and the list of what waits for one of them."""

    def __init__(self, connections: list[Any]) -> None:
        self.in_use = len(connections)
        self._loop = asyncio.get_running_loop()
        self._free = connections
        self._waiting: list[Append] = []
        self._writing: set[asyncio.Task[None]] = set()
        self._sending = False

    def append(
        self, run_id: str, first_event: int, turn_id: int, events: str, create: str | None = None, close: bool = False
    ) -> asyncio.Future[bool]:
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append(Append(run_id, first_event, turn_id, events, create, close, answer))
        if not self._sending:
            # Whatever the runs ask for in this turn of the loop goes together.
            self._sending = True
            self._loop.call_soon(self._send)
        return answer

    def _send(self) -> None:
        self._sending = False
        while self._waiting and self._free and len(self._writing) < self.in_use:
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            task = self._loop.create_task(self._write(self._free.pop(), batch))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _write(self, write: Any, batch: list[Append]) -> None:
        batch.sort()
        run_ids, first_events, turn_ids, events, creates, closes, answers = zip(*batch, strict=True)
        try:
            won = {row[0] for row in await write.fetch(run_ids, first_events, turn_ids, events, creates, closes, AT_US)}
        except BaseException as error:
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
            return
        finally:
            self._free.append(write)
            self._loop.call_soon(self._send)
        for run_id, answer in zip(run_ids, answers, strict=True):
            answer.set_result(run_id in won)


@asynccontextmanager
async def open_postgres_floor(setting: Setting) -> AsyncIterator[Subject]:
    import asyncpg

    assert setting.url is not None
    connections = [await asyncpg.connect(setting.url, server_settings=SETTINGS) for _ in CONNECTIONS]
    try:
        await connections[0].execute(SCHEMA)
        writer = Writer([await each.prepare(WRITE) for each in connections])
        floor = Floor(writer)
        notes: dict[str, str | float] = {}

        async def tune(runs: int, activities: int) -> int:
            rates: dict[int, float] = {}
            done = 0
            for writer.in_use in CONNECTIONS:
                began = time.perf_counter()
                tried = len(await lanes(floor.run_once, f"tune-{writer.in_use}", runs, activities, TRIAL_S))
                rates[writer.in_use] = tried / (time.perf_counter() - began)
                done += tried
            writer.in_use = max(rates, key=rates.__getitem__)
            notes["connections"] = str(writer.in_use)
            return done

        async def check(done: int, activities: int) -> None:
            assert setting.url is not None
            await check_journal(setting.url, done, activities)
            notes["bytes per commit"] = await journal_bytes(setting.url)

        yield Subject(floor.run_once, check, setting.server_cpu_s, notes, tune=tune)
    finally:
        for each in connections:
            await each.close()


if __name__ == "__main__":
    main(open_postgres_floor)
