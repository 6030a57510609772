"""The run context: what workflow code may ask of the run that it belongs to.

Whether code is inside a workflow is decided by one context variable, which the run's program has set in the context
of all the run's tasks, callbacks and greenlets, and by nothing else: not by whether there is an event loop, nor by
which thread it is. Whoever finds a context here goes through it, and the context refuses what cannot be done at that
moment (see `check_usable`); only where there is none, a decorated function is the plain function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from outlast.model.errors import DurableCallError

if TYPE_CHECKING:
    from datetime import datetime
    from random import Random
    from uuid import UUID

    from outlast.sdk.durable import Durable
    from outlast.sdk.messages import Handler
    from outlast.sdk.options import CallOptions
    from outlast.sdk.pending import Pending


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo:
    """Which run this is."""

    workflow: str
    """The workflow's name, as the history has it."""
    workflow_id: str
    run_id: str
    queue: str
    namespace: str
    started_at: datetime


class RunContext(Protocol):
    """What a program offers to the code that it runs. Every method raises DurableCallError where it cannot be used."""

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Silent on replay."""
        ...

    def call(
        self, target: Durable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Any:
        """An activity called like a function: a coroutine for an async one; a sync one blocks, and gives its value."""
        ...

    def start(
        self, target: Durable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Pending[Any]: ...

    def sleep(self, delay_us: int, label: str | None) -> Pending[None]: ...

    def wait(self, until: Callable[[], object], timeout_us: int | None, label: str | None) -> Pending[bool]: ...

    def set_handler(self, handler: Handler) -> None:
        """Call it for messages from now on, instead of the one that had its kind and name."""
        ...

    def all_handlers_finished(self) -> bool: ...

    def now(self) -> datetime: ...

    def random(self) -> Random: ...

    def uuid4(self) -> UUID: ...

    def info(self) -> WorkflowInfo: ...

    def unsafe(self) -> AbstractContextManager[None]: ...

    def check_usable(self, what: str) -> None:
        """Raise DurableCallError if `what` cannot be done here and now: the wrong thread, loop or phase."""
        ...


current_run: ContextVar[RunContext | None] = ContextVar("outlast.current_run", default=None)


def refuse_client_in_workflow() -> None:
    """Raises DurableCallError in workflow code, whose event loop has no database."""
    if current_run.get() is not None:
        raise DurableCallError(
            "a client was used inside a workflow. Workflow code asks for what is recorded: call an activity, and "
            "use the client there."
        )


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """Speaks for the run in which it is used; outside of workflows it is a plain logger.

    One object for all runs, so that a module may keep it: `log = workflow.logger`.
    """

    def __init__(self) -> None:
        super().__init__(logging.getLogger("outlast.workflow"), {})

    def isEnabledFor(self, level: int) -> bool:
        run = current_run.get()
        return super().isEnabledFor(level) if run is None else run.logger.isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        run = current_run.get()
        # Not LoggerAdapter's own: before Python 3.13 it throws away the `extra` that the caller gave.
        return (msg, kwargs) if run is None else run.logger.process(msg, kwargs)
