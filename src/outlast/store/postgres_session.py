"""The session: how a store of PostgreSQL hears of what others have written, and shows that it is there.

Theory of operation
===================
One connection listens. Hints are words in a NOTIFY: `m7` there is mail for node 7; `qorders` a run of queue "orders" is
free; `torders` a task; `c` runs have closed; `r` messages were replied to; a bare `q` or `t`: in some queue. A store
calls back only for words that concern it: nodes that it has joined, queues for which it has claimed, ends and replies
for which it has asked a moment ago. Words that come up while one NOTIFY is on its way go together in the next, so a
busy store sends few; the ends of runs, which are many and urgent for nobody else, wait a little longer still, unless
another word comes up that takes them along. A NOTIFY is a statement of its own, after the commit that it tells of:
inside of it, it would make all commits of the server wait for one lock. If the process dies in between, the hint is
lost, and polling finds what it would have told.

The server's process behind this connection is also the sign of life of the store's nodes (`sqlite.py` has a lock on a
byte for it): it ends with the process that has the connection, at once and however that ends. If only the connection
is cut, a new one is opened at once and the nodes' rows say so, or, if none is to be had, that they have no session; an
observer looks twice before it believes (`Witness`).

Behind a pooler there is no session: no hints, and nodes have only their heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from outlast.model.errors import OutlastError, StoreUnavailable
from outlast.model.ids import NodeId
from outlast.store import postgres_sql as sql
from outlast.store.postgres_connection import close, connect

logger = logging.getLogger("outlast")

CHANNEL = "outlast"

MAX_PAYLOAD = 7_000
"""Bytes in one NOTIFY; the server refuses 8,000. What does not fit is told by words without a name."""

CLOSED_PAUSE_S = 0.01
"""How long the news that runs have closed waits for more of its kind."""

RECONNECT_S = (0.0, 0.05, 0.1, 0.2)
"""Pauses between tries to open the session again; the last one for ever. It leaves time for
connecting before the others believe that this node is gone."""

SAY_S = 1.0
"""How long a new session may be kept waiting by the attempt to do without one."""

GONE_FOR_S = 0.5
"""Somebody whose connection was cut has a new one long before. Together with the rounds of the nodes it gives less than
2 s from the death of a process to the takeover of its runs."""

_Connection = Any  # asyncpg's classes are generic in their stubs only


class Session:
    """Listens and notifies on a connection of its own."""

    def __init__(
        self,
        url: str,
        where: str,
        client: str,
        changed: Callable[[], None],
        do_without: Callable[[list[NodeId]], Awaitable[object]],
    ) -> None:
        """`do_without` says in the rows of these nodes, over another connection, that they have no session."""
        self._client = client
        self._url = url
        self._where = where
        self._changed = changed
        self._do_without = do_without
        self._connection: _Connection | None = None
        self.pid: int | None = None
        self.started: object = None
        """When the server's process began."""
        self.nodes: set[NodeId] = set()
        self.queues: set[str] = set()
        """Queues for which this store has claimed runs."""
        self.task_queues: set[str] = set()
        self.awaits_ends_until = 0.0
        """Until then, somebody here waits for the end of a run that lives elsewhere."""
        self.awaits_replies_until = 0.0
        """Until then, somebody here waits for the reply to a message."""
        self._words: set[str] = set()
        self._urgent = asyncio.Event()
        """Set when a word is to be told without a pause."""
        self._telling: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    async def open(self) -> None:
        await self._connect()
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        self._words.clear()
        for task in (self._keeping, self._telling):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._connection is not None:
            await close(self._connection)

    # --- the connection ---------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        connection = await connect(self._url, self._where, self._client, pooled=False)
        try:
            me = await connection.fetchrow(sql.WHO_AM_I)
            assert me is not None
            await connection.add_listener(CHANNEL, self._heard)
            if self.nodes:
                await connection.execute(sql.REGISTER, list(self.nodes), me["pid"], me["backend_start"])
        except BaseException:
            connection.terminate()
            raise
        if connection.is_closed():
            raise StoreUnavailable(f"{self._where} has closed the connection at once")
        connection.add_termination_listener(self._cut)
        self._connection = connection
        self.pid, self.started = me["pid"], me["backend_start"]

    def _cut(self, connection: object) -> None:
        if connection is self._connection:
            # From now on only the heartbeat counts: whoever lives and finds no new session must not be taken for dead.
            self._connection = self.pid = self.started = None
            self._lost.set()

    async def _keep(self) -> None:
        """Open the session again whenever it is cut."""
        while True:
            await self._lost.wait()
            self._lost.clear()
            tries = 0
            while self._connection is None:
                await asyncio.sleep(RECONNECT_S[min(tries, len(RECONNECT_S) - 1)])
                tries += 1
                try:
                    await self._connect()
                except Exception as error:  # whatever the driver says: without a session its nodes are taken for dead
                    await self._fail(tries, error)
            self._changed()  # what was told meanwhile went unheard

    async def _fail(self, tries: int, error: Exception) -> None:
        if tries == len(RECONNECT_S):
            logger.warning("no hints from the database for the moment (%s)", error)
        if tries == 1 and self.nodes:
            # Perhaps there is only no room for one more connection.
            with contextlib.suppress(TimeoutError, OutlastError):
                async with asyncio.timeout(SAY_S):
                    await self._do_without(list(self.nodes))

    # --- hearing ----------------------------------------------------------------------------------------------------

    def _heard(self, connection: object, pid: int, channel: str, payload: object) -> None:
        if pid != self.pid and any(self._concerns(word) for word in str(payload).split("\n")):
            self._changed()

    def _concerns(self, word: str) -> bool:
        kind, name = word[:1], word[1:]
        match kind:
            case "m":
                return any(name == str(node) for node in self.nodes)
            case "q":
                return name in self.queues if name else bool(self.queues)
            case "t":
                return name in self.task_queues if name else bool(self.task_queues)
            case "c":
                return time.monotonic() < self.awaits_ends_until
            case "r":
                return time.monotonic() < self.awaits_replies_until
            case _:  # from a newer release
                return True

    # --- telling ----------------------------------------------------------------------------------------------------

    def tell(self, *words: str) -> None:
        """Let the others know, soon."""
        self._words.update(words)
        if self._words - {"c"}:
            self._urgent.set()
        if self._words and self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell())
            self._telling.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[None]) -> None:
        self._telling = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("a hint was not sent (%s)", error)
        self.tell()  # what was said between its last look and this moment

    async def _tell(self) -> None:
        while self._words:
            if self._words == {"c"}:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSED_PAUSE_S):
                        await self._urgent.wait()
            words, self._words = self._words, set()
            self._urgent.clear()
            connection = self._connection
            if connection is None:
                return
            payload = "\n".join(sorted(words))
            if len(payload.encode()) > MAX_PAYLOAD or payload.count("\n") >= len(words):  # a name with a line's end
                payload = "*"
            try:
                await connection.execute(sql.NOTIFY, CHANNEL, payload)
            except TimeoutError:
                connection.terminate()  # the other end is gone without a word: nothing is heard there either
                raise


class Witness:
    """Believes that a node has ended when its session is gone for a while, and nothing else was heard of it."""

    def __init__(self, look_again: Callable[[], None]) -> None:
        self._look_again = look_again
        self._gone: dict[NodeId, tuple[object, float]] = {}
        """What was seen of a node whose session is gone, and since when it is so."""

    def believes(self, node: NodeId, seen: object, *, gone: bool) -> bool:
        """`seen`: whatever changes when the node is heard of."""
        if not gone:
            self._gone.pop(node, None)
            return False
        now = time.monotonic()
        before, since = self._gone.get(node, (None, now))
        if before != seen:
            self._gone[node] = (seen, now)
            asyncio.get_running_loop().call_later(GONE_FOR_S + 0.01, self._look_again)
            return False
        return now - since >= GONE_FOR_S

    def forget(self, known: set[NodeId]) -> None:
        for node in self._gone.keys() - known:
            del self._gone[node]
