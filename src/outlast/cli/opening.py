"""Opening a database to look at it: no file is made, no worker starts, and little is imported."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from outlast.model.errors import RunNotFound
from outlast.model.ids import DEFAULT_NAMESPACE, RunId, WorkflowId
from outlast.runtime.clock import clock_of
from outlast.runtime.ports import SystemEntropy
from outlast.runtime.service import Service
from outlast.sdk.url import default_url, open_store
from outlast.store.api import RunFilter, RunRow

T = TypeVar("T")

NEAR_AMONG = 1_000
"""When an id is not known, so many of the newest runs are looked through for one that is spelled like it."""


@asynccontextmanager
async def opened(url: str | None) -> AsyncGenerator[Service, None]:
    """A database that exists. Raises NotADatabase if there is none."""
    store = open_store(url, create=False)
    await store.open()
    try:
        service = Service(store, await clock_of(store), SystemEntropy(), DEFAULT_NAMESPACE)
        try:
            yield service
        finally:
            await service.close()
    finally:
        await store.close()


def look(url: str | None, at: Callable[[Service], Awaitable[T]]) -> T:
    """Open the database, ask it one thing, and close it."""

    async def ask() -> T:
        async with opened(url) as service:
            return await at(service)

    return asyncio.run(ask())


async def find(service: Service, name: str, url: str | None) -> RunRow:
    """The run that `name` stands for: a workflow id (the open run, else the last one), or a run id."""
    try:
        return await service.find(WorkflowId(name))
    except RunNotFound:
        row = await service.store.run(RunId(name))
        if row is not None:
            return row
        raise RunNotFound(
            f"there is no run with the id {name!r} in {url or default_url()}{await _near(service, name)}"
        ) from None


async def _near(service: Service, name: str) -> str:
    newest = await service.runs(RunFilter(service.namespace, limit=NEAR_AMONG))
    near = difflib.get_close_matches(name, dict.fromkeys(row.workflow_id for row in newest), 3)
    return f"; ids like it: {', '.join(near)}" if near else "; `outlast list` shows what there is"
