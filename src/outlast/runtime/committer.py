"""The committer: all runs of a node share one pipe to the store.

Commits are handed in by turns and leave in batches, one transaction each. While batches are on their way, the next
one forms; so the busier the node, the larger the batches, and the fewer fsyncs per commit. Up to `IN_FLIGHT` batches
are on their way at a time: the next is encoded and queued while the store still waits for the disk.

A batch that fails as a whole is told apart by what may be assumed (see `store.api`):
- nothing written, and it may pass (`Busy`, `StoreUnavailable`): tried again after a pause, for as long as it takes,
  since nothing has left yet and the inputs are safe in memory or not acknowledged;
- perhaps written (`CommitUnknown`): each commit is reported as unknown, and its run looks at its row;
- any other error is a bug in one of the commits: the batch is halved until the one that fails stands alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from typing import NamedTuple

from outlast.model.errors import Busy, CommitUnknown, StoreUnavailable
from outlast.runtime.patience import MAX_PAUSE_S, PAUSE_S
from outlast.store.api import Answer, Commit, Store

logger = logging.getLogger("outlast")

MAX_BATCH = 512
"""Commits in one transaction: a few milliseconds of work for the store, so that no run waits long for another."""

MAX_BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of events in one transaction, unless a single commit has more."""

IN_FLIGHT = 3
"""Batches handed to the store at a time: one on the disk, one that is being encoded, one that has just been answered.
Measured at 64 runs: 1 leaves the disk idle while a batch forms; 4 gain nothing."""

GIVEN_UP = CommitUnknown("the node gave up before the database answered")

Outcome = Answer | BaseException
"""A BaseException instead of an answer: CommitUnknown, or what made this one commit fail (then nothing was written)."""


class Entry(NamedTuple):
    commit: Commit
    done: Callable[[Outcome], None]


class Committer:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Entry] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._flush_is_set = False
        self._stopped = False

    def submit(self, entries: list[Entry]) -> None:
        """Hand in commits; at most one per run at a time. `done` is called with each outcome, on the event loop.

        They leave together with what else is handed in before the loop's next round, or at `flush`.
        """
        if self._stopped:
            for entry in entries:
                entry.done(GIVEN_UP)
            return
        self._waiting.extend(entries)
        if not self._flush_is_set:
            self._flush_is_set = True
            self._loop.call_soon(self.flush)

    async def drain(self) -> None:
        """Wait until everything handed in has its outcome."""
        self.flush()
        while self._in_flight:
            await asyncio.wait(self._in_flight)

    def stop(self) -> None:
        """Give up: what has no outcome yet is reported as unknown, and so is what is handed in from now on."""
        self._stopped = True
        waiting, self._waiting = self._waiting, []
        for task in self._in_flight:
            task.cancel()
        for entry in waiting:
            entry.done(GIVEN_UP)

    def flush(self) -> None:
        """Send what waits on its way now, as far as there is room."""
        self._flush_is_set = False
        while self._waiting and len(self._in_flight) < IN_FLIGHT:
            batch = deque(self._next_batch())
            # The store is asked here and not in the task's first step: it begins to work while turns are still taken.
            task = self._loop.create_task(self._write(batch, len(batch), self._ask(batch, len(batch))))
            self._in_flight.add(task)
            task.add_done_callback(partial(self._written, batch))

    def _ask(self, batch: deque[Entry], count: int) -> Awaitable[list[Answer]]:
        try:
            return self._store.commit([entry.commit for entry in islice(batch, count)])
        except Exception as error:
            failed: asyncio.Future[list[Answer]] = self._loop.create_future()
            failed.set_exception(error)
            return failed

    def _next_batch(self) -> list[Entry]:
        size = 0
        for index, entry in enumerate(self._waiting[:MAX_BATCH]):
            size += len(entry.commit.events)
            if size > MAX_BATCH_BYTES and index:
                batch, self._waiting = self._waiting[:index], self._waiting[index:]
                return batch
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        return batch

    def _written(self, batch: deque[Entry], task: asyncio.Task[None]) -> None:
        """Whoever has no outcome yet, because the task was cancelled or failed wherever it stood, is told so."""
        self._in_flight.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("the committer failed; please report this bug", exc_info=error)
        while batch:
            self._tell(batch, GIVEN_UP)
        self.flush()

    def _tell(self, batch: deque[Entry], outcome: Outcome) -> None:
        """Tell the first in line. What that causes in its run must not keep the others from their outcomes."""
        try:
            batch.popleft().done(outcome)
        except Exception as error:
            logger.critical("what follows from a commit failed; please report this bug", exc_info=error)

    async def _write(self, batch: deque[Entry], count: int, asked: Awaitable[list[Answer]]) -> None:
        """Write the first `count` commits of the batch, and take them from it as they are told."""
        pause_s = PAUSE_S
        while True:
            try:
                answers = await asked
            except (Busy, StoreUnavailable) as error:
                logger.warning("the database refuses commits (%s); trying again in %.2f s", error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MAX_PAUSE_S)
                asked = self._ask(batch, count)
            except CommitUnknown as error:
                for _ in range(count):
                    self._tell(batch, error)
                return
            except Exception as error:
                await self._bisect(batch, count, error)
                return
            else:
                assert len(answers) == count
                for answer in answers:
                    self._tell(batch, answer)
                return

    async def _bisect(self, batch: deque[Entry], count: int, error: Exception) -> None:
        if count == 1:
            self._tell(batch, error)
            return
        await self._write(batch, count // 2, self._ask(batch, count // 2))
        await self._write(batch, count - count // 2, self._ask(batch, count - count // 2))
