"""Asking: queries and updates, and the way back of their answers.

Theory of operation
===================
A question is a message to the run like any other, and its owner answers it with the commit of a turn. A row in the
database (`Store.replies`) carries the answer to whoever asked, wherever that is; if it was asked in the process that
owns the run, it is told at once, when the commit is done. Whoever waits looks at the rows when somebody has written
(a hint), and every `LOOK_S` in any case.

What if the answer does not come?
- The owner dies before its commit: the question is in the mailbox still, and whoever takes the run answers it.
- The owner dies after it: the row is there.
- The run ends: the commit that ends it answers what is open with `Ended`. Should even that row be gone, a run that is
  closed and left no answer has ended.
- The asker dies: nobody reads the row, and it is removed when it is old.
- An update is asked again under its id, and has come to its end: the answer is `Recorded`, and the history tells.
- An update that was refused is asked again under its id: the row of the first refusal may be there still. A refusal
  counts only once the mailbox does not hold the question any more.
- The answer came before anybody waited for it, or was told to a node that has left meanwhile: rows are looked at now
  and then, also those of runs that live here.
- The run is parked: its code cannot answer now, and whoever asks is told why (see `messages`).

A query that is asked where the run is hosted goes straight to the node, behind the mail that is there. It is not in any
mailbox, so if the run leaves that node it is asked once more, by whichever way is the right one then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

import msgspec

from outlast.model.errors import Busy, StoreUnavailable
from outlast.model.ids import MessageId, RunId
from outlast.model.replies import Accepted, Ended, Refused, Reply, decode_reply, reply_id
from outlast.store.api import Store

logger = logging.getLogger("outlast")

LOOK_S = 0.25
"""How often answers are looked for when no hint comes."""


class Left(Exception):
    """The run has left this process without an answer."""


class _Waiter:
    __slots__ = ("answered", "by_row", "final", "look", "message_id", "run_id")

    def __init__(
        self, run_id: RunId, message_id: MessageId, final: bool, by_row: bool, answered: asyncio.Future[Reply]
    ) -> None:
        self.run_id = run_id
        self.message_id = message_id
        self.final = final
        """That an update is accepted is no answer yet."""
        self.by_row = by_row
        self.look = False
        """At the rows, at the next opportunity, though the run lives here."""
        self.answered = answered


class Asking:
    """Who waits for which answer in this process."""

    def __init__(self, store: Store, is_hosted: Callable[[RunId], bool]) -> None:
        self._store = store
        self._is_hosted = is_hosted
        self._waiters: dict[MessageId, set[_Waiter]] = {}
        """By `reply_id`."""
        self._hint = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    def hint(self) -> None:
        """Somebody has written something: look soon."""
        self._hint.set()

    async def answer(self, run_id: RunId, message_id: MessageId, *, final: bool = True, by_row: bool = True) -> Reply:
        """Wait for the answer to a message that is on its way.

        With `final=False`, that an update is accepted is an answer. Without `by_row`, only the local node can answer;
        raises Left when the run leaves it.
        """
        waiter = _Waiter(run_id, message_id, final, by_row, asyncio.get_running_loop().create_future())
        key = reply_id(run_id, message_id)
        self._waiters.setdefault(key, set()).add(waiter)
        try:
            if by_row:
                self._look()
            return await waiter.answered
        finally:
            waiters = self._waiters[key]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[key]

    def told(self, run_id: RunId, reply: Reply) -> None:
        """An answer; may come more than once."""
        if isinstance(reply, Refused):  # perhaps of the same update, when it was asked before
            for waiter in self._waiters.get(reply_id(run_id, reply.message_id), ()):
                waiter.look = True
                self._hint.set()
        else:
            self._tell(run_id, reply)

    def _tell(self, run_id: RunId, reply: Reply) -> None:
        for waiter in self._waiters.get(reply_id(run_id, reply.message_id), ()):
            if not waiter.answered.done() and not (waiter.final and isinstance(reply, Accepted)):
                waiter.answered.set_result(reply)

    def left(self, run_id: RunId, asked_here: Iterable[MessageId]) -> None:
        """A run has left the local node, which had been asked these queries and has not answered."""
        for message_id in asked_here:
            for waiter in self._waiters.get(reply_id(run_id, message_id), ()):
                if not waiter.answered.done():
                    waiter.answered.set_exception(Left())

    async def close(self) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.answered.cancel()
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    def _look(self) -> None:
        self._hint.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_for_rows())

    async def _look_for_rows(self) -> None:
        loop = asyncio.get_running_loop()
        looked_at_all = loop.time()
        while self._waiters:
            self._hint.clear()
            at_all = loop.time() >= looked_at_all + LOOK_S
            if at_all:
                looked_at_all = loop.time()
            try:
                await self._look_once(at_all)
            except (Busy, StoreUnavailable) as error:
                logger.warning("the database does not answer (%s); trying again", error)
            except Exception:
                logger.exception("looking for answers failed; please report this bug")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._hint.wait()

    async def _look_once(self, at_all: bool) -> None:
        """Runs before rows: one that is closed has left its answers before."""
        asked: dict[MessageId, tuple[RunId, MessageId]] = {}
        for key, waiters in self._waiters.items():
            for waiter in waiters:
                if waiter.by_row and (at_all or waiter.look or not self._is_hosted(waiter.run_id)):
                    waiter.look = False
                    asked[key] = waiter.run_id, waiter.message_id
        if not asked:
            return
        closed = {row.run_id for row in await self._store.closed_of(sorted({run_id for run_id, _ in asked.values()}))}
        found = await self._store.replies(list(asked))
        refused = [key for key, body in found.items() if isinstance(self._decode(key, body), Refused)]
        if refused:
            found = {key: body for key, body in found.items() if key not in refused}
            found.update(await self._refusals({key: asked[key] for key in refused}))
        for key, body in found.items():
            reply = self._decode(key, body)
            if reply is not None:
                self._tell(asked[key][0], reply)
        for run_id, message_id in asked.values():
            if run_id in closed:
                self._tell(run_id, Ended(message_id))

    async def _refusals(self, asked: dict[MessageId, tuple[RunId, MessageId]]) -> dict[MessageId, bytes]:
        """The rows of updates that were refused, without those that are older than what waits to be answered now."""
        mail = await self._store.mail_for(sorted({run_id for run_id, _ in asked.values()}))
        waiting = {(each.run_id, each.message_id) for each in mail}
        return await self._store.replies([key for key, update in asked.items() if update not in waiting])

    def _decode(self, key: MessageId, body: bytes) -> Reply | None:
        try:
            return decode_reply(body)
        except msgspec.DecodeError as error:  # from a newer release
            for waiter in self._waiters.get(key, ()):
                if not waiter.answered.done():
                    waiter.answered.set_exception(error)
            return None
