"""A Python workflow as a program: events in, commands out (see `engine.program`).

Theory of operation
===================
The workflow's code runs on a `WorkflowLoop`, which has no clock and no I/O. `feed` gives it one event: the event's
handler (table `_FEED`) resolves the future that somebody waits for, and the loop runs until it is quiet. What the
code asks for meanwhile, through the run context (`call`, `sleep`, ...) or through asyncio (timers), is collected as
commands. Ids come from one counter per run, so that the same code asks with the same ids on replay.

What always holds:
- The workflow sees values as they were decoded from the recorded bytes, live as on replay.
- Its clock shows the time of the event that was fed last.
- A turn that was poisoned (the guard saw a violation, a `Pending` was forgotten) raises, even where the user's code
  swallowed the exception: nothing of it is committed.
- When the main function is done, the terminal command is the last; tasks that are left over are unwound unheard.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Generator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar
from uuid import UUID

from outlast.model.commands import (
    CancelActivity,
    CancelTimer,
    CancelWorkflow,
    Command,
    CompleteWorkflow,
    EndWait,
    FailWorkflow,
    ScheduleActivity,
    StartTimer,
    StartWait,
)
from outlast.model.errors import DurableCallError
from outlast.model.events import (
    ActivityCompleted,
    ActivityFailed,
    InputEvent,
    TimerFired,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionSignaled,
    WorkflowExecutionStarted,
    WorkflowExecutionUpdateAccepted,
)
from outlast.model.failures import Failure
from outlast.model.ids import ActivityId, Namespace, RunId, TimerId, WaitId
from outlast.model.payloads import Arguments, Payload
from outlast.sdk import guard
from outlast.sdk.context import WorkflowInfo, current_run
from outlast.sdk.decorators import Durable
from outlast.sdk.failures import exception_from, failure_from
from outlast.sdk.handling import Handling
from outlast.sdk.loop import Phase, WorkflowLoop, in_finaliser, user_frame
from outlast.sdk.messages import Handler
from outlast.sdk.options import CallOptions
from outlast.sdk.pending import Pending

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ProgramLogger(logging.LoggerAdapter[logging.Logger]):
    """Says nothing on replay; adds which run it is."""

    def __init__(self, program: PythonProgram) -> None:
        super().__init__(logging.getLogger("outlast.workflow"), {})
        self._program = program

    def isEnabledFor(self, level: int) -> bool:
        return not self._program.replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        info = self._program.info()
        extra = {"workflow": info.workflow, "workflow_id": info.workflow_id, "run_id": info.run_id}
        kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        return msg, kwargs


class PythonProgram:
    """One run of a native workflow. Implements `engine.Program`, the loop's host, and the run context of the SDK."""

    def __init__(
        self,
        target: Durable[..., Any],
        started: WorkflowExecutionStarted,
        run_id: RunId,
        namespace: Namespace,
        at_us: int,
        *,
        watch_closely: bool = False,
    ) -> None:
        self.target = target
        self._watch_closely = watch_closely
        """What `guard.prepare` has said of the workflow."""
        self.started = started
        self.run_id = run_id
        self.namespace = namespace
        self.start_us = at_us
        self.replaying = False
        self._count = 0
        self._commands: list[Command] = []
        self._activities: dict[ActivityId, tuple[asyncio.Future[Any], Durable[..., Any]]] = {}
        self._conditions: list[tuple[Callable[[], object], asyncio.Future[bool]]] = []
        self._random: random.Random | None = None
        self._poison: BaseException | None = None
        self._read_only = False
        self._cancel_requested = False
        self._thread = threading.get_ident()
        context = contextvars.Context()
        context.run(current_run.set, self)
        self._loop = WorkflowLoop(self, f"{started.workflow}/{started.workflow_id}", context, at_us)  # type: ignore[abstract]
        self._main: asyncio.Future[Any] | None = None
        self._handling = Handling(self._loop, self._ask, self._source, self.logger)

    # --- engine.Program -----------------------------------------------------------------------------------------------

    def feed(self, event: InputEvent, at_us: int, *, replaying: bool) -> Sequence[Command]:
        self.replaying = replaying
        self._commands = []
        loop = self._loop
        if at_us > loop.now_us:
            loop.now_us = at_us
        guard.begin_turn(not replaying, self._watch_closely)
        try:
            loop.turn(partial(self._FEED[type(event)], self, event))
            while self._conditions and self._settle_conditions():
                pass
        finally:
            violation = guard.end_turn()
        if violation is not None:
            raise violation
        if self._poison is not None:
            raise self._poison
        if self._handling.failure is not None:  # first: it is not to be lost because the main function ended as well
            self._commands.append(FailWorkflow(failure=failure_from(self._handling.failure)))
        elif self._main is not None and self._main.done():
            self._commands.append(self._ending(self._main))
        return self._commands

    def refuse_update(self, update: str, arguments: Arguments) -> Failure | None:
        return self._handling.refuse_update(update, arguments)

    def answer_query(self, query: str, arguments: Arguments) -> Payload | Failure:
        return self._handling.answer_query(query, arguments)

    def _ask(self, command: Command) -> None:
        if self._loop.phase is Phase.RUNNING:
            self._commands.append(command)

    def whereabouts(self) -> str:
        return self._loop.whereabouts()

    def close(self) -> None:
        self._conditions.clear()
        self._loop.close()
        self._activities.clear()
        self._main = None

    def _begin(self, event: WorkflowExecutionStarted) -> None:
        args, kwargs = self.target.plan.decode_arguments(event.arguments)
        main: Callable[[], Any] = partial(self.target.entry(self._made), *args, **kwargs)
        self._main = self._loop.start(main, is_async=self.target.is_async)

    def _made(self, instance: object) -> None:
        """The instance of a workflow class is there; its main method has not begun."""
        handlers = self.target.handlers
        if handlers is not None:
            self._handling.set(handlers.bind(instance))

    def _message(self, event: WorkflowExecutionSignaled | WorkflowExecutionUpdateAccepted) -> None:
        self._handling.handle(event)

    def _activity_completed(self, event: ActivityCompleted) -> None:
        entry = self._activities.pop(event.activity_id, None)
        if entry is None or entry[0].done():
            return
        future, target = entry
        try:
            value = target.plan.decode_result(event.result)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _activity_failed(self, event: ActivityFailed) -> None:
        entry = self._activities.pop(event.activity_id, None)
        if entry is not None and not entry[0].done():
            entry[0].set_exception(exception_from(event.failure))

    def _timer_fired(self, event: TimerFired) -> None:
        self._loop.fire_timer(event.timer_id)

    def _asked_to_cancel(self, event: WorkflowExecutionCancelRequested) -> None:
        self._cancel_requested = True
        if self._main is not None:
            self._main.cancel(event.reason or None)

    _FEED: ClassVar[dict[type[InputEvent], Callable[[PythonProgram, Any], None]]] = {
        WorkflowExecutionStarted: _begin,
        WorkflowExecutionCancelRequested: _asked_to_cancel,
        WorkflowExecutionSignaled: _message,
        WorkflowExecutionUpdateAccepted: _message,
        ActivityCompleted: _activity_completed,
        ActivityFailed: _activity_failed,
        TimerFired: _timer_fired,
    }

    def _ending(self, main: asyncio.Future[Any]) -> Command:
        try:
            value = main.result()
            return CompleteWorkflow(result=self.target.plan.encode_result(value))
        except asyncio.CancelledError as error:
            if self._cancel_requested:
                return CancelWorkflow()
            return FailWorkflow(failure=failure_from(error))
        except Exception as error:
            return FailWorkflow(failure=failure_from(error))

    # --- the loop's host ----------------------------------------------------------------------------------------------

    def start_timer(self, delay_us: int, label: str | None) -> TimerId:
        timer_id = TimerId(self._next_id())
        self._commands.append(StartTimer(timer_id=timer_id, delay_us=delay_us, label=label, source=self._source()))
        return timer_id

    def cancel_timer(self, timer_id: TimerId) -> None:
        if self._loop.phase is Phase.RUNNING:
            self._commands.append(CancelTimer(timer_id=timer_id, source=self._source()))

    def unhandled(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.logger.error("%s", context.get("message", "unhandled error"), exc_info=error)

    def _next_id(self) -> str:
        self._count += 1
        return str(self._count)

    def _source(self) -> str | None:
        return user_frame() if self.replaying else None

    @property
    def logger(self) -> ProgramLogger:
        return ProgramLogger(self)

    # --- the run context: activities ----------------------------------------------------------------------------------

    def call(
        self, target: Durable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Any:
        if target.is_async:
            return self._call(target, args, kwargs, options)
        self.check_usable(target.name)
        activity_id, future = self._schedule(target, args, kwargs, options)
        return self._block(activity_id, future)

    def start(
        self, target: Durable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Pending[Any]:
        self.check_usable(target.name)
        activity_id, future = self._schedule(target, args, kwargs, options)
        return Pending(
            f"workflow.start({target.name}, ...)",
            partial(self._join, activity_id, future),
            partial(self._block, activity_id, future),
            None,
        )

    async def _call(
        self, target: Durable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Any:
        self.check_usable(target.name)
        activity_id, future = self._schedule(target, args, kwargs, options)
        try:
            return await future
        except asyncio.CancelledError:
            self._no_longer_wanted(activity_id)
            raise

    def _schedule(
        self, target: Durable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> tuple[ActivityId, asyncio.Future[Any]]:
        arguments = target.plan.encode_arguments(args, kwargs)
        activity_id = ActivityId(self._next_id())
        future = self._loop.create_future()
        self._activities[activity_id] = (future, target)
        self._commands.append(
            ScheduleActivity(
                activity_id=activity_id,
                activity=target.name,
                arguments=arguments,
                aliases=target.aliases,
                queue=options.queue,
                label=options.label,
                retry=options.retry,
                start_to_close_us=options.start_to_close_us,
                schedule_to_close_us=options.schedule_to_close_us,
                source=self._source(),
            )
        )
        return activity_id, future

    async def _join(self, activity_id: ActivityId, future: asyncio.Future[Any]) -> Any:
        try:
            return await future
        except asyncio.CancelledError:
            self._no_longer_wanted(activity_id)
            raise

    def _block(self, activity_id: ActivityId, future: asyncio.Future[Any]) -> Any:
        try:
            return self._loop.block(future)
        except asyncio.CancelledError:
            self._no_longer_wanted(activity_id)
            raise

    def _no_longer_wanted(self, activity_id: ActivityId) -> None:
        if self._activities.pop(activity_id, None) is not None and self._loop.phase is Phase.RUNNING:
            self._commands.append(CancelActivity(activity_id=activity_id, source=self._source()))

    # --- the run context: sleep and wait ------------------------------------------------------------------------------

    def sleep(self, delay_us: int, label: str | None) -> Pending[None]:
        self.check_usable("workflow.sleep")
        wait = partial(self._sleep, delay_us, label)
        return self._pending("workflow.sleep(...)", wait, partial(self._sleep_blocking, delay_us, label))

    def wait(self, until: Callable[[], object], timeout_us: int | None, label: str | None) -> Pending[bool]:
        self.check_usable("workflow.wait")
        wait = partial(self._wait, until, timeout_us, label)
        return self._pending("workflow.wait(...)", wait, partial(self._wait_blocking, until, timeout_us, label))

    def _pending(
        self, what: str, wait: Callable[[], Coroutine[Any, Any, Any]], block: Callable[[], Any]
    ) -> Pending[Any]:
        """In sync code it has happened when this returns; in a task it is still to be awaited."""
        if self._loop.in_greenlet():
            value = block()
            return Pending(what, partial(_done, value), lambda: value, None)
        return Pending(what, wait, block, partial(self._forgotten, user_frame()))

    def _forgotten(self, where: str | None, what: str) -> None:
        if self._loop.phase is Phase.RUNNING and self._poison is None:
            self._poison = DurableCallError(
                f"{what} at {where or 'an unknown place'} was called, but nobody waits for it, so nothing happens. "
                f"Write `await {what}` in async code, `{what}.result()` in sync code."
            )

    async def _sleep(self, delay_us: int, label: str | None) -> None:
        self.check_usable("workflow.sleep")
        future = self._loop.create_future()
        timer = self._loop.call_timer(delay_us, label, _set_true, future)
        try:
            await future
        finally:
            timer.cancel()

    def _sleep_blocking(self, delay_us: int, label: str | None) -> None:
        future = self._loop.create_future()
        timer = self._loop.call_timer(delay_us, label, _set_true, future)
        try:
            self._loop.block(future)
        finally:
            timer.cancel()

    async def _wait(self, until: Callable[[], object], timeout_us: int | None, label: str | None) -> bool:
        self.check_usable("workflow.wait")
        if self._holds(until):
            return True
        with self._condition(until, timeout_us, label) as future:
            return await future

    def _wait_blocking(self, until: Callable[[], object], timeout_us: int | None, label: str | None) -> bool:
        if self._holds(until):
            return True
        with self._condition(until, timeout_us, label) as future:
            return self._loop.block(future)

    @contextmanager
    def _condition(
        self, until: Callable[[], object], timeout_us: int | None, label: str | None
    ) -> Generator[asyncio.Future[bool], None, None]:
        """A future that becomes True when the condition holds, or False when the time is over."""
        future: asyncio.Future[bool] = self._loop.create_future()
        entry = (until, future)
        self._conditions.append(entry)
        timer = None if timeout_us is None else self._loop.call_timer(timeout_us, label, _set_false, future)
        wait_id = None
        if timer is None and label is not None:
            wait_id = WaitId(self._next_id())
            self._commands.append(StartWait(wait_id=wait_id, label=label, source=self._source()))
        try:
            yield future
        finally:
            if entry in self._conditions:
                self._conditions.remove(entry)
            if timer is not None:
                timer.cancel()
            if wait_id is not None and self._loop.phase is Phase.RUNNING:
                self._commands.append(EndWait(wait_id=wait_id, source=self._source()))

    def _holds(self, until: Callable[[], object]) -> bool:
        """A condition may look, and may not ask for anything."""
        before, self._read_only = self._read_only, True
        try:
            return bool(until())
        finally:
            self._read_only = before

    def _settle_conditions(self) -> bool:
        """Look at all conditions, and let those run on whose condition has come to hold. False: none has."""
        settled = False

        def look() -> None:
            nonlocal settled
            for until, future in list(self._conditions):
                if future.done():
                    continue
                try:
                    holds = self._holds(until)
                except Exception as error:
                    future.set_exception(error)
                    settled = True
                else:
                    if holds:
                        future.set_result(True)
                        settled = True

        self._loop.turn(look)
        return settled

    # --- the run context: messages ------------------------------------------------------------------------------------

    def set_handler(self, handler: Handler) -> None:
        self.check_usable(f"workflow.set_{handler.kind}_handler()")
        self._handling.set([handler])

    def all_handlers_finished(self) -> bool:
        return not self._handling.running

    # --- the run context: what replay repeats -------------------------------------------------------------------------

    def now(self) -> datetime:
        return EPOCH + timedelta(microseconds=self._loop.now_us)

    def random(self) -> random.Random:
        if self._random is None:
            self._random = random.Random(f"outlast/{self.run_id}")
        return self._random

    def uuid4(self) -> UUID:
        return UUID(int=self.random().getrandbits(128), version=4)

    def info(self) -> WorkflowInfo:
        return WorkflowInfo(
            workflow=self.started.workflow,
            workflow_id=self.started.workflow_id,
            run_id=self.run_id,
            queue=self.started.queue,
            namespace=self.namespace,
            started_at=EPOCH + timedelta(microseconds=self.start_us),
        )

    def unsafe(self) -> AbstractContextManager[None]:
        return guard.unsafe()

    def check_usable(self, what: str) -> None:
        """Raise DurableCallError unless a durable call can be made here and now."""
        if self._loop.phase is Phase.RUNNING and not self._read_only:
            if threading.get_ident() == self._thread and not in_finaliser():
                return
            raise DurableCallError(
                f"{what} was called from a finaliser (`__del__`) or from another thread. A workflow makes its durable "
                "calls itself, in its own functions and tasks."
            )
        if self._loop.phase in (Phase.EVICTING, Phase.CLOSED):
            self._loop.refuse(what)
        if self._loop.phase is Phase.READ_ONLY:
            raise DurableCallError(
                f"{what} was called in a query or a validator. These may only look: what they do is not recorded, so a "
                "replay would not repeat it. Change the run in a signal or an update."
            )
        if self._read_only:
            raise DurableCallError(
                f"{what} was called in a condition. A condition given to workflow.wait may only look; it is "
                "evaluated many times, and not at the same times on replay."
            )
        raise DurableCallError(
            f"{what} was called when the workflow does not run: from a callback, or after it has ended."
        )


async def _done(value: Any) -> Any:
    return value


def _set_true(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(True)


def _set_false(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(False)
