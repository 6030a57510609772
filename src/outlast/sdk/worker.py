"""The worker: has the user's code, and runs it for the node (see `runtime.ports.Host`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from outlast.engine.program import Program
from outlast.model.durations import format_duration
from outlast.model.errors import NotRegistered, UsageError
from outlast.model.events import WorkflowExecutionStarted
from outlast.model.failures import Failure, FailureKind
from outlast.model.ids import Namespace, RunId
from outlast.model.inputs import AttemptFailed, AttemptSucceeded
from outlast.runtime.interrupts import LoopBlocked
from outlast.runtime.limits import Limits
from outlast.runtime.membership import Membership
from outlast.runtime.ports import Attempt, AttemptEnd, Clock, Entropy
from outlast.runtime.service import Service
from outlast.sdk import guard
from outlast.sdk.activity_context import ActivityInfo, current_attempt
from outlast.sdk.failures import failure_from
from outlast.sdk.program import EPOCH, PythonProgram
from outlast.sdk.registry import Registry
from outlast.sdk.threads import Threads

logger = logging.getLogger("outlast")

THREADS = 64
"""Threads for plain functions as activities. They mostly wait for I/O; more would only fight for the interpreter."""


class UserCode:
    """Builds programs and runs attempts. Implements `runtime.ports.Host`."""

    def __init__(
        self, registry: Registry, queues: tuple[str, ...], clock: Clock, entropy: Entropy, threads: int = THREADS
    ) -> None:
        self.queues = queues
        self._registry = registry
        self._clock = clock
        self._entropy = entropy
        self._threads = Threads(threads)
        self._workflows = tuple(registry.workflow_names())
        self._activities = {name: registry.activity(name) for name in registry.activity_names()}
        guard.install()
        self._watch_closely = {
            target.name: guard.prepare(target.cls or target.fn, target.name) for target in registry.workflows()
        }

    def close(self) -> None:
        self._threads.close()

    def workflow_names(self) -> Sequence[str]:
        return self._workflows

    def activity_names(self) -> Sequence[str]:
        return tuple(self._activities)

    def hosts_activity(self, activity: str) -> bool:
        return activity in self._activities

    @property
    def threads(self) -> int:
        return self._threads.size

    def needs_thread(self, activity: str) -> bool:
        target = self._activities.get(activity)
        return target is not None and not target.is_async

    def program(self, started: WorkflowExecutionStarted, run_id: RunId, namespace: Namespace, at_us: int) -> Program:
        target = self._registry.workflow(started.workflow)
        watch_closely = self._watch_closely[target.name]
        return PythonProgram(target, started, run_id, namespace, at_us, watch_closely=watch_closely)

    async def run_attempt(self, attempt: Attempt) -> AttemptEnd:
        started_at_us = self._clock.now_us()
        try:
            target = self._activities.get(attempt.activity) or self._registry.activity(attempt.activity)
            args, kwargs = target.plan.decode_arguments(attempt.arguments)
            if not target.is_async:
                await self._threads.slot()
                started_at_us = self._clock.now_us()
            limit_us = _time_allowed_us(attempt, started_at_us)
            current_attempt.set(partial(_info, attempt, started_at_us))
            work = (
                target.fn(*args, **kwargs)
                if target.is_async
                else self._threads.run(partial(_in_thread, partial(target.fn, *args, **kwargs)))
            )
            value = await (work if limit_us is None else _within(limit_us, work))
            result = target.plan.encode_result(value)
        except KeyboardInterrupt:
            raise
        except _InterruptRaised as error:
            failure = failure_from(error.interrupt, attempt.retry)
        except _TimeIsUp as error:
            failure = Failure("ActivityTimeout", str(error), FailureKind.TIMEOUT)
        except LoopBlocked as error:
            # Like a limit of time that was passed: the worker is well, and the policy says if it is tried again.
            failure = Failure("ActivityTimeout", f"it {error}", FailureKind.TIMEOUT)
        except NotRegistered as error:
            failure = failure_from(error)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled_from_outside():
                raise
            failure = failure_from(error, attempt.retry)
        else:
            return AttemptSucceeded(attempt.activity_id, attempt.attempt, started_at_us, result)
        logger.warning(
            "attempt %d of %s in %s/%s failed: %s: %s",
            attempt.attempt, attempt.activity, attempt.workflow, attempt.workflow_id, failure.type, failure.message,
        )  # fmt: skip
        return AttemptFailed(attempt.activity_id, attempt.attempt, started_at_us, failure, self._entropy.jitter())


class _TimeIsUp(Exception):
    """The attempt did not end within the time allowed. Not to be taken for a TimeoutError of the user's own."""


