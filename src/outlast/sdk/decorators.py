"""`activity` and `workflow`: the two names through which user code speaks to Outlast.

Each is a decorator and a namespace at once. As decorators they keep the signature that was written; as namespaces
they ask the run, or the attempt, in which the code runs, and say so where there is none.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    TypeVarTuple,
    Unpack,
    overload,
)

from outlast.model.durations import Duration, to_microseconds
from outlast.model.errors import DurableCallError, InvalidArgument
from outlast.sdk.activity_context import ActivityInfo, AttemptLogger, attempt_info
from outlast.sdk.context import RunContext, RunLogger, WorkflowInfo, current_run
from outlast.sdk.definition import RUN_MARK, check_class, check_function, mark_run
from outlast.sdk.durable import ENTRY, Durable
from outlast.sdk.message_checks import MessageKind
from outlast.sdk.messages import Query, Signal, Update, function_handler, make_message
from outlast.sdk.options import (
    ActivityDefinition,
    ActivityOptions,
    Definition,
    MessageDefinition,
    WorkflowDefinition,
    activity_definition,
    message_definition,
    workflow_definition,
)
from outlast.sdk.pending import Pending
from outlast.sdk.registry import activity_of, declare
from outlast.sdk.scope import Scope

if TYPE_CHECKING:
    from datetime import datetime
    from random import Random
    from uuid import UUID

__all__ = ["Durable", "activity", "workflow"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
C = TypeVar("C")
Ts = TypeVarTuple("Ts")
Co: TypeAlias = Coroutine[Any, Any, T]


class ActivityDecorator(Protocol):
    def __call__(self, fn: Callable[P, R], /) -> Durable[P, R]: ...


class ActivityApi:
    """`@activity` makes a function an activity: called in a workflow, it is recorded, retried and never repeated once
    its result is recorded. It may run more than once before that: see `idempotency_key`.
    """

    @overload
    def __call__(self, fn: Callable[P, R], /) -> Durable[P, R]: ...
    @overload
    def __call__(self, /, **options: Unpack[ActivityDefinition]) -> ActivityDecorator: ...
    def __call__(self, *fn: Any, **options: Any) -> Any:
        """`@activity`, or with options: `@activity(timeout="30s", retry=Retry(max_attempts=5))`.

        Raises InvalidArgument if the function cannot be one, or naming the option.
        """
        definition = activity_definition(options)

        def decorate(function: Any, /) -> Durable[..., Any]:
            return _make_function(function, "activity", definition)

        return decorate(*fn) if fn else decorate

    def info(self) -> ActivityInfo:
        """Which attempt of which activity this is. Raises DurableCallError where no activity runs."""
        return attempt_info("activity.info()")

    @property
    def idempotency_key(self) -> str:
        """The same for all attempts of this call, and of no other call: give it to whatever has the side effect.

        Raises DurableCallError where no activity runs.
        """
        return attempt_info("activity.idempotency_key").idempotency_key

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """`outlast.activity`; in an activity, records carry which attempt it is."""
        return _attempt_logger


class WorkflowDecorator(Protocol):
    @overload
    def __call__(self, cls: type[C], /) -> type[C]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Durable[P, R]: ...


class SignalDecorator(Protocol):
    def __call__(self, fn: Callable[Concatenate[S, P], R], /) -> Signal[S, P, R]: ...


class QueryDecorator(Protocol):
    def __call__(self, fn: Callable[Concatenate[S, P], R], /) -> Query[S, P, R]: ...


class UpdateDecorator(Protocol):
    def __call__(self, fn: Callable[Concatenate[S, P], R], /) -> Update[S, P, R]: ...


class WorkflowApi:
    """`@workflow` makes a function, or a class with a method `@workflow.run`, a workflow: it runs to its end across
    crashes and restarts. Its methods are what workflow code may ask of its run.
    """

    @overload
    def __call__(self, cls: type[C], /) -> type[C]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Durable[P, R]: ...
    @overload
    def __call__(self, /, **options: Unpack[WorkflowDefinition]) -> WorkflowDecorator: ...
    def __call__(self, *fn: Any, **options: Any) -> Any:
        """`@workflow`, or with options: `@workflow(name="order", aliases=["fulfil_order"])`.

        Raises InvalidArgument if the function or class cannot be one, or naming the option.
        """
        definition = workflow_definition(options)

        def decorate(target: Any, /) -> Any:
            if isinstance(target, type):
                return _make_class(target, definition)
            return _make_function(target, "workflow", definition)

        return decorate(*fn) if fn else decorate

    def run(self, fn: Callable[Concatenate[S, P], R], /) -> Callable[Concatenate[S, P], R]:
        """Mark the main method of a workflow class."""
        mark_run(fn)
        return fn

    # --- what a run can be told and asked -----------------------------------------------------------------------------

    @overload
    def signal(self, fn: Callable[Concatenate[S, P], R], /) -> Signal[S, P, R]: ...
    @overload
    def signal(self, /, **options: Unpack[MessageDefinition]) -> SignalDecorator: ...
    def signal(self, *fn: Any, **options: Any) -> Any:
        """Make a method of a workflow class the handler of a signal: `@workflow.signal`, or with options.

        Called once for each signal that is sent, in the order of their arrival, also before the run method has been
        called. With `dynamic=True` it is `(self, name: str, args: MessageArguments)`, and called for all names that
        no other handler has. Raises InvalidArgument if the method cannot be one, or naming the option.
        """
        return _message_decorator("signal", fn, options)

    @overload
    def query(self, fn: Callable[Concatenate[S, P], R], /) -> Query[S, P, R]: ...
    @overload
    def query(self, /, **options: Unpack[MessageDefinition]) -> QueryDecorator: ...
    def query(self, *fn: Any, **options: Any) -> Any:
        """Make a `def` method of a workflow class answer a query. It may only look. Options and errors: `signal`."""
        return _message_decorator("query", fn, options)

    @overload
    def update(self, fn: Callable[Concatenate[S, P], R], /) -> Update[S, P, R]: ...
    @overload
    def update(self, /, **options: Unpack[MessageDefinition]) -> UpdateDecorator: ...
    def update(self, *fn: Any, **options: Any) -> Any:
        """Make a method of a workflow class the handler of an update, whose result goes to whoever asked for it.

        `@change.validator` marks the method that may refuse the update `change`. Options and errors: `signal`.
        """
        return _message_decorator("update", fn, options)

    def set_signal_handler(self, name: str | None, fn: Callable[..., object]) -> None:
        """Handle a signal of this run from now on; for workflows that are functions.

        With None for the name, `fn(name, args: MessageArguments)` is called for all names that no other handler has.
        Raises InvalidArgument if the function cannot be a handler, PayloadError for a type that cannot be recorded.
        """
        _run("workflow.set_signal_handler()").set_handler(function_handler("signal", name, fn))

    def set_query_handler(self, name: str | None, fn: Callable[..., object]) -> None:
        """Answer a query to this run from now on; see `set_signal_handler`."""
        _run("workflow.set_query_handler()").set_handler(function_handler("query", name, fn))

    def set_update_handler(
        self, name: str | None, fn: Callable[P, object], validator: Callable[P, None] | None = None
    ) -> None:
        """Handle an update of this run from now on; see `set_signal_handler`.

        The validator is called with the same arguments before the update is accepted, and raises to refuse it.
        """
        _run("workflow.set_update_handler()").set_handler(function_handler("update", name, fn, validator))

    def all_handlers_finished(self) -> bool:
        """Whether no handler of a signal or an update is at work: `await workflow.wait(workflow.all_handlers_finished)`
        before the end of a run, which would cut them off.
        """
        return _run("workflow.all_handlers_finished()").all_handlers_finished()

    # --- waiting ------------------------------------------------------------------------------------------------------

    def sleep(self, delay: Duration, *, label: str | None = None) -> Pending[None]:
        """Wait: seconds, a timedelta, or "2 hours". It survives restarts, and is over at its time.

        Await it in an `async def` workflow; in a `def` workflow the call itself blocks.
        """
        return _run("workflow.sleep()").sleep(to_microseconds(delay), label)

    def wait(
        self, until: Callable[[], object], *, timeout: Duration | None = None, label: str | None = None
    ) -> Pending[bool]:
        """Wait until the condition holds; False if the time is over before it does.

        The condition may only look: it is evaluated many times. Await it, or call `.result()` in a `def` workflow.
        """
        run = _run("workflow.wait()")
        if not callable(until) or inspect.iscoroutinefunction(until):
            raise InvalidArgument(
                f"workflow.wait() expects a plain function that tells whether to go on, not {until!r}. It is called "
                "again and again: `workflow.wait(lambda: self.decision is not None)`."
            )
        return run.wait(until, None if timeout is None else to_microseconds(timeout), label)

    # --- activities ---------------------------------------------------------------------------------------------------

    def execute(self, fn: Callable[[Unpack[Ts]], R], /, *args: *Ts, **options: Unpack[ActivityOptions]) -> R:
        """Call an activity with options: `await workflow.execute(charge, order, timeout="5s")`.

        Keywords are options; `charge.options(timeout="5s")(order, currency="EUR")` takes keyword arguments too.
        """
        run = _run("workflow.execute()")
        target = activity_of(fn, "workflow.execute()")
        merged = target.default_options.merged(dict(options), where="workflow.execute()")
        result: R = run.call(target, args, {}, merged)
        return result

    @overload
    def start(
        self, fn: Callable[[Unpack[Ts]], Co[T]], /, *args: *Ts, **options: Unpack[ActivityOptions]
    ) -> Pending[T]: ...
    @overload
    def start(self, fn: Callable[[Unpack[Ts]], T], /, *args: *Ts, **options: Unpack[ActivityOptions]) -> Pending[T]: ...
    def start(self, fn: Any, /, *args: Any, **options: Any) -> Pending[Any]:  # type: ignore[misc]  # mypy: TypeVarTuple
        """Start an activity and go on: the result is to be had by `await`, or by `.result()` in a `def` workflow."""
        run = _run("workflow.start()")
        target = activity_of(fn, "workflow.start()")
        return run.start(target, args, {}, target.default_options.merged(options, where="workflow.start()"))

    # --- what a replay repeats ----------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The time of the last event, in UTC: the same on replay."""
        return _run("workflow.now()").now()

    def random(self) -> Random:
        """The run's own source of random numbers, which gives the same ones on replay. Not for secrets."""
        return _run("workflow.random()").random()

    def uuid4(self) -> UUID:
        """A random UUID, the same on replay. Not for secrets."""
        return _run("workflow.uuid4()").uuid4()

    def info(self) -> WorkflowInfo:
        """Which run this is."""
        return _run("workflow.info()").info()

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """`outlast.workflow`; in a workflow it is silent on replay, and records carry which run it is."""
        return _run_logger

    def unsafe(self) -> AbstractContextManager[None]:
        """`with workflow.unsafe():` switches the determinism guard off inside the block.

        Nothing in the block may change what the workflow does: a replay would not repeat it.
        """
        run = current_run.get()
        return nullcontext() if run is None else run.unsafe()


