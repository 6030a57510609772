"""The schema of a PostgreSQL database. What is common to all databases: `migrate.py`.

Theory of operation
===================
All that is ours is in the schema `outlast` of the database: tables and functions. It is ours if it has our table
`schema_version`; an empty schema of this name may have been made for us, by an owner who lets nobody make schemas; any
other is somebody else's, and is not touched.

Who migrates takes an advisory lock first, for the length of the transaction, and looks again. The primary key of
`schema_version` is the backstop: of two that migrate at once in spite of the lock one fails, and nothing of it stays.
A migration locks tables that running nodes use; it gives up rather than make them wait for long.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import asyncpg

from outlast.model.errors import NotADatabase, OutlastError, StoreUnavailable
from outlast.store.migrate import Plan, check_usable, migrations, newest
from outlast.store.postgres_connection import CONNECT_TIMEOUT_S, close, without_password
from outlast.store.postgres_errors import translated

# asyncpg's classes are generic in their stubs only.
Connection: TypeAlias = "asyncpg.Connection[Any]"

_DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

OLDEST_SERVER = 14
"""The oldest that PostgreSQL's own project still mends."""

MIGRATION_TIMEOUT_S = 3600.0
"""A migration may rewrite large tables, or wait for another process that does so."""

_LOCK = f"SELECT pg_advisory_xact_lock({0x4F55544C415354})"  # 'OUTLAST'

# For migrations, not for waiting until another process has migrated. Whoever wants a table waits behind a migration
# that waits for it, so not for long.
_SETTINGS = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = 0; SET LOCAL client_min_messages = warning"

_SCHEMA = "CREATE SCHEMA outlast"

_VERSIONS = "CREATE TABLE outlast.schema_version (version integer PRIMARY KEY, usable_from integer NOT NULL)"

# The catalogues may be read without any right in the schema.
_LOOK = """
SELECT to_regnamespace('outlast') IS NOT NULL AS there,
       (SELECT count(*) FROM pg_class
         WHERE relnamespace = to_regnamespace('outlast') AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S'))
       + (SELECT count(*) FROM pg_proc WHERE pronamespace = to_regnamespace('outlast')) AS things,
       EXISTS (SELECT 1 FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attname = 'usable_from'
                WHERE relnamespace = to_regnamespace('outlast') AND relname = 'schema_version') AS ours
"""

_THERE = "SELECT to_regnamespace('outlast') IS NOT NULL"

_LAST = "SELECT version, usable_from FROM outlast.schema_version ORDER BY version DESC LIMIT 1"


async def check_postgres(connection: Connection, where: str) -> int:
    """The schema version, for one who only wants to use it.

    Changes nothing. Raises NotADatabase if there is no schema of ours, DatabaseTooNew, and StoreUnavailable if it is
    older than this release, or cannot be read.
    """
    try:
        version = await _version(connection, where)
    except _DRIVER_ERRORS as error:
        raise _translated(error, where, writing=False) from error
    if version == 0:
        raise NotADatabase(
            f"{where} has no tables of Outlast. They are made when a worker or client is started with this URL, or by "
            "`outlast migrate`."
        )
    if version < newest("postgres"):
        raise StoreUnavailable(
            f"{where} has schema version {version}, and this release needs {newest('postgres')}. It was not changed. "
            "Start a worker of this release with it, or run `outlast migrate`."
        )
    return version


async def migrate_postgres(connection: Connection, where: str) -> tuple[int, int]:
    """Bring the database to the newest version. Returns which it had, and which it has.

    Raises NotADatabase, DatabaseTooNew, StoreUnavailable, Busy: then nothing was changed.
    """
    try:
        before = await _version(connection, where)
        if before >= newest("postgres"):
            return before, before
        # Whatever the database prefers: else what is looked at under the lock would be from before it.
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(_LOCK, timeout=MIGRATION_TIMEOUT_S)
            # Looked at again, now under the lock.
            before = await _version(connection, where)
            if before < newest("postgres"):
                there = await connection.fetchval(_THERE)
                script = ";\n".join([_SETTINGS, *_statements(before, there=there)])
                await connection.execute(script, timeout=MIGRATION_TIMEOUT_S)
            return before, max(before, newest("postgres"))
    except _DRIVER_ERRORS as error:
        raise _translated(error, where, writing=True) from error


async def plan(url: str) -> Plan:
    """What `migrate_postgres` would do to the database, which need not exist. Changes nothing. Raises the same."""
    where = without_password(url)
    version, there = 0, False
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, statement_cache_size=0)
        try:
            there = await connection.fetchval(_THERE)
            version = await _version(connection, where)
        finally:
            await close(connection)
    except asyncpg.InvalidCatalogNameError:
        pass  # no such database
    except _DRIVER_ERRORS as error:
        raise _translated(error, where, writing=False) from error
    sql = ""
    if version < newest("postgres"):
        sql = ";\n".join(["BEGIN", _LOCK, _SETTINGS, *_statements(version, there=there), "COMMIT"]) + ";\n"
    return Plan(version, max(version, newest("postgres")), sql)


def _statements(version: int, *, there: bool) -> list[str]:
    """Each without its last semicolon, though a migration is a script of many."""
    statements: list[str] = []
    if version == 0:
        # Only if it is not there: IF NOT EXISTS asks for the right to make schemas even so.
        statements += [_VERSIONS] if there else [_SCHEMA, _VERSIONS]
    for migration in migrations("postgres")[version:]:
        statements.append(migration.script.rstrip().removesuffix(";"))
        statements.append(f"INSERT INTO outlast.schema_version VALUES ({migration.version}, {migration.usable_from})")
    return statements


async def _version(connection: Connection, where: str) -> int:
    server = connection.get_server_version()
    if server.major < OLDEST_SERVER:
        raise StoreUnavailable(
            f"{where} is PostgreSQL {server.major}; Outlast needs {OLDEST_SERVER} or newer. It was not changed."
        )
    found = await connection.fetchrow(_LOOK)
    assert found is not None
    if not found["ours"]:
        if found["things"]:
            raise NotADatabase(
                f"{where} has a schema 'outlast' with {found['things']} tables, views and functions that are not ours: "
                "there is no table outlast.schema_version as Outlast makes it. It was not changed. Give the URL of "
                "another database, or rename that schema: ALTER SCHEMA outlast RENAME TO something_else."
            )
        return 0
    last = await connection.fetchrow(_LAST)
    if last is None:
        raise NotADatabase(
            f"{where}: the table outlast.schema_version is empty, so what is in the schema 'outlast' cannot be known. "
            "It was not changed. Restore the database from a backup, or drop the schema if nothing in it is wanted."
        )
    check_usable("postgres", last["version"], last["usable_from"], where)
    return int(last["version"])


def _translated(error: Exception, where: str, *, writing: bool) -> OutlastError:
    match error:
        case asyncpg.InsufficientPrivilegeError():
            return StoreUnavailable(
                f"{where}: the role of this URL may not use, or not make, the tables of Outlast ({error}). Nothing was "
                "changed. Run `outlast migrate --db URL` once with the URL of a role that may, and give this role the "
                "rights it needs: docs/running.md has the GRANTs."
            )
        case asyncpg.LockNotAvailableError():
            return StoreUnavailable(
                f"{where}: the schema could not be brought to version {newest('postgres')}, because somebody else kept "
                f"a table of ours locked ({error}). Nothing was changed. Try again; if it stays so, look for long "
                "transactions in pg_stat_activity."
            )
        case _:
            return translated(error, where, writing=writing)
