from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import pgbouncer
import postgres
from outlast.store.api import MAILBOX_LIMIT, Store
from outlast.store.memory import MemoryStore
from outlast.store.postgres import PostgresStore
from outlast.store.sqlite import SqliteStore


class Database:
    """A database of one kind, and the stores that are open on it."""

    def __init__(self, connect: Callable[[], Store], drop: Callable[[], None] = lambda: None) -> None:
        self._connect = connect
        self._drop = drop
        self._stores: list[Store] = []

    async def connect(self) -> Store:
        """One more store on the same data, as another process would have."""
        store = self._connect()
        await store.open()
        self._stores.append(store)
        return store

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        self._drop()


def make_database(kind: str, folder: Path, mailbox_limit: int = MAILBOX_LIMIT) -> Database:
    if kind == "memory":
        memory = MemoryStore(mailbox_limit=mailbox_limit)
        return Database(memory.connect)
    if kind in ("postgres", "pgbouncer"):
        url = postgres.require(postgres.fresh_database)
        reached = postgres.require(lambda: pgbouncer.pooled(url)) if kind == "pgbouncer" else url
        return Database(
            lambda: PostgresStore(reached, mailbox_limit=mailbox_limit), drop=lambda: postgres.drop_database(url)
        )
    # FULL is for power failures, which no test here makes; without it the suite is not a test of the disk.
    path = str(folder / "outlast.db")
    return Database(lambda: SqliteStore(path, synchronous="OFF", mailbox_limit=mailbox_limit))


TELLING = pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"], indirect=True)
"""For what a store learns of others by itself: behind a pooler it learns nothing."""


@pytest.fixture(params=["memory", "sqlite", "postgres", pytest.param("pgbouncer", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def database(kind: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = make_database(kind, tmp_path)
    yield database
    await database.close()


@pytest.fixture
async def store(database: Database) -> Store:
    return await database.connect()
