"""The event loop of one run: asyncio without a clock, without threads and without I/O.

Theory of operation
===================
The program drives it. In `turn` it first delivers one event: it resolves futures, fires a timer, starts handlers. Then
the ready queue is run, first in, first out, until it is empty: the run is *quiet*. What the code asks of the world is
asked of the host (timers), or of the program directly (activities). So what the code does depends on the events and
their order only. What always holds:

- Nothing of the run executes between turns, and nothing of the node's loop is changed by a turn: running loop, current
  task and async generator hooks are put back exactly, also after an exception.
- `phase` says what may be asked for now. Outside RUNNING nothing is scheduled: READ_ONLY, IDLE and COLLECTING answer
  with an error, EVICTING and CLOSED with `Evicted`, or silently where code only tidies up.
- Pending tasks are referenced by the loop, so that no task is ever collected while it waits.
- An OutlastInterrupt that ends a task, a callback or a strand escapes from `turn` at once. The program then drops the
  turn and closes the loop.

Time: `time()` is in seconds since the first event, and stands still during a turn. `call_later` is a durable timer, in
whole microseconds of the delay as given; 0 and less is a timer of 0, so that polling (`asyncio.wait(..., timeout=0)`)
lets the world go on. `asyncio.sleep(0)` is no timer in asyncio, and none here. An infinite delay needs no timer.

Blocking: a sync durable call waits in `block`. In a strand (see `greenlets`) only that strand waits. In a task or
callback the whole loop of this run waits, as it would in asyncio: deliveries resolve futures meanwhile, whose callbacks
queue up.

Refused: what needs threads, sockets, signals, other executors, or eager tasks (they change the order in which code
runs). The table in `refused` says what to use instead.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from threading import get_ident
from typing import Any, NoReturn, TypeVar, cast

from greenlet import getcurrent, greenlet

from outlast.model.errors import DurableCallError, InternalError, OutlastInterrupt
from outlast.model.ids import TimerId
from outlast.sdk import compat, eviction, finalisers
from outlast.sdk.compat import enter_loop, leave_loop, running_loop, swap_current_task
from outlast.sdk.finalisers import in_finaliser
from outlast.sdk.greenlets import Strand, take_hub
from outlast.sdk.phase import NOBODY, LoopHost, Phase
from outlast.sdk.refused import LimitedLoop
from outlast.sdk.tasks import ENDLESS_US, Future, Handle, Task, Timer, in_microseconds, nothing
from outlast.sdk.whereabouts import listed, place_of_coroutine, place_of_frame, user_frame

__all__ = ["LoopHost", "Phase", "WorkflowLoop", "in_finaliser", "user_frame"]

T = TypeVar("T")
ExceptionHandler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]

MAX_STEPS = 1_000_000
"""Callbacks in one turn. A second or so of work; code that needs more spins and would never get quiet."""

_RUNNING = Phase.RUNNING
_NOWHERE = contextvars.Context()


class WorkflowLoop(LimitedLoop):
    """One per run, on one thread. See the top of the file."""

    def __init__(self, host: LoopHost, name: str, context: contextvars.Context, start_us: int) -> None:
        self.name = name
        self.context = context
        self.start_us = start_us
        self.now_us = start_us
        self.phase = Phase.IDLE
        self.ready: deque[Handle | Timer] = deque()
        self.caller: greenlet = getcurrent()
        """Who called `turn`, or `close`."""
        self.hub: greenlet = self.caller
        """What runs the ready queue; the caller where there is no turn."""
        self.escaped: BaseException | None = None
        self.strands: dict[greenlet, Strand] = {}
        self.blocked_on: asyncio.Future[Any] | None = None
        self.blocked_task: Task[Any] | None = None
        self.suspended: greenlet | None = None
        self._host = host
        self._thread = get_ident()
        self.tasks: dict[int, Task[Any]] = {}
        self._timers: dict[TimerId, Timer] = {}
        self._number = 0
        self._unnamed = 0
        self._before_collector: tuple[Phase, int, int] | None = None
        self.generators: weakref.WeakSet[Any] | None = None
        """Async generators that have begun. Made for the first of them: most runs have none."""
        self.abandoned: list[Any] = []
        self._refusals = 0
        self._handler: ExceptionHandler | None = None
        self._reap: Callable[[Task[Any]], None] = self._task_done
        """One object, so that `call_soon` can know it again."""

    def __repr__(self) -> str:
        return f"<WorkflowLoop {self.name} {self.phase.value}>"

    # --- turns ------------------------------------------------------------------------------------------------------

    def start(self, main: Callable[[], Any], *, is_async: bool) -> asyncio.Future[Any]:
        """Make the main task (`main()` returns a coroutine), or the main strand; it runs in the next turn, or in this
        one. When it is done, the workflow has ended.
        """
        before, self.phase = self.phase, Phase.RUNNING
        try:
            where = self.context.copy()
            return self.create_task(where.run(main), context=where) if is_async else self.spawn(main, where)
        finally:
            self.phase = before

    def turn(self, deliver: Callable[[], None] | None = None) -> None:
        """Call `deliver` in the run's context, then run until quiet. Raises what either of them raises."""
        if self.phase is not Phase.IDLE:
            raise InternalError(f"A turn of {self.name} was begun while it was {self.phase.value}. Please report this.")
        outer = enter_loop(self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._generator_begins, self._finalise_generator)
        self.phase = Phase.RUNNING
        self.caller = getcurrent()
        try:
            if deliver is not None:
                self.context.run(deliver)
            if self.blocked_on is None:
                if self.ready:
                    self.hub = hub = take_hub()
                    hub.switch(self)
            elif self.blocked_on.done():
                assert self.suspended is not None
                self.suspended.switch()
            if self.escaped is not None:
                self._raise_escaped()
        finally:
            self.phase = Phase.IDLE
            sys.set_asyncgen_hooks(*hooks)
            leave_loop(outer)

    def _raise_escaped(self) -> NoReturn:
        error, self.escaped = self.escaped, None
        assert error is not None
        try:
            raise error
        finally:
            del error  # it refers to this frame

    def run_ready(self) -> None:
        """In the hub: run callbacks until there are none."""
        ready = self.ready
        for _ in repeat(None, MAX_STEPS):
            if not ready:
                return
            handle = ready.popleft()
            try:
                handle.where.run(handle.call, *handle.args)
            except (SystemExit, KeyboardInterrupt, OutlastInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler(
                    {"message": f"Exception in callback {handle!r}", "exception": error, "handle": handle}
                )
        raise DurableCallError(
            f"{self.name} does not get quiet: {MAX_STEPS} callbacks in one turn, at {self.whereabouts()}. A loop "
            "around asyncio.sleep(0) waits for something that only a later event can bring: use workflow.wait(...), "
            "an asyncio.Event, or a sleep of some length."
        )

    def peek(self, look: Callable[[], T]) -> T:
        """Call a query's function between turns: it sees the run's loop and context, and can change nothing there."""
        assert self.phase is Phase.IDLE, f"{self!r} cannot answer a query now"
        with self._inside(Phase.READ_ONLY):
            counted = self._number, self._unnamed
            try:
                return self.context.copy().run(look)
            finally:
                self._number, self._unnamed = counted

    @contextmanager
    def _inside(self, phase: Phase) -> Generator[None]:
        """As `turn` does, where speed does not matter."""
        before, self.phase = self.phase, phase
        hooks = sys.get_asyncgen_hooks()
        outer = enter_loop(self)
        sys.set_asyncgen_hooks(self._generator_begins, self._finalise_generator)
        self.caller = getcurrent()
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)
            leave_loop(outer)
            self.phase = before

    def is_dropped(self) -> bool:
        """Asked in the hub: it goes on, but nobody has resumed it."""
        return self.phase is not _RUNNING and self.phase is not Phase.EVICTING

    def quiet(self) -> bool:
        """Nothing can run before the next event."""
        return self.blocked_on is not None or not self.ready

    # --- what asyncio calls ------------------------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self.phase is not _RUNNING:
            return self._not_scheduled(callback)
        if context is None:
            context = contextvars.copy_context()
        handle = Handle(callback, args, context)
        if callback is self._reap:
            # Not queued: what ends the turn must not wait behind other code, nor behind a blocked hub.
            self._reap(*args)
        else:
            self.ready.append(handle)
        return handle

    def _not_scheduled(self, callback: Callable[..., object]) -> asyncio.Handle:
        if self.phase not in (Phase.EVICTING, Phase.CLOSED):
            self.refuse(f"Something that schedules {callback!r}")
        return Handle(nothing, (), self.context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        delay_us = in_microseconds(delay)
        return self._arm(delay_us, None, Timer(self, self.time() + delay, callback, args, _context(context)))

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        # Subtracted in microseconds: 0.3 s would come out as 0.29999999999995 s.
        delay_us = in_microseconds(when) - (self.now_us - self.start_us)
        return self._arm(delay_us, None, Timer(self, when, callback, args, _context(context)))

    def call_timer(
        self, delay_us: int, label: str | None, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        """For the program's own waits: `callback` only resolves a future, and is called by `fire_timer` itself."""
        timer = Timer(self, self.time() + delay_us / 1_000_000, callback, args, self.context)
        timer.direct = True
        return self._arm(delay_us, label, timer)

    def _arm(self, delay_us: int, label: str | None, timer: Timer) -> Timer:
        if self.phase is not _RUNNING:
            self.refuse("A timer")
        if delay_us < ENDLESS_US:
            timer.timer_id = self._host.start_timer(max(delay_us, 0), label)
            self._timers[timer.timer_id] = timer
        return timer

    def disarm(self, timer_id: TimerId) -> None:
        if self._timers.pop(timer_id, None) is not None and self.phase is _RUNNING:
            self._host.cancel_timer(timer_id)

    def fire_timer(self, timer_id: TimerId) -> None:
        """From `deliver`: the timer is due. A timer that is not waited for any more is ignored."""
        timer = self._timers.pop(timer_id, None)
        if timer is None:
            return
        timer.timer_id = None
        if timer.direct:
            timer.call(*timer.args)
        else:
            self.ready.append(timer)

    def time(self) -> float:
        return (self.now_us - self.start_us) / 1_000_000

    def create_future(self) -> asyncio.Future[Any]:
        future: Future[Any] = Future(loop=self)
        self._number = future.number = self._number + 1
        return future

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        if self.phase is not _RUNNING or options:
            self._check_task(coro, options)
        if name is None:
            # asyncio counts per process.
            self._unnamed += 1
            name = f"Task-{self._unnamed}"
        if context is None:
            context = contextvars.copy_context()
        self._number = number = self._number + 1
        task: Task[T] = Task(cast("Coroutine[Any, Any, T]", coro), self, str(name), context, number)
        self.tasks[number] = task
        task.add_done_callback(self._reap, context=context)
        return task

    def _check_task(self, coro: Any, options: dict[str, Any]) -> None:
        try:
            if options.pop("eager_start", None):
                raise DurableCallError("eager_start=True was asked for. Eager tasks run out of order; leave it out.")
            if options:
                raise TypeError(f"create_task() got unexpected arguments: {', '.join(options)}")
            if self.phase is not _RUNNING:
                self.refuse("A new task")
        except BaseException:
            coro.close()
            raise

    def _task_done(self, task: Task[Any]) -> None:
        self.tasks.pop(task.number, None)
        if not task.cancelled() and isinstance(error := task._exception, OutlastInterrupt):  # pyright: ignore
            raise error

    def live_tasks(self) -> Iterable[asyncio.Task[Any]]:
        return [task for task in self.tasks.values() if not task.done()]

    # --- sync code --------------------------------------------------------------------------------------------------

    def spawn(self, function: Callable[[], Any], where: contextvars.Context | None = None) -> asyncio.Future[Any]:
        """Run a plain function beside the tasks, in a strand of its own, and in a copy of the present context."""
        if self.phase is not _RUNNING:
            self.refuse("A function to be run beside the others")
        self._number = number = self._number + 1
        strand = Strand(function, self, _context(where), number)
        self.strands[strand.greenlet] = strand
        self.ready.append(Handle(strand.run, (), self.context))
        return strand

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        if executor is not None:
            raise DurableCallError(
                "An executor was given to run_in_executor() in a workflow. Only None is possible: the function then "
                "runs in the workflow's own thread, in turn with the tasks. Do other work in an activity."
            )
        return self.spawn(partial(func, *args) if args else func)

    def in_greenlet(self) -> bool:
        """The caller is in sync code that waits alone: the main function of a `def` workflow, a `def` handler, ..."""
        return getcurrent() in self.strands

    def blocked(self) -> bool:
        """The whole loop of this run waits for a sync call."""
        return self.blocked_on is not None

    def block(self, future: asyncio.Future[T]) -> T:
        """Wait for a future without awaiting it. Raises what the future raises."""
        if self.phase is not _RUNNING:
            self.refuse("A call that waits")
        if future.done():
            return future.result()
        current = getcurrent()
        strand = self.strands.get(current)
        if strand is not None:
            strand.wait(future)
        else:
            self._block_hub(current, future)
        return future.result()

    def _block_hub(self, current: greenlet, future: asyncio.Future[Any]) -> None:
        if running_loop() is not self or current is self.caller:
            raise DurableCallError(
                f"A call that waits was made outside of the tasks and functions of {self.name}: on another thread or "
                "loop, or where the run cannot be suspended. Make it in the workflow's own functions."
            )
        if isinstance(future, Task | Strand):
            raise DurableCallError(
                f"Sync code in a task waits for {future!r}, which cannot go on meanwhile: blocking here blocks the "
                "workflow's whole loop, so it would wait for ever. Await it instead."
            )
        self.blocked_on, self.suspended = future, current
        self.blocked_task = task = swap_current_task(self, None)  # type: ignore[assignment]
        try:
            self.caller.switch()
        finally:
            self.blocked_on = self.blocked_task = self.suspended = None
            swap_current_task(self, task)

    # --- async generators and finalisers ------------------------------------------------------------------------------

    def _generator_begins(self, generator: Any) -> None:
        if self.generators is None:
            self.generators = weakref.WeakSet()
        self.generators.add(generator)

    def _finalise_generator(self, generator: Any) -> None:
        """An async generator was dropped half-way.

        If the last reference went away, that is part of the program, and its `finally` blocks run as a task. If the
        garbage collector found it, the moment is not: it is kept, and unwound with the run.
        """
        if self.phase in (Phase.EVICTING, Phase.CLOSED):
            with compat.unawaited_is_fine():
                self.context.copy().run(eviction.unwind_generators, [generator])
        elif self.phase is _RUNNING and running_loop() is self:
            self.create_task(generator.aclose())
        else:
            self.abandoned.append(generator)

    def collector_at_work(self, begins: bool) -> None:
        if begins and self.phase is _RUNNING:
            self._before_collector = self.phase, self._number, self._unnamed
            self.phase = Phase.COLLECTING
        elif not begins and self._before_collector is not None:
            self.phase, self._number, self._unnamed = self._before_collector
            self._before_collector = None

    # --- refusals and errors -----------------------------------------------------------------------------------------

    def refuse(self, what: str) -> NoReturn:
        """Raise what the phase demands, when it is not RUNNING. The program's durable calls use it too."""
        if self.phase is Phase.EVICTING:
            self._refusals += 1
            if self._refusals > eviction.MAX_CHANCES:
                eviction.park(self.caller)
        if self.phase in (Phase.EVICTING, Phase.CLOSED):
            raise eviction.evicted()
        raise DurableCallError(
            f"{what} was asked of {self.name} while it was {self.phase.value}. A workflow asks for things in its own "
            "functions, tasks and handlers only: not in queries, finalisers (`__del__`), other threads or loops."
        )

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.phase in (Phase.EVICTING, Phase.CLOSED):
            return
        if self._handler is None or self.phase is not _RUNNING:
            self._host.unhandled(context)
            return
        try:
            self.context.copy().run(self._handler, self, context)
        except (SystemExit, KeyboardInterrupt, OutlastInterrupt):
            raise
        except BaseException as error:
            self._host.unhandled({"message": "The exception handler failed", "exception": error, "context": context})

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self._host.unhandled(context)

    def set_exception_handler(self, handler: ExceptionHandler | None) -> None:
        self._handler = handler

    def get_exception_handler(self) -> ExceptionHandler | None:
        return self._handler

    def is_running(self) -> bool:
        return running_loop() is self

    def is_closed(self) -> bool:
        return self.phase is Phase.CLOSED

    # --- where it is, and its end ------------------------------------------------------------------------------------

    def whereabouts(self) -> str:
        """The user code in which tasks and strands wait: "order.py:12 in fulfil, pay.py:40 in charge"."""
        sync = [place_of_frame(each.gr_frame) for each in (self.suspended, *self.strands) if each is not None]
        tasks = [task for task in self.tasks.values() if task is not self.blocked_task and not task.done()]
        return listed([*sync, *(place_of_coroutine(task.get_coro()) for task in tasks)])

    def close(self) -> None:
        """Unwind everything that waits (see `eviction`). On the run's own thread, between turns. Idempotent."""
        if self.phase is Phase.CLOSED:
            return
        if self.phase is not Phase.IDLE:
            raise DurableCallError("A workflow's loop was closed from inside; a workflow ends by returning.")
        if get_ident() != self._thread:
            raise InternalError(f"{self.name} was closed on another thread than its own. Please report this.")
        ended = True
        if self.ready or self.tasks or self.strands or self.suspended or self.generators or self.abandoned:
            with self._inside(Phase.EVICTING), compat.unawaited_is_fine():
                self.ready.clear()
                self._timers.clear()
                ended = eviction.unwind_run(self)
        self.phase = Phase.CLOSED
        self.ready.clear()
        if not ended:
            self._host.unhandled({"message": eviction.left_behind(self.name)})
        self._let_go()

    def _let_go(self) -> None:
        """Break the cycles that go through this loop. A busy node closes thousands of runs a second; left to the
        garbage collector, they took a quarter of its time.
        """
        self._timers.clear()
        self._host = NOBODY
        self.context = _NOWHERE
        self._handler = None
        self._reap = nothing


def _context(given: contextvars.Context | None) -> contextvars.Context:
    return contextvars.copy_context() if given is None else given


compat.install()
finalisers.install()