def _run(what: str) -> RunContext:
    run = current_run.get()
    if run is None:
        raise DurableCallError(
            f"{what} was called where no workflow runs. It asks the run for something that is recorded, and there is a "
            "run only when a worker, or `outlast.run`, executes the workflow. An activity has the real clock, and "
            "`asyncio.sleep`; a unit test that calls the function itself can replace the call with `unittest.mock`."
        )
    return run


def _make_function(target: Any, kind: Any, definition: Definition) -> Durable[..., Any]:
    fn = check_function(target, f"@{kind}", named=definition.name is not None)
    durable: Durable[..., Any] = Durable(fn, kind, definition, Scope.of(fn))
    declare(durable)
    return durable


def _make_class(cls: type, definition: Definition) -> type:
    method = check_class(cls, named=definition.name is not None)
    durable: Durable[..., Any] = Durable(method, "workflow", definition, getattr(method, RUN_MARK), cls)
    setattr(cls, ENTRY, durable)
    declare(durable)
    return cls


def _message_decorator(kind: MessageKind, fn: tuple[Any, ...], options: dict[str, Any]) -> Any:
    definition = message_definition(options, f"@workflow.{kind}")

    def decorate(function: Any, /) -> Any:
        return make_message(function, kind, definition)

    return decorate(*fn) if fn else decorate


_attempt_logger = AttemptLogger()
_run_logger = RunLogger()

activity = ActivityApi()
workflow = WorkflowApi()
