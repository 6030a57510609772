"""Threads for activities that are plain functions.

Own threads instead of `concurrent.futures`: that one joins its threads at interpreter exit, so that an activity which
hangs would keep the process from ending; here threads are daemons, and what they did not finish is an attempt that
is counted as lost. A thread cannot be cancelled: when nobody waits for its function any more (timeout, cancel), it
goes on, keeps its slot until it is done, and what it returns counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._made = 0
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._line: deque[asyncio.Future[None]] = deque()

    async def slot(self) -> None:
        """Wait for a thread. Whoever has waited must call `run` next."""
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread, in a copy of the caller's context, and return what it returns."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._work.put(partial(self._call, loop, future, partial(copy_context().run, function)))
        if self._made < self.size - self._free:
            self._made += 1
            threading.Thread(target=self._serve, name=f"outlast-activity-{self._made}", daemon=True).start()
        return await future

    def close(self) -> None:
        """Let idle threads end; busy ones end with what they are doing."""
        for _ in range(self._made):
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _call(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], function: Callable[[], Any]) -> None:
        try:
            settle = partial(_settle, future, function(), None)
        except BaseException as error:
            settle = partial(_settle, future, None, error)
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(self._done, settle)

    def _done(self, settle: Callable[[], None]) -> None:
        self._release()
        settle()

    def _release(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError("the function raised StopIteration"))
    else:
        future.set_exception(error)
