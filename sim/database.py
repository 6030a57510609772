"""The database of a world: the real SQLite store's two halves on one connection in memory, called inline.

Connections are kept and emptied between worlds: making the schema and compiling the triggers takes longer than
many a whole simulation.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from outlast.store import sqlite_migrate
from outlast.store.sqlite_reader import SqliteReader
from outlast.store.sqlite_writer import Call, SqliteWriter, outgoing, turns

_kept: dict[int, Database] = {}
"""By the limit of mailboxes, which is compiled into the triggers."""


def close_kept() -> None:
    for database in _kept.values():
        database.db.close()
    _kept.clear()


class Database:
    def __init__(self, mailbox_limit: int) -> None:
        db = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        sqlite_migrate.migrate(db, "simulated")
        self.db = db
        self.writer = SqliteWriter(db, "simulated", None, mailbox_limit)
        self.reader = SqliteReader(db, "simulated", None)
        db.execute("PRAGMA query_only = 0")  # the reader has a connection of its own elsewhere

    @classmethod
    def fresh(cls, mailbox_limit: int) -> Database:
        database = _kept.get(mailbox_limit)
        if database is None:
            database = _kept[mailbox_limit] = cls(mailbox_limit)
        database.clear()
        return database

    def clear(self) -> None:
        names = self.rows("SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'schema%'")
        self.db.execute("BEGIN")
        for (name,) in names:
            self.db.execute(f"DELETE FROM main.{name}")
        self.db.execute("COMMIT")

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self.db.execute(statement, values).fetchall()

    # --- what the store does ------------------------------------------------------------------------------------------

    def writes(self, method: str) -> bool:
        return not hasattr(self.reader, method)

    def apply(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Do what a method of the store does, at this moment. Raises what it raises."""
        if not self.writes(method):
            return getattr(self.reader, method)(*args, **kwargs)
        operation: Any
        match method:
            case "commit":
                operation = turns(*args)
            case "send":
                operation = outgoing(*args)
            case _:
                operation = Call(lambda writer: getattr(writer, method)(*args, **kwargs))
        (answer,) = self.writer.write([operation])
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def is_alive(self, node: int) -> bool:
        return bool(self.rows("SELECT 1 FROM nodes WHERE node_id = ? AND alive", node))
