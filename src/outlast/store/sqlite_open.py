"""Opening a SQLite file: refuse what is not ours without touching it, else connect.

A refused file must not change, not even its journal mode, and no file may appear beside it. So the first look is
`immutable`: SQLite then reads the bare file, without locks, log or recovery. It says enough: our application id is
there, or the file is empty, or it belongs to somebody else. The file is never opened except by SQLite (see
`liveness.py`). What the look cannot see (a schema that is still in the log of a process that crashed) is looked at
again by `migrate`, before the first write.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from outlast.model.errors import InvalidArgument, NotADatabase, StoreUnavailable
from outlast.store import sqlite_migrate as migrate
from outlast.store.migrate import Plan
from outlast.store.sqlite_errors import translated

OLDEST_SQLITE = (3, 35, 0)
"""Of March 2021. Older ones might do, but nobody tests them."""

SMALLEST_FILE = 512
"""Bytes: one page of the smallest size that SQLite has."""

BUSY_TIMEOUT_S = 5.0
"""How long a statement waits for another process. A healthy one holds the write lock for some milliseconds."""

WAL_PAGES = 16_384
"""The log is written back into the file when it has this many pages (64 MB) and no idle moment came: rarely, since
that stalls commits, and yet so that the log stays smaller than most databases."""

CACHE_KIB = 65_536
"""Page cache of a connection, used only as needed. The pages of a few thousand hot runs fit."""

SYNCHRONOUS = ("FULL", "NORMAL", "OFF")


def check_path(path: str, *, create: bool) -> None:
    """Raises NotADatabase if nothing can or should be opened at `path`. Changes nothing."""
    if path in ("", ":memory:"):
        raise InvalidArgument(
            f"path={path!r}: this store needs a file, because several threads and processes share it. "
            "Give the path of a file, or use MemoryStore for a test."
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise NotADatabase(f"{path} cannot be opened: there is no folder {folder}. Create the folder first.")
    if os.path.isdir(path):
        raise NotADatabase(f"{path} is a folder. Give the path of a file in it, for example {path}/outlast.db.")
    if not os.path.exists(path):
        if not create:
            raise NotADatabase(f"no such file: {path}. It is created when a worker is started with it.")
        return
    size = os.path.getsize(path)
    if 0 < size < SMALLEST_FILE:
        # SQLite would take it for an empty database, and write over it.
        raise _not_sqlite(path, f"{size} bytes long")
    if size > 0:
        _look_inside(path)


def _look_inside(path: str) -> None:
    """Again while another process writes its log back into the file: what is read meanwhile may not fit together."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            _look_once(path)
            return
        except sqlite3.DatabaseError as error:
            torn = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT
            in_use = os.path.exists(os.path.realpath(path) + "-wal")
            if not (torn and in_use) or time.monotonic() > deadline:
                raise _not_sqlite(path, error) from error
            time.sleep(0.005)


def _look_once(path: str) -> None:
    db = sqlite3.connect(f"{_uri(path)}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        if application_id != migrate.APPLICATION_ID:
            migrate.check(db, path)
    finally:
        db.close()


def connect(path: str, *, create: bool, synchronous: str) -> sqlite3.Connection:
    """A connection in autocommit mode, to be used by one thread at a time. The file has been checked."""
    db = sqlite3.connect(
        f"{_uri(path)}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        migrate.check(db, path)
        _use_wal(db, path)
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        # After a checkpoint the log is cut back to this size, should it have outgrown it.
        db.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * 4096}")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        db.close()
        raise
    return db


def _use_wal(db: sqlite3.Connection, path: str) -> None:
    """The one statement for which SQLite does not wait while another process does the same."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
    if mode != "wal":
        raise StoreUnavailable(
            f"{path}: SQLite cannot keep a write-ahead log here (journal mode {mode!r}). Most likely the file is on a "
            "network file system. Use a local disk."
        )


def open_database(path: str, *, create: bool, synchronous: str) -> sqlite3.Connection:
    """Check, connect, migrate."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreUnavailable(
            f"SQLite {sqlite3.sqlite_version} is too old; Outlast needs {'.'.join(map(str, OLDEST_SQLITE))} or newer. "
            "It comes with Python: use a newer build of Python."
        )
    try:
        check_path(path, create=create)
        db = connect(path, create=create, synchronous=synchronous)
        try:
            migrate.migrate(db, path)
        except BaseException:
            db.close()
            raise
        return db
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise _not_sqlite(path, error) from error
        raise translated(error, path) from error


def plan(path: str) -> Plan:
    """What opening the file would do to its schema. Changes nothing. Raises NotADatabase, DatabaseTooNew."""
    check_path(path, create=True)
    return migrate.plan(path)


def _not_sqlite(path: str, reason: object) -> NotADatabase:
    return NotADatabase(
        f"{path} is not a SQLite database, or is damaged ({reason}). It was not changed. Give the path of an Outlast "
        "database, or of a new file."
    )


def _uri(path: str) -> str:
    return Path(path).absolute().as_uri()
