"""Outlast under load: client and worker in one process, on SQLite or PostgreSQL, with its default settings.

Each commit is timed where the node hands it to the store: until the store says that it is on disk.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import outlast
from bench.journals import check_journal, journal_bytes
from bench.load import Setting, Subject, main, step_result
from outlast import activity, workflow
from outlast.sdk.client import Connecting
from outlast.sdk.url import open_store
from outlast.store.api import Answer, Commit, Store


@activity
async def step(index: int) -> str:
    return step_result(index)


@workflow
async def chain(activities: int) -> str:
    last = ""
    for index in range(activities):
        last = await step(index)
    return last


class Timed:
    """A store that notes how long each commit takes."""

    def __init__(self, store: Store, commits: list[float]) -> None:
        self._store = store
        self._commits = commits

    async def commit(self, batch: Sequence[Commit]) -> list[Answer]:
        began = time.perf_counter()
        answers = await self._store.commit(batch)
        self._commits += [time.perf_counter() - began] * len(batch)
        return answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def url_of(setting: Setting) -> str:
    return setting.url or f"sqlite:///{setting.folder / 'outlast.db'}"


@asynccontextmanager
async def open_outlast(setting: Setting) -> AsyncIterator[Subject]:
    url = url_of(setting)
    notes: dict[str, str | float] = {"version": outlast.__version__}
    if setting.url is None:
        notes |= {"synchronous": "FULL", "journal mode": "WAL"}
    commits: list[float] = []
    store = cast(Store, Timed(open_store(url), commits))
    async with Connecting(store) as client, client.worker(chain, step):

        async def run_once(workflow_id: str, activities: int) -> str:
            handle = await client.start(chain, activities, id=workflow_id)
            return await handle.result()

        async def check(done: int, activities: int) -> None:
            await check_journal(url, done, activities)
            notes["bytes per commit"] = await journal_bytes(url)

        yield Subject(run_once, check, setting.server_cpu_s, notes, commits)


if __name__ == "__main__":
    main(open_outlast)
