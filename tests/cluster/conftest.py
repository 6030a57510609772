from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import outlast
import postgres
from cluster.databases import Database, PostgresDatabase, SqliteDatabase
from cluster.nodes import Cluster
from outlast import Client


@pytest.fixture
def postgres_database() -> Iterator[PostgresDatabase]:
    database = PostgresDatabase(postgres.require(postgres.fresh_database))
    yield database
    postgres.drop_database(database.url)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return SqliteDatabase(tmp_path)
    found: PostgresDatabase = request.getfixturevalue("postgres_database")
    return found


@pytest.fixture
def cluster(database: Database, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(database, tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def client(database: Database) -> AsyncIterator[Client]:
    """The driver: starts runs and awaits them, and hosts nothing."""
    async with outlast.connect(database.url) as client:
        yield client
