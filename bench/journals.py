"""What a database must hold after a cell: the same look at Outlast and at the floor, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from bench.postgres import connected

SQLITE_PREFIX = "sqlite:///"

CLOSED = "SELECT count(*) FROM {runs} WHERE status = 'completed'"
ROWS = "SELECT count(*) FROM {journal}"
MEAN = "SELECT avg(length({events})) FROM {journal}"


async def check_journal(url: str, runs: int, activities: int) -> None:
    """Raises unless the database holds so many closed runs, with N + 1 journal rows each."""
    closed, rows = await ask(url, CLOSED, ROWS)
    if (closed, rows) != (runs, runs * (activities + 1)):
        raise AssertionError(
            f"{url}: {closed} runs completed in {rows} commits, expected {runs} in {runs * (activities + 1)}"
        )


async def journal_bytes(url: str) -> float:
    """Mean size of the events in a journal row."""
    (mean,) = await ask(url, MEAN)
    return float(mean)


async def ask(url: str, *questions: str) -> list[Any]:
    """The one value that each gives; names of tables are written in braces."""
    if url.startswith(SQLITE_PREFIX):
        names = {"runs": "runs", "journal": "journal", "events": "events"}
        with closing(sqlite3.connect(url.removeprefix(SQLITE_PREFIX))) as db:
            return [db.execute(each.format(**names)).fetchone()[0] for each in questions]
    names = {"runs": "outlast.runs", "journal": "outlast.journal", "events": "events::text"}
    async with connected(url) as db:
        return [await db.fetchval(each.format(**names)) for each in questions]
