"""Virtual time: one scheduler, and an event loop for each simulated process.

Theory of operation
===================
The scheduler has one clock and one heap of things to do, ordered by time; what falls on the same microsecond is
ordered by lot. A simulated process is an event loop of its own, `ProcessLoop`. A *step* of it is what asyncio calls
one round: timers that are due join the ready queue, then the callbacks that are ready run, first in, first out. So
asyncio's own guarantees hold within a process, and everything it does not promise is drawn: how long a round takes,
which process comes next, after how many callbacks of a round the others get a chance.

- *Frozen* (SIGSTOP): no step is taken. Answers pile up in the ready queue, timers fire late, time goes on.
- *Dead* (kill -9): nothing of the loop ever runs again, not even what stands in the middle of a round. Its tasks stay
  referenced until the world is torn down: were they collected, their `finally` blocks would run at any moment.

Tasks and futures hash by a sequence number, so that sets of them have the same order each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import Any

SECOND_US = 1_000_000

_numbers = count()


class SimTask(asyncio.Task[Any]):
    number: int

    def __new__(cls, *args: Any, **kwargs: Any) -> SimTask:
        self = super().__new__(cls)
        self.number = next(_numbers)
        return self

    def __hash__(self) -> int:
        return self.number


class SimFuture(asyncio.Future[Any]):
    number: int

    def __hash__(self) -> int:
        return self.number


class Scheduler:
    """The clock, and everything that will happen."""

    def __init__(self, rng: random.Random) -> None:
        global _numbers
        _numbers = count()
        self.now_us = 0
        self.steps = 0
        self._lot = rng.random
        self._heap: list[tuple[int, float, int, Callable[[], None]]] = []
        self._count = count()

    def at(self, at_us: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(at_us, self.now_us), self._lot(), next(self._count), action))

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        self.at(self.now_us + delay_us, action)

    def run(self, until_us: int, done: Callable[[], bool]) -> None:
        """Until `done` says so (it is asked now and then), the time is over, or nothing is left to happen."""
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            self.steps += 1
            if self.steps % 64 == 0 and done():
                return
            self.now_us, _, _, action = heapq.heappop(heap)
            action()
        if not done():
            self.now_us = until_us


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process."""

    def __init__(
        self,
        scheduler: Scheduler,
        rng: random.Random,
        entered: Callable[[], None],
        on_error: Callable[[dict[str, Any]], None],
    ) -> None:
        self.frozen = False
        self.dead = False
        self.tasks: dict[int, SimTask] = {}
        self._scheduler = scheduler
        self._random = rng.random
        self._entered = entered
        """Called before each step: tells the world whose code runs now."""
        self._on_error = on_error
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._count = count()
        self._step_at: int | None = None
        self._stepping = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        self._step_at = None
        self._plan(self._scheduler.now_us)

    def kill(self) -> None:
        self.dead = True
        self._ready.clear()
        self._timers.clear()

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """From outside of the process: what a thread or a socket would have it do."""
        if not self.dead:
            self._ready.append(asyncio.Handle(callback, args, self))
            self._plan(self._scheduler.now_us + 1)

    def tear_down(self) -> None:
        """Unwind what is left, when nothing counts any more."""
        self.kill()
        while self.tasks:  # what is unwound may make new ones
            _, task = self.tasks.popitem()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with contextlib.suppress(BaseException):
                task.get_coro().close()

    # --- steps --------------------------------------------------------------------------------------------------------

    def _plan(self, at_us: int) -> None:
        if self.dead or self.frozen or (self._step_at is not None and self._step_at <= at_us):
            return
        self._step_at = at_us
        self._scheduler.at(at_us, lambda: self._step(at_us))

    def _step(self, planned_us: int) -> None:
        if self.dead or self.frozen or self._step_at != planned_us:
            return
        self._step_at = None
        ready, timers, now_us = self._ready, self._timers, self._scheduler.now_us
        while timers and (timers[0][0] <= now_us or timers[0][2].cancelled()):
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                ready.append(handle)
        todo = len(ready)
        if todo > 1 and self._random() < 0.1:  # others may come in between, and so may a crash
            todo = 1 + int(self._random() * (todo - 1))
        self._entered()
        asyncio._set_running_loop(self)
        self._stepping = True
        try:
            for _ in range(todo):
                handle_now = ready.popleft()
                if not handle_now.cancelled():
                    handle_now._run()
                if self.is_closed():
                    return
        finally:
            self._stepping = False
            asyncio._set_running_loop(None)
        if ready:
            self._plan(now_us + 1 + int(self._random() * 30))
        elif timers:
            self._plan(timers[0][0])

    # --- what asyncio calls -------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._scheduler.now_us / SECOND_US

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._stepping

    def is_closed(self) -> bool:
        return self.dead

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.dead:
            self._ready.append(handle)
            if not self._stepping:
                self._plan(self._scheduler.now_us + 1)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.dead:
            # One microsecond more than rounding down: `time()` must be past `when`, as asyncio.timeout expects.
            at_us = max(int(when * SECOND_US) + 1, self._scheduler.now_us)
            heapq.heappush(self._timers, (at_us, next(self._count), handle))
            if not self._stepping:
                self._plan(at_us)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        future = SimFuture(loop=self)
        future.number = next(_numbers)
        return future

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = SimTask(coro, loop=self, name=name or "task", context=context)
        self.tasks[task.number] = task
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task.number, None)  # type: ignore[attr-defined]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._on_error(context)
