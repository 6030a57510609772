"""Admission: whether one more run may be started, and when.

Theory of operation
===================
A start that this process' own node takes at once passes by here: how many those are is bounded by `Limits.runs`.
Any other start is written to wait for a node, and three limits stand before it:

- *The backlog.* Runs of the queue that wait unowned are counted in the database, at most every `COUNT_S` per queue;
  in between, the starts of this process are added. At the limit a start is refused with `Busy`, and nothing is
  written. The limit is no exact one: other processes start runs too, each by its own count.
- *Starts under way.* At most `UNDER_WAY` are handed to the store at a time. The others stand in line, in the order
  in which they came: a batch of the store is full with fewer.
- *The line.* It holds at most `IN_LINE`; beyond that a start is refused with `Busy` at once.

So whoever starts more than the workers can do is told so, soon and before anything is written, while what has been
acknowledged keeps its promise. Refused: to make starters wait for the backlog to shrink; they could not tell that
from a hanging database, and a web request that waits for minutes serves nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from outlast.model.errors import Busy
from outlast.model.ids import Namespace
from outlast.runtime.ports import Clock
from outlast.store.api import Store

MAX_BACKLOG = 100_000
"""Runs of one queue that may wait. A worker takes thousands per second: if more than this wait, they wait for long,
and most likely nobody works at all. Some 100 MB in the database."""

MOST = (1 << 31) - 1
"""What a database counts up to. Who gives a higher limit means none."""

COUNT_S = 0.5
"""Between two counts of a queue. Counting to the limit takes some milliseconds."""

UNDER_WAY = 1_000
"""Starts handed to the store at a time: twice what it writes in one transaction."""

QUEUES = 1_000
"""Queues whose counts are kept; when there are more, all are counted anew."""

IN_LINE = 100_000
"""Starts that wait for their turn: a few seconds' work. Each takes a kilobyte or two, and what its arguments take."""


class _Count:
    """What is known of one queue's backlog."""

    __slots__ = ("at_s", "counting", "started", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.at_s = float("-inf")
        self.started = 0
        """Starts of this process since it was counted."""
        self.counting = asyncio.Lock()


class Admission:
    def __init__(self, store: Store, clock: Clock, namespace: Namespace, max_backlog: int | None) -> None:
        self._store = store
        self._clock = clock
        self._namespace = namespace
        self._max_backlog = None if max_backlog is None else min(max_backlog, MOST)
        self._counts: dict[str, _Count] = {}
        self._slots = asyncio.Semaphore(UNDER_WAY)
        self._in_line = 0

    @asynccontextmanager
    async def start(self, queue: str) -> AsyncGenerator[None]:
        """Wait for the turn of one more start; it is under way as long as this is entered. Raises Busy."""
        if self._in_line >= IN_LINE:
            raise Busy(
                f"{self._in_line:,} starts wait in this process to be written already; nothing was written. Start "
                "runs no faster than the database takes them: await some before you begin others."
            )
        self._in_line += 1
        try:
            await self._slots.acquire()
        finally:
            self._in_line -= 1
        try:
            await self._check_backlog(queue)
            yield
        finally:
            self._slots.release()

    async def _check_backlog(self, queue: str) -> None:
        limit = self._max_backlog
        if limit is None:
            return
        count = self._counts.get(queue)
        if count is None:
            if len(self._counts) >= QUEUES:
                self._counts.clear()
            count = self._counts[queue] = _Count()
        if self._is_old(count):
            async with count.counting:
                if self._is_old(count):  # those who waited for the lock use what the first of them has found
                    await self._count(count, queue, limit)
        if count.waiting + count.started >= limit:
            raise Busy(
                f"{count.waiting + count.started:,} runs or more wait on queue {queue!r} for a worker to take them, "
                f"and the limit is {limit:,}; nothing was written. Try again later. If it stays so, run more workers "
                "for this queue, or raise the limit: outlast.connect(url, max_backlog=...), None for no limit."
            )
        count.started += 1

    def _is_old(self, count: _Count) -> bool:
        return self._clock.monotonic() - count.at_s >= COUNT_S

    async def _count(self, count: _Count, queue: str, limit: int) -> None:
        count.waiting = await self._store.backlog(self._namespace, queue, self._clock.now_us(), limit)
        count.at_s = self._clock.monotonic()
        count.started = 0