class _InterruptRaised(Exception):
    """A function in a thread has raised KeyboardInterrupt. Nobody has pressed Ctrl-C: that reaches the main thread
    only. As itself it would end the event loop."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__(interrupt)
        self.interrupt = interrupt


def _in_thread(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except KeyboardInterrupt as error:
        raise _InterruptRaised(error) from error


async def _within(limit_us: int, work: Any) -> Any:
    scope = asyncio.timeout(limit_us / 1e6)
    try:
        async with scope:
            return await work
    except TimeoutError:
        if scope.expired():
            raise _TimeIsUp(f"not done within {format_duration(limit_us)}") from None
        raise


def _time_allowed_us(attempt: Attempt, started_at_us: int) -> int | None:
    if attempt.start_to_close_us is None and attempt.deadline_us is None:
        return None
    limits: list[int] = []
    if attempt.start_to_close_us is not None:
        limits.append(attempt.start_to_close_us)
    if attempt.deadline_us is not None:
        limits.append(max(0, attempt.deadline_us - started_at_us))
    return min(limits)


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _time(at_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=at_us)


def _info(attempt: Attempt, started_at_us: int) -> ActivityInfo:
    return ActivityInfo(
        activity=attempt.activity,
        activity_id=attempt.activity_id,
        attempt=attempt.attempt,
        workflow=attempt.workflow,
        workflow_id=attempt.workflow_id,
        run_id=attempt.run_id,
        namespace=attempt.namespace,
        queue=attempt.queue,
        scheduled_at=_time(attempt.scheduled_at_us),
        started_at=_time(started_at_us),
        deadline=None if attempt.deadline_us is None else _time(attempt.deadline_us),
    )


class Worker(AbstractAsyncContextManager["Worker"]):
    """Hosts workflows and activities as long as it is entered: `async with client.worker(...):`.

    Leaving it hands everything over: runs go on where another worker hosts them, or when this one is started again.
    Attempts of activities that are under way are cancelled, and count as lost.
    """

    def __init__(
        self, service: Service, registry: Registry, queues: tuple[str, ...], name: str, limits: Limits
    ) -> None:
        self._service = service
        self._registry = registry
        self._queues = queues
        self._name = name
        self._limits = limits
        self._code: UserCode | None = None

    async def __aenter__(self) -> Worker:
        service = self._service
        if service.membership is not None:
            raise UsageError(
                "this client has a worker already. Give one worker everything it shall host, on several queues if "
                "need be, or open another client."
            )
        code = UserCode(self._registry, self._queues, service.clock, service.entropy)
        membership = Membership(
            service.store,
            code,
            service.clock,
            service.entropy,
            name=self._name,
            namespace=service.namespace,
            limits=self._limits,
            on_closed=service.closed,
            on_parked=service.parked,
            on_left=service.left,
            on_reply=service.replied,
        )
        await membership.join()
        self._code = code
        service.membership = membership
        return self

    async def __aexit__(self, *_: object) -> None:
        membership, self._service.membership = self._service.membership, None
        try:
            if membership is not None:
                await membership.leave()
        finally:
            if self._code is not None:
                self._code.close()
                self._code = None

    async def forever(self) -> None:
        """Host until cancelled."""
        await asyncio.Event().wait()
