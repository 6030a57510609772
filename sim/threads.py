"""Threads of activities, without threads: the function runs on the loop, and seems to take some drawn time.

In place of `outlast.sdk.threads.Threads`. As there, a function that nobody waits for any more (timeout, cancel) goes
on, keeps its slot until it is done, and what it returns counts for nothing. It begins in the next round of the loop
and runs in one go; how long it seems to take comes after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


def draw_delay_s() -> float:
    """How long a function takes. The world puts its own in place of this."""
    raise AssertionError("no world is simulated")


class SimThreads:
    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._line: deque[asyncio.Future[None]] = deque()

    async def slot(self) -> None:
        if self._free > 0:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    async def run(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(self._call, future, function, context=copy_context())
        result: T = await future
        return result

    def close(self) -> None:
        pass

    def _call(self, future: asyncio.Future[Any], function: Callable[[], Any]) -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as raised:
            error = raised
        asyncio.get_running_loop().call_later(draw_delay_s(), self._end, future, value, error)

    def _end(self, future: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
        self._release()
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _release(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
