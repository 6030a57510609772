"""Outlast under load: client and worker in one process, on a SQLite file with its default settings (FULL, WAL)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import outlast
from bench.floor import check_journal, journal_bytes
from bench.load import Subject, main, step_result
from outlast import activity, workflow


@activity
async def step(index: int) -> str:
    return step_result(index)


@workflow
async def chain(activities: int) -> str:
    last = ""
    for index in range(activities):
        last = await step(index)
    return last


@asynccontextmanager
async def open_outlast(folder: Path, runs: int) -> AsyncIterator[Subject]:
    path = folder / "outlast.db"
    notes: dict[str, str | float] = {"synchronous": "FULL", "journal mode": "WAL", "version": outlast.__version__}
    async with outlast.connect(f"sqlite:///{path}") as client:
        async with client.worker(chain, step):

            async def run_once(workflow_id: str, activities: int) -> str:
                handle = await client.start(chain, activities, id=workflow_id)
                return await handle.result()

            async def check(done: int, activities: int) -> None:
                check_journal(path, done, activities)
                notes["bytes per commit"] = journal_bytes(path)

            yield Subject(run_once, check, notes=notes)


if __name__ == "__main__":
    main(open_outlast)
