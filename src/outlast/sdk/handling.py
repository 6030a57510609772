"""Handling: how the messages to one run reach its handlers, and how updates and queries are answered.

Theory of operation
===================
The program feeds signals and accepted updates, in the order of the journal. Each starts its handler beside the tasks
that run already: an async one as a task, a plain one in a strand of its own, so that it may wait. Messages for which
there is no handler yet wait, in their order, until one is set: those of a class are there as soon as the instance is
made; a function workflow sets its own (`set_handler`).

What always holds:
- An exception that escapes a signal's handler fails the run, as one in its main function does. One that escapes an
  update's handler is the answer to that update, and hurts nobody else.
- A signal whose arguments the handler's types do not fit is skipped, with an error in the log; it stays in the history.
  An update like that is refused.
- Queries and validators are called between turns, where no durable call is possible, and change nothing.
- When the run ends, handlers that still run are unwound unheard; whoever waits for such an update is told that the run
  has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from outlast.model.commands import Command, CompleteUpdate
from outlast.model.errors import InvalidArgument, NotRegistered, PayloadError
from outlast.model.events import WorkflowExecutionSignaled, WorkflowExecutionUpdateAccepted
from outlast.model.failures import Failure
from outlast.model.payloads import Arguments, Payload
from outlast.runtime.parking import exited
from outlast.sdk.failures import failure_from
from outlast.sdk.loop import WorkflowLoop
from outlast.sdk.message_checks import MessageKind
from outlast.sdk.messages import Handler

ToHandle = WorkflowExecutionSignaled | WorkflowExecutionUpdateAccepted


class Handling:
    def __init__(
        self, loop: WorkflowLoop, ask: Callable[[Command], None], source: Callable[[], str | None],
        logger: logging.LoggerAdapter[logging.Logger],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._ask = ask
        self._source = source
        self._logger = logger
        self._handlers: dict[tuple[MessageKind, str], Handler] = {}
        self._dynamic: dict[MessageKind, Handler] = {}
        self._waiting: list[ToHandle] = []
        self.running: set[asyncio.Future[Any]] = set()
        self.failure: BaseException | None = None
        """What escaped from a signal's handler."""

    # --- handlers -----------------------------------------------------------------------------------------------------

    def set(self, handlers: Sequence[Handler]) -> None:
        """From now on; what waits for them is handled at once. Another one of the same name is replaced."""
        for handler in handlers:
            if handler.dynamic:
                self._dynamic[handler.kind] = handler
            else:
                for name in (handler.name, *handler.aliases):
                    self._handlers[handler.kind, name] = handler
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self.handle(event)

    def _find(self, kind: MessageKind, name: str) -> Handler | None:
        return self._handlers.get((kind, name)) or self._dynamic.get(kind)

    def _unknown(self, kind: MessageKind, name: str) -> Failure:
        known = sorted(known for of_kind, known in self._handlers if of_kind == kind)
        there = f"It has: {', '.join(known)}." if known else f"It has no {kind} handlers."
        return failure_from(NotRegistered(f"the run has no handler for the {kind} {name!r}. {there}"))

    # --- signals and updates ------------------------------------------------------------------------------------------

    def handle(self, event: ToHandle) -> None:
        """Start the handler; it runs in this turn."""
        if isinstance(event, WorkflowExecutionSignaled):
            name, handler = event.signal, self._find("signal", event.signal)
        else:
            name, handler = event.update, self._find("update", event.update)
        if handler is None:
            self._waiting.append(event)
            return
        try:
            args, kwargs = handler.decode(name, event.arguments)
        except (PayloadError, InvalidArgument) as error:
            self._cannot_be_read(event, name, handler, error)
            return
        future = self._start(handler, args, kwargs, f"{handler.kind} {name}")
        self.running.add(future)
        future.add_done_callback(partial(self._handled, event, handler))

    def _start(self, handler: Handler, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> asyncio.Future[Any]:
        where: contextvars.Context = self._loop.context.copy()
        if handler.is_async:
            return self._loop.create_task(where.run(handler.fn, *args, **kwargs), name=name, context=where)
        return self._loop.spawn(partial(handler.fn, *args, **kwargs), where)

    def _cannot_be_read(self, event: ToHandle, name: str, handler: Handler, error: Exception) -> None:
        if isinstance(event, WorkflowExecutionSignaled):
            self._logger.error(
                "signal %s does not fit its handler at %s and is skipped: %s", name, handler.where, error
            )
        else:  # the handler was changed since the update was accepted
            self._ask(CompleteUpdate(message_id=event.message_id, failure=failure_from(error), source=self._source()))

    def _handled(self, event: ToHandle, handler: Handler, future: asyncio.Future[Any]) -> None:
        self.running.discard(future)
        if isinstance(event, WorkflowExecutionUpdateAccepted):
            self._ask(self._answer(event, handler, future))
        elif not future.cancelled() and (error := future.exception()) is not None and self.failure is None:
            self.failure = error

    def _answer(
        self, event: WorkflowExecutionUpdateAccepted, handler: Handler, future: asyncio.Future[Any]
    ) -> CompleteUpdate:
        source = self._source()
        try:
            result = handler.plan.encode_result(future.result())
        except (asyncio.CancelledError, Exception) as error:
            return CompleteUpdate(message_id=event.message_id, failure=failure_from(error), source=source)
        return CompleteUpdate(message_id=event.message_id, result=result, source=source)

    # --- what changes nothing -----------------------------------------------------------------------------------------

    def refuse_update(self, name: str, arguments: Arguments) -> Failure | None:
        handler = self._find("update", name)
        if handler is None:
            return self._unknown("update", name)
        try:
            args, kwargs = handler.decode(name, arguments)
            if handler.validator is not None:
                self._loop.peek(partial(handler.validator, *args, **kwargs))
        except Exception as error:
            return failure_from(error)
        except SystemExit as error:  # it must end neither the run, nor the process of whoever asks
            return failure_from(exited(error))
        return None

    def answer_query(self, name: str, arguments: Arguments) -> Payload | Failure:
        handler = self._find("query", name)
        if handler is None:
            return self._unknown("query", name)
        try:
            args, kwargs = handler.decode(name, arguments)
            return handler.plan.encode_result(self._loop.peek(partial(handler.fn, *args, **kwargs)))
        except Exception as error:
            return failure_from(error)
        except SystemExit as error:  # it must end neither the run, nor the process of whoever asks
            return failure_from(exited(error))
