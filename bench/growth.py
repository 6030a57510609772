"""What a million runs leave behind on PostgreSQL, and what claims cost among them: `python -m bench --growth 1000000`.

Theory of operation
===================
The runs are short ones, and their commits are those that a node makes; but they are handed to the store directly,
without workflow code, so that the database is the bottleneck and a million take minutes. Each run is created with its
owner, advanced `STEPS` - 1 times and closed, with the texts of the floor. One in `AWAY` also leaves: it is given
back, gets a message, is claimed again by its node and takes the message; so every table that matters has its traffic.
Three groups are on their way at a time, each in batches; what the store refuses is an error.

Ten times on the way the server is asked for its own account of the tables: dead rows, sizes, how many updates were
HOT, how often autovacuum came. At the beginning and at each look claims are timed, in the same way: so many runs are
given back, and claimed in one call. What they cost between two vacuums counts, so the slowest look is the one that is
judged. The server runs with its default settings, autovacuum as it comes.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.floor import AT_US, FIRST_EVENTS, LAST_EVENTS, NEXT_EVENTS
from bench.load import percentile
from bench.postgres import connected, wait_until_left
from bench.verdicts import Verdict
from outlast.model.ids import DEFAULT_NAMESPACE, DEFAULT_QUEUE, MessageId, NodeId, RunId, WorkflowId, turn_id
from outlast.sdk.url import open_store
from outlast.store.api import (
    Answer,
    Claim,
    Commit,
    Fence,
    Mail,
    NewMail,
    NewRun,
    Release,
    RunStatus,
    Sent,
    Store,
)

STEPS = 2
"""Commits that follow the first one of a run; the last of them closes it."""

GROUP = 256
"""Runs that go the way together: one batch of commits each step."""

GROUPS = 3
"""On their way at a time, as many batches as a node has."""

AWAY = 10
"""One run in so many leaves its owner on the way."""

LOOKS = 10

CLAIMED = 64
CLAIMS = 30
"""Claims of so many runs each that are timed, at the beginning and at each look."""

WORKFLOW = "chain"

TARGET_CLAIM = 2.0
"""Times the median of the beginning: what a claim may take at any look."""

NAP_S = 60.0
"""Autovacuum comes to a database once in this time, by default."""

TARGET_NAPS = 2.5
"""The most dead rows that `runs` may have, as the time in which so many come up: one nap, and time to work."""

TABLES = ("runs", "journal", "mailbox", "woken", "tasks", "nodes", "run_details")

ACCOUNT = """
SELECT relname AS name, n_live_tup AS live, n_dead_tup AS dead, n_tup_ins AS inserted, n_tup_upd AS updated,
       n_tup_hot_upd AS hot, n_tup_del AS deleted, autovacuum_count AS vacuums, autoanalyze_count AS analyses,
       pg_table_size(relid) AS table_bytes, pg_indexes_size(relid) AS index_bytes
  FROM pg_stat_user_tables WHERE schemaname = 'outlast' AND relname = ANY ($1)
"""

INDEXES = """
SELECT indexrelname AS name, pg_relation_size(indexrelid) AS bytes
  FROM pg_stat_user_indexes WHERE schemaname = 'outlast' ORDER BY 2 DESC
