"""The schema of a SQLite file: what it is, and how an older one becomes the newest.

Theory of operation
===================
`migrations/NNNN_*.sql` are numbered from 1 without gaps; number N takes a file from version N-1 to N, in one
transaction together with the row in `schema_version`, so that a crash leaves either version and never a mixture.
They are never edited once released. Several processes may open a new file at once: the write lock decides who
migrates, the others find it done.

What is ours carries our application id in its header. The id is set by the first migration.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from importlib.resources import files

from outlast.model.errors import DatabaseTooNew, NotADatabase

APPLICATION_ID = 0x4F55544C
"""'OUTL', in the header of every file of ours."""


@cache
def migrations() -> tuple[str, ...]:
    """The text of each migration, in order."""
    scripts = sorted(
        (entry for entry in files("outlast.store").joinpath("migrations").iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    assert [int(script.name[:4]) for script in scripts] == list(range(1, len(scripts) + 1)), "a gap in the migrations"
    return tuple(script.read_text(encoding="utf-8") for script in scripts)


def check(db: sqlite3.Connection, path: str) -> int:
    """The schema version, 0 for an empty file. Changes nothing. Raises NotADatabase, DatabaseTooNew."""
    if db.in_transaction:
        return _check(db, path)
    db.execute("BEGIN")  # one state for all questions: another process may be migrating
    try:
        return _check(db, path)
    finally:
        db.execute("ROLLBACK")


def _check(db: sqlite3.Connection, path: str) -> int:
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id == 0 and tables == 0:
        return 0
    if application_id != APPLICATION_ID:
        raise NotADatabase(
            f"{path} is a SQLite database of another program (application id {application_id:#x}, {tables} tables, "
            f"indexes and views). It was not changed. Give the path of an Outlast database, or of a new file."
        )
    (version,) = db.execute("SELECT max(version) FROM schema_version").fetchone()
    newest = len(migrations())
    if version > newest:
        raise DatabaseTooNew(
            f"{path} has schema version {version}, written by a newer release of Outlast; this release knows versions "
            f"up to {newest}. It was not changed. Upgrade Outlast in every process that uses this file."
        )
    return int(version)


def migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the file to the newest version. `db` must be in autocommit mode, with no transaction open."""
    assert db.isolation_level is None
    while check(db, path) < len(migrations()):
        db.execute("BEGIN IMMEDIATE")
        try:
            # Looked at again, now under the write lock.
            version = check(db, path)
            if version < len(migrations()):
                _apply(db, version + 1)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


def _apply(db: sqlite3.Connection, version: int) -> None:
    if version == 1:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY)")
    for statement in _statements(migrations()[version - 1]):
        db.execute(statement)
    db.execute("INSERT INTO schema_version (version) VALUES (?)", (version,))


def _statements(script: str) -> list[str]:
    """Split a script. Not `executescript`: that commits an open transaction first."""
    statements: list[str] = []
    rest = ""
    for line in script.splitlines(keepends=True):
        rest += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(rest):
            statements.append(rest)
            rest = ""
    assert not rest.strip() or rest.lstrip().startswith("--"), "the last statement of a migration lacks its semicolon"
    return statements
