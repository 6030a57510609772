"""Races on PostgreSQL, put on the stage one step at a time: bare connections that hold a transaction open, statements
that are seen to wait, and functions of ours that were made worse.

Nothing here waits for time to pass: whether a statement waits for another one is asked of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from outlast.store import postgres_rows as rows
from outlast.store import postgres_sql as sql
from outlast.store.api import Answer, Claim, Commit, NewMail
from outlast.store.postgres import PostgresStore
from store.building import until

T = TypeVar("T")

# asyncpg's classes are generic in their stubs only.
Connection = Any

BLOCKED = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0
"""


class Stage:
    """A database, stores on it, and bare connections; all closed at the end, and open transactions rolled back."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self._stack = stack
        self._tasks: list[asyncio.Task[Any]] = []

    async def store(self, url: str | None = None, *, mailbox_limit: int = 100) -> PostgresStore:
        store = PostgresStore(url or self.url, mailbox_limit=mailbox_limit)
        await store.open()
        self._stack.push_async_callback(store.close)
        return store

    async def connection(self) -> Connection:
        connection: Connection = await asyncpg.connect(self.url)
        self._stack.push_async_callback(connection.close, timeout=10)
        return connection

    async def transaction(self) -> Connection:
        """A connection in the middle of a transaction. To be ended with `end`."""
        connection = await self.connection()
        await connection.execute("BEGIN")
        return connection

    async def blocked(self) -> int:
        connection = await self.connection()
        count: int = await connection.fetchval(BLOCKED)
        await connection.close()
        return count

    def begin(self, work: Awaitable[T]) -> asyncio.Task[T]:
        async def run() -> T:
            return await work

        task = asyncio.create_task(run())
        self._tasks.append(task)
        return task

    async def waits(self, work: Awaitable[T]) -> asyncio.Task[T]:
        """Begin this, and see that it waits for a lock."""
        task = self.begin(work)

        async def settled() -> bool:
            return task.done() or await self.blocked() > 0

        await until(settled)
        assert not task.done(), f"it did not wait: {task.result()}"
        return task

    async def at_once(self, work: Awaitable[T]) -> T:
        """The result of this, which waits for nobody's lock."""
        task = self.begin(work)

        async def settled() -> bool:
            return task.done() or await self.blocked() > 0

        await until(settled)
        assert task.done(), "it waits for somebody else's lock"
        return task.result()

    async def spoil(self, function: str, what: str, instead: str = "") -> None:
        """Replace a function of ours by a worse one."""
        connection = await self.connection()
        definition = await connection.fetchval(
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'outlast'::regnamespace AND proname = $1",
            function,
        )
        assert definition.count(what) == 1, f"{function} has {what!r} {definition.count(what)} times"
        await connection.execute(definition.replace(what, instead))
        await connection.close()

    async def settle(self) -> None:
        """End what is still under way when a test has failed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def staged(url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        stage = Stage(url, stack)
        try:
            yield stage
        finally:
            await stage.settle()


async def end(transaction: Connection, how: str = "COMMIT") -> None:
    await transaction.execute(how)


# --- what stores do, over a bare connection ---------------------------------------------------------------------


async def commit(connection: Connection, commits: Sequence[Commit]) -> dict[int, Answer]:
    """Only those that were refused, by their places."""
    if commits[0].create is not None:
        refused = await connection.fetch(sql.STARTS, *rows.start_values(commits))
    else:
        refused = await connection.fetch(sql.TURNS, *rows.turn_values(commits))
    return {place - 1: Answer(answer) for _, place, answer in refused}


async def send(connection: Connection, mail: NewMail, mailbox_limit: int = 100) -> str:
    [found] = await connection.fetch(
        sql.SEND,
        [mail.run_id],
        [mail.message_id],
        [mail.at_us],
        [mail.body.decode()],
        [mail.beyond_limit],
        mailbox_limit,
    )
    answer: str = found["answer"]
    return answer


async def claim(connection: Connection, wanted: Claim) -> list[str]:
    found = await connection.fetch(
        sql.CLAIM_RUNS, wanted.node, wanted.namespace, list(wanted.queues), list(wanted.workflows), wanted.max_format,
        wanted.now_us, wanted.limit, wanted.parked, wanted.suspect,
    )  # fmt: skip
    return [record["run_id"] for record in found]


class Wire:
    """A TCP connection between stores and their server, that can be damaged. A context manager."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._clients: list[asyncio.StreamWriter] = []
        self._all: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.deaf = False
        """What the server says does not arrive any more."""
        self.swallowed = asyncio.Event()

    async def __aenter__(self) -> Wire:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._listening.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._server._replace(netloc=f"{self._server.username}@127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        for writer in self._all:
            writer.transport.abort()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def hang_up(self) -> None:
        """The clients' connections are cut; the server does not notice. New ones can be made."""
        for writer in self._clients:
            writer.transport.abort()
        self._clients.clear()
        self.deaf = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._server.hostname, self._server.port)
        self._clients.append(writer)
        self._all += [writer, to_server]
        for pump in (self._ask(reader, to_server), self._answer(from_server, writer)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _ask(self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        try:
            while said := await reader.read(65_536):
                to_server.write(said)
        except OSError:
            return  # cut
        if not reader.exception():
            to_server.write_eof()

    async def _answer(self, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while said := await from_server.read(65_536):
                if self.deaf:
                    self.swallowed.set()
                else:
                    writer.write(said)
        except OSError:
            pass
        writer.close()