"""


@dataclass(frozen=True, slots=True)
class TableAccount:
    """What the server says of one table."""

    name: str
    live: int
    dead: int
    inserted: int
    updated: int
    hot: int
    deleted: int
    vacuums: int
    analyses: int
    table_bytes: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class Look:
    """The tables at one moment."""

    runs: int
    """Done by then."""
    seconds: float
    tables: dict[str, TableAccount]
    claims_ms: list[float]
    """Sorted."""


@dataclass(frozen=True, slots=True)
class Growth:
    runs: int
    seconds: float
    """For the runs, without the looks and the timed claims."""
    commits: int
    looks: list[Look]
    indexes: dict[str, int]
    """Bytes, at the end."""
    claims_before_ms: list[float]
    wal_bytes: int

    @property
    def slowest(self) -> Look:
        """Where the median claim took longest."""
        return max(self.looks, key=lambda each: percentile(each.claims_ms, 50))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Fleet:
    """A node, played: makes runs and everything that is written of them."""

    def __init__(self, store: Store, node: NodeId) -> None:
        self.commits = 0
        self._store = store
        self._node = node
        self._numbers = itertools.count(1)
        self._turns = itertools.count(1)

    async def live(self, runs: int) -> None:
        """So many runs, from start to end; some leave on the way."""
        ids = self._new_ids(runs)
        await self._create(ids)
        for step in range(1, STEPS):
            await self._commit([self._turn(each, 1 + 2 * step, NEXT_EVENTS) for each in ids])
        away = ids[::AWAY]
        first = 1 + 2 * STEPS
        mail = await self._leave_and_return(away, first)
        await self._commit([self._turn(each, first, LAST_EVENTS, close=True, mail=mail.get(each)) for each in ids])

    async def _leave_and_return(self, ids: Sequence[RunId], next_event: int) -> dict[RunId, Mail]:
        await self._give_back(ids, next_event, wake_at_us=None)
        sent = await self._store.send([NewMail(each, MessageId("m"), AT_US, b'{"type":"Wake"}') for each in ids])
        if set(sent) != {Sent.ACCEPTED}:
            raise AssertionError(f"the mail of {len(ids)} open runs was answered with {set(sent)}")
        # Another group of this node may have claimed these, and this one theirs: whoever it was, they are back.
        waiting = set(ids)
        while waiting:
            await self._claim(len(ids))
            rows = await asyncio.gather(*(self._store.run(each) for each in waiting))
            waiting -= {row.run_id for row in rows if row is not None and row.owner == self._node}
        return {each.run_id: each for each in await self._store.mail_for(ids)}

    async def time_claims(self) -> list[float]:
        """Milliseconds that a claim of runs which are due has taken, each time of as many."""
        ids = self._new_ids(CLAIMED)
        await self._create(ids)
        taken_ms: list[float] = []
        for _ in range(CLAIMS):
            await self._give_back(ids, 3, wake_at_us=AT_US)
            began = time.perf_counter()
            claimed = await self._claim(CLAIMED)
            taken_ms.append((time.perf_counter() - began) * 1e3)
            if claimed != CLAIMED:
                raise AssertionError(f"{claimed} runs were claimed, expected {CLAIMED}")
        await self._commit([self._turn(each, 3, LAST_EVENTS, close=True) for each in ids])
        return sorted(taken_ms)

    def _new_ids(self, runs: int) -> list[RunId]:
        # 32 digits that grow, as those of Outlast do.
        return [RunId(f"{next(self._numbers):032x}") for _ in range(runs)]

    async def _create(self, ids: Sequence[RunId]) -> None:
        await self._commit(
            [Commit(each, self._turn_id(), AT_US, FIRST_EVENTS.encode(), 2, create=self._new_run(each)) for each in ids]
        )

    def _new_run(self, run_id: RunId) -> NewRun:
        return NewRun(DEFAULT_NAMESPACE, WorkflowId(f"order-{run_id}"), WORKFLOW, DEFAULT_QUEUE, self._node, None)

    def _turn(
        self, run_id: RunId, first_event: int, events: str, *, close: bool = False, mail: Mail | None = None
    ) -> Commit:
        return Commit(
            run_id,
            self._turn_id(),
            AT_US,
            events.encode(),
            2,
            fence=Fence(self._node, first_event),
            status=RunStatus.COMPLETED if close else None,
            consume=() if mail is None else (mail.mail_id,),
        )

    async def _give_back(self, ids: Sequence[RunId], next_event: int, wake_at_us: int | None) -> None:
        fence = Fence(self._node, next_event)
        release = Release(wake_at_us)
        await self._commit([Commit(each, self._turn_id(), AT_US, fence=fence, release=release) for each in ids])

    async def _claim(self, limit: int) -> int:
        wanted = Claim(self._node, DEFAULT_NAMESPACE, (DEFAULT_QUEUE,), (WORKFLOW,), 1, AT_US, limit)
        return len(await self._store.claim(wanted))

    def _turn_id(self) -> Any:
        return turn_id(self._node, next(self._turns))

    async def _commit(self, batch: list[Commit]) -> None:
        answers = await self._store.commit(batch)
        if set(answers) != {Answer.COMMITTED}:
            raise AssertionError(
                f"{len(batch)} commits that nothing is in the way of were answered with {set(answers)}"
            )
        self.commits += len(batch)


async def grow(url: str, runs: int, tell: Callable[[str], None]) -> Growth:
    """Make them, and look."""
    store = open_store(url)
    await store.open()
    try:
        node = await store.join("bench/growth")
        fleet = Fleet(store, node)
        wal_before = await _wal_bytes(url)
        before_ms = await fleet.time_claims()
        looks: list[Look] = []
        done, seconds = 0, 0.0
        for part in _parts(runs, LOOKS):
            began = time.perf_counter()
            await _in_groups(fleet.live, part)
            seconds += time.perf_counter() - began
            done += part
            looks.append(await _look(url, done, seconds, await fleet.time_claims()))
            tell(f"growth: {done:,} runs in {seconds:.0f} s")
        await store.declare_dead(node)
    finally:
        await store.close()
    await _check(url, runs + (1 + len(looks)) * CLAIMED)
    # What the store's connections have not handed in before they ended is missing from the looks on the way.
    looks[-1] = await _look(url, done, seconds, looks[-1].claims_ms, wait=True)
    indexes = await _indexes(url)
    wal_bytes = await _wal_bytes(url) - wal_before
    return Growth(runs, seconds, fleet.commits, looks, indexes, before_ms, wal_bytes)


def _parts(whole: int, number: int) -> Iterator[int]:
    each, more = divmod(whole, number)
    for index in range(number):
        if part := each + (index < more):
            yield part


async def _in_groups(live: Callable[[int], Awaitable[None]], runs: int) -> None:
    sizes = iter([GROUP] * (runs // GROUP) + ([runs % GROUP] if runs % GROUP else []))

    async def lane() -> None:
        for size in sizes:
            await live(size)

    async with asyncio.TaskGroup() as group:
        for _ in range(GROUPS):
            group.create_task(lane())


async def _look(url: str, runs: int, seconds: float, claims_ms: list[float], *, wait: bool = False) -> Look:
    async with connected(url) as db:
        if wait:
            await wait_until_left(db, urlsplit(url).path.removeprefix("/"))
        rows = await db.fetch(ACCOUNT, list(TABLES))
    return Look(runs, seconds, {row["name"]: TableAccount(**row) for row in rows}, claims_ms)


async def _indexes(url: str) -> dict[str, int]:
    async with connected(url) as db:
        return {row["name"]: row["bytes"] for row in await db.fetch(INDEXES)}


async def _wal_bytes(url: str) -> int:
    async with connected(url) as db:
        return int(await db.fetchval("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"))


async def _check(url: str, runs: int) -> None:
    """Raises unless the database holds so many closed runs, and nothing that waits."""
    async with connected(url) as db:
        closed, left = await db.fetchrow(
            "SELECT count(*) FILTER (WHERE status = 'completed'), count(*) FILTER (WHERE status = 'open') "
            "FROM outlast.runs"
        )
        mail = await db.fetchval("SELECT count(*) FROM outlast.mailbox")
        woken = await db.fetchval("SELECT count(*) FROM outlast.woken")
    if (closed, left, mail, woken) != (runs, 0, 0, 0):
        raise AssertionError(
            f"{closed} runs are closed and {left} open, with {mail} messages, {woken} woken; expected {runs} closed"
        )


def verdicts(growth: Growth) -> list[Verdict]:
    slowest = growth.slowest
    before_ms, worst_ms = (percentile(each, 50) for each in (growth.claims_before_ms, slowest.claims_ms))
    told = [
        Verdict(
            f"up to {growth.runs:,} runs: a claim of {CLAIMED}, p50",
            f"at most {TARGET_CLAIM} times the time before",
            f"{before_ms:.1f} ms before, at worst {worst_ms:.1f} ms, after {slowest.runs:,}",
            worst_ms <= TARGET_CLAIM * before_ms,
        )
    ]
    # Shorter than that, it cannot be missed.
    if growth.seconds > TARGET_NAPS * NAP_S:
        last = growth.looks[-1].tables["runs"]
        dying_per_s = (last.updated - last.hot) / growth.seconds
        most = max(each.tables["runs"].dead for each in growth.looks)
        told.append(
            Verdict(
                f"up to {growth.runs:,} runs: autovacuum keeps up with `runs`",
                f"never more dead rows than come up in {TARGET_NAPS * NAP_S:.0f} s",
                f"at most {most:,}, of {most / dying_per_s:.0f} s; {last.vacuums} vacuums",
                most <= TARGET_NAPS * NAP_S * dying_per_s,
            )
        )
    return told
