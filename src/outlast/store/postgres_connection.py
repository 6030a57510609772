"""Lines to the server: connections that are opened when they are needed, and again when they have broken.

Theory of operation
===================
A line is one connection, used by one caller at a time; the others wait in order. A connection that breaks is
forgotten, and the next caller opens a new one; after a failure to open one, callers fail at once for a moment, so
that a server that comes back is not stormed.

What the caller may assume when its call fails is decided here, where it is known whether the statement was sent.

*Behind a pooler* (PgBouncer in transaction mode) each transaction may go to another connection of the server. So
nothing may be kept in the session: no prepared statements, no LISTEN, no identity; and a statement with parameters,
which is several messages, is put between BEGIN and COMMIT to keep it together. A pooler gives itself away by a
process id that is not that of the server's process.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from outlast.model.errors import OutlastError, StoreUnavailable
from outlast.store.postgres_errors import CONNECTION_ERRORS, ends_session, translated

COMMAND_TIMEOUT_S = 20.0
"""No statement of ours takes this long on a server that is well. Longer than the lease: whoever is stuck for so long
has been taken over anyway."""

CONNECT_TIMEOUT_S = 10.0

PAUSE_S = 0.1
"""After a failure to connect."""

_PASSWORD_OPTION = re.compile(r"([?&](?:password|sslpassword)=)[^&]*")

SETTINGS = {
    # Whatever the role or the database prefer: "lock, then look" must not look at what was before the lock.
    "default_transaction_isolation": "read committed",
    # Shorter than `COMMAND_TIMEOUT_S`: what its caller has given up is soon over. Nor shall a shorter one of the role
    # keep a large batch from ever being written.
    "statement_timeout": "15s",
    # The session that listens is idle most of the time.
    "idle_session_timeout": "0",
    # A lock that is not to be had soon is no reason to keep a whole batch waiting.
    "lock_timeout": "5s",
    # Should a pooled transaction of ours be left open by a client that stopped, it must not hold its locks for ever.
    "idle_in_transaction_session_timeout": "5s",
    # Plans are made once, when tables may still be empty, and kept: they must be those for large tables.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "random_page_cost": "0.01",
    # Our statements are small; compiling them costs more than it brings.
    "jit": "off",
}


def _settings(*, local: bool) -> str:
    return "; ".join(f"SET {'LOCAL ' if local else ''}{name} = '{value}'" for name, value in SETTINGS.items())


_SET = _settings(local=False)
_BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED; {_settings(local=True)}"


class Line:
    """One connection, or none at the moment."""

    def __init__(self, url: str, where: str, client: str, *, pooled: bool) -> None:
        self._url = url
        self._client = client
        self._where = where
        self._pooled = pooled
        self._connection: asyncpg.Connection[Any] | None = None
        self._lock = asyncio.Lock()
        self._closed = False
        self._rest_until = 0.0
        self._last_failure: OutlastError | None = None
        self.waiting = 0
        """Callers that have the line or wait for it."""

    async def fetch(self, statement: str, values: Sequence[Any] = (), *, writing: bool = False) -> list[Any]:
        """The rows. Raises StoreUnavailable, Busy; if `writing`, also CommitUnknown."""
        self.waiting += 1
        try:
            async with self._lock:
                connection = await self._connected()
                try:
                    return await (_fetch_pooled if self._pooled else _fetch)(connection, statement, values)
                except asyncio.CancelledError:
                    # The server may still be at work on it. What the next caller asks must not wait behind that.
                    self._drop(connection)
                    raise
                except Exception as error:
                    wrong = translated(error, self._where, writing=writing)
                    if connection.is_closed() or ends_session(error):
                        self._drop(connection)
                    raise wrong from error
        finally:
            self.waiting -= 1

    async def _connected(self) -> asyncpg.Connection[Any]:
        if self._closed:
            raise StoreUnavailable(f"{self._where}: the store is closed. Nothing was written.")
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        now = time.monotonic()
        if self._last_failure is not None and now < self._rest_until:
            raise type(self._last_failure)(*self._last_failure.args)
        try:
            self._connection = await connect(self._url, self._where, self._client, pooled=self._pooled)
        except OutlastError as error:
            self._last_failure, self._rest_until = error, time.monotonic() + PAUSE_S
            raise
        self._last_failure = None
        return self._connection

    def _drop(self, connection: asyncpg.Connection[Any]) -> None:
        connection.terminate()
        if self._connection is connection:
            self._connection = None

    async def close(self) -> None:
        """Waits for what is under way. Idempotent."""
        async with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
            if connection is not None and not connection.is_closed():
                await close(connection)


async def _fetch(connection: asyncpg.Connection[Any], statement: str, values: Sequence[Any]) -> list[Any]:
    return await connection.fetch(statement, *values)


async def _fetch_pooled(connection: asyncpg.Connection[Any], statement: str, values: Sequence[Any]) -> list[Any]:
    await connection.execute(_BEGIN)
    try:
        found = await connection.fetch(statement, *values)
    except asyncpg.PostgresError:
        await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")
    return found


def without_password(url: str) -> str:
    """The URL as it may be shown in messages and logs."""
    password = urlsplit(url).password
    shown = url if password is None else url.replace(f":{password}@", ":***@", 1)
    return _PASSWORD_OPTION.sub(r"\1***", shown)


async def connect(url: str, where: str, client: str, *, pooled: bool) -> asyncpg.Connection[Any]:
    """A new connection, which the server knows by the name `client`. Raises StoreUnavailable."""
    options: dict[str, Any] = {"statement_cache_size": 0} if pooled else {}
    options["server_settings"] = {"application_name": client}
    try:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(
            url, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S, **options
        )
        try:
            if not pooled:
                await connection.execute(_SET)
        except BaseException:
            connection.terminate()
            raise
        return connection
    except (asyncpg.PostgresError, *CONNECTION_ERRORS) as error:
        raise StoreUnavailable(
            f"{where} cannot be reached ({error!r}). Nothing was written. Check that the server runs, and that host, "
            "port, role, password and database in the URL are right."
        ) from error


async def close(connection: asyncpg.Connection[Any]) -> None:
    try:
        await connection.close(timeout=2.0)
    except Exception:
        connection.terminate()


async def is_pooled(connection: asyncpg.Connection[Any]) -> bool:
    """Whether a pooler stands in between. For a connection that was opened as if there were one."""
    async with connection.transaction():
        pid = await connection.fetchval("SELECT pg_backend_pid()")
    return bool(pid != connection.get_server_pid())
