"""The databases that the cluster tests run on: the same tests on each."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from pathlib import Path
from typing import Protocol

import asyncpg

import postgres
from outlast.store.postgres_errors import CONNECTION_ERRORS


class Database(Protocol):
    kind: str
    url: str

    def can_be_written(self) -> bool:
        """Whether nobody keeps all others from writing for more than a moment."""
        ...


class SqliteDatabase:
    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cluster.db"
        # Processes are killed here, not machines: then NORMAL keeps as much as FULL, and the disk is spared.
        self.url = f"sqlite:///{self._path}?synchronous=normal"

    def can_be_written(self) -> bool:
        db = sqlite3.connect(self._path, timeout=0.5, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return False
        finally:
            db.close()
        return True


class PostgresDatabase:
    kind = "postgres"

    def __init__(self, url: str) -> None:
        self.url = url

    def can_be_written(self) -> bool:
        return True  # no call of a client leaves a transaction open, wherever the client stops

    async def cut(self, rng: random.Random, share: float) -> None:
        """Have the server end a share of the connections to this database, at least one if there is any.

        If the server is being restarted just now, it ends them all by itself.
        """
        with contextlib.suppress(*CONNECTION_ERRORS, asyncpg.PostgresError):
            connection = await asyncpg.connect(self.url)
            try:
                pids = [pid for (pid,) in await connection.fetch(postgres.BACKENDS)]
                chosen = rng.sample(pids, max(1, int(len(pids) * share))) if pids else []
                await connection.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", chosen)
            finally:
                connection.terminate()

    def can_restart(self) -> bool:
        """Not a server that somebody else has started."""
        return "://" not in os.environ.get(postgres.CHOSEN, "")

    async def restart(self, *, crash: bool = False) -> None:
        await postgres.restart(self.url, crash=crash)
