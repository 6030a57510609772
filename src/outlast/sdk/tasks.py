"""Handles, futures and tasks of the workflow loop.

Futures and tasks hash by a number that counts per run, not by their address: asyncio keeps them in sets, and iterates
those where it adds callbacks or cancels, so the hash decides the order in which workflow code goes on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from outlast.model.errors import InvalidArgument
from outlast.model.ids import TimerId

if TYPE_CHECKING:
    from outlast.sdk.loop import WorkflowLoop

T = TypeVar("T")

_in_process = count()

ENDLESS_US = 1 << 61
"""A delay from here on (73,000 years) needs no timer, and would bring the store's integers near their end."""


def in_microseconds(seconds: float) -> int:
    """Rounded to whole ones. Infinite: twice ENDLESS_US, so that it stays endless when the present is subtracted."""
    if math.isnan(seconds):
        raise InvalidArgument("NaN was given to the workflow's loop as a delay or a time. Give a number of seconds.")
    if abs(seconds) * 1_000_000 >= 2 * ENDLESS_US:
        return 2 * ENDLESS_US if seconds > 0 else 0
    return round(seconds * 1_000_000)


def nothing(*_: object) -> None:
    """What a cancelled handle calls, so that the loop need not ask whether it was cancelled."""


class Handle(asyncio.Handle):
    """A callback in the ready queue. One is made for each step of each task, so it holds three fields and no more."""

    __slots__ = ("args", "call", "where")

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...], where: Context) -> None:
        self.call = call
        self.args = args
        self.where = where

    def cancel(self) -> None:
        self.call = nothing
        self.args = ()

    def cancelled(self) -> bool:
        return self.call is nothing

    def get_context(self) -> Context:
        return self.where

    def __repr__(self) -> str:
        return "<Handle cancelled>" if self.cancelled() else f"<Handle {self.call!r}>"


class Timer(asyncio.TimerHandle):
    """A callback that waits for a durable timer. `timer_id` is None if it waits no more, or for ever."""

    __slots__ = ("args", "call", "direct", "loop", "timer_id", "when_s", "where")

    def __init__(
        self, loop: WorkflowLoop, when_s: float, call: Callable[..., object], args: tuple[Any, ...], where: Context
    ) -> None:
        self.loop = loop
        self.when_s = when_s
        self.call = call
        self.args = args
        self.where = where
        self.timer_id: TimerId | None = None
        self.direct = False
        """Called by `fire_timer` itself, not from the ready queue: so it works while the loop is blocked."""

    def cancel(self) -> None:
        if self.timer_id is not None:
            self.loop.disarm(self.timer_id)
            self.timer_id = None
        self.call = nothing
        self.args = ()

    def cancelled(self) -> bool:
        return self.call is nothing

    def when(self) -> float:
        return self.when_s

    def get_context(self) -> Context:
        return self.where

    # asyncio.TimerHandle compares fields that are not set here.
    def __hash__(self) -> int:
        return hash(self.when_s)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        return self.when_s < other.when()

    def __le__(self, other: asyncio.TimerHandle) -> bool:
        return self.when_s <= other.when()

    def __gt__(self, other: asyncio.TimerHandle) -> bool:
        return self.when_s > other.when()

    def __ge__(self, other: asyncio.TimerHandle) -> bool:
        return self.when_s >= other.when()

    def __repr__(self) -> str:
        return "<Timer cancelled>" if self.cancelled() else f"<Timer when={self.when_s} {self.call!r}>"


class Future(asyncio.Future[T]):
    __slots__ = ("number",)

    number: int
    """Set by `WorkflowLoop.create_future`: an `__init__` in Python would double the cost of making one."""

    def __hash__(self) -> int:
        return self.number


class Task(asyncio.Task[T]):
    __slots__ = ("number", "where")

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], loop: WorkflowLoop, name: str, where: Context, number: int
    ) -> None:
        # asyncio keeps a set of weak references to all tasks of the process, and a reference keeps the first hash that
        # it saw: were that the number in the run, all runs' main tasks would collide there, and making one would cost
        # time in proportion to the runs in memory.
        self.number = next(_in_process)
        self.where = where
        super().__init__(coroutine, loop=loop, name=name, context=where)
        self.number = number

    def __hash__(self) -> int:
        return self.number

    def cancel(self, msg: Any | None = None) -> bool:
        """As in asyncio; a task that is blocked in a sync call is interrupted there, not at its next `await`."""
        loop: Any = self.get_loop()
        if loop.blocked_task is self:
            return bool(loop.blocked_on.cancel(msg))
        return super().cancel(msg)
