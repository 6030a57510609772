"""The schema of a SQLite file. What is common to all databases: `migrate.py`.

What is ours carries our application id in its header. The id is set by the first migration. The write lock decides who
of several processes migrates.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from outlast.model.errors import NotADatabase
from outlast.store.migrate import Migration, Plan, check_usable, migrations, newest

APPLICATION_ID = 0x4F55544C
"""'OUTL', in the header of every file of ours."""

_FIRST = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    "CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY, usable_from INTEGER NOT NULL)",
)


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
    last = "SELECT version, usable_from FROM schema_version ORDER BY version DESC LIMIT 1"
    version, usable_from = db.execute(last).fetchone()
    check_usable("sqlite", version, usable_from, path)
    return int(version)


def migrate(db: sqlite3.Connection, path: str) -> None:
    """Bring the file to the newest version. `db` must be in autocommit mode, with no transaction open."""
    assert db.isolation_level is None
    while check(db, path) < newest("sqlite"):
        db.execute("BEGIN IMMEDIATE")
        try:
            # Looked at again, now under the write lock.
            version = check(db, path)
            if version < newest("sqlite"):
                for statement in _statements(migrations("sqlite")[version]):
                    db.execute(statement)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


def plan(path: str) -> Plan:
    """What `migrate` would do to the file, which need not exist. Changes nothing. Raises as `check`."""
    version = 0
    if Path(path).exists():
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            version = check(db, path)
        finally:
            db.close()
    steps = [_statements(migration) for migration in migrations("sqlite")[version:]]
    sql = "".join(f"BEGIN IMMEDIATE;\n{''.join(map(_terminated, statements))}COMMIT;\n" for statements in steps)
    return Plan(version, max(version, newest("sqlite")), sql)


def _terminated(statement: str) -> str:
    return f"{statement.rstrip().removesuffix(';')};\n"


def _statements(migration: Migration) -> list[str]:
    record = f"INSERT INTO schema_version VALUES ({migration.version}, {migration.usable_from})"
    return [*(_FIRST if migration.version == 1 else ()), *_split(migration.script), record]


def _split(script: str) -> list[str]:
    """The statements. Not `executescript`: that commits an open transaction first."""
    statements: list[str] = []
    rest = ""
    for line in script.splitlines(keepends=True):
        rest += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(rest):
            statements.append(rest)
            rest = ""
    assert not rest.strip() or rest.lstrip().startswith("--"), "the last statement of a migration lacks its semicolon"
    return statements
