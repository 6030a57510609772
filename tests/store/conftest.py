from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from outlast.store.api import MAILBOX_LIMIT, Store
from outlast.store.memory import MemoryStore
from outlast.store.sqlite import SqliteStore


class Database:
    """A database of one kind, and the stores that are open on it."""

    def __init__(self, connect: Callable[[], Store]) -> None:
        self._connect = connect
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


def make_database(kind: str, folder: Path, mailbox_limit: int = MAILBOX_LIMIT) -> Database:
    if kind == "memory":
        memory = MemoryStore(mailbox_limit=mailbox_limit)
        return Database(memory.connect)
    # FULL is for power failures, which no test here makes; without it the suite is not a test of the disk.
    path = str(folder / "outlast.db")
    return Database(lambda: SqliteStore(path, synchronous="OFF", mailbox_limit=mailbox_limit))


@pytest.fixture(params=["memory", "sqlite"])
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
