"""Durable: a function that has been made an activity or a workflow.

Where there is no run it is the function itself. Inside a run, calling an activity asks the run context for it, which
records the call. One class serves `def` and `async def` alike: the return type carries the colour, so type checkers
see the very signature that was written.

To everybody who looks it is the function: name, docstring, signature, and the marks by which `inspect` and
`unittest.mock` tell an `async def`. Methods are bound as functions are; what is bound keeps its plan and its name.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from types import FunctionType, MethodType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeAlias, TypeVar, Unpack, cast, overload

from outlast.model.errors import DurableCallError, InvalidArgument
from outlast.sdk.context import RunContext, current_run
from outlast.sdk.converter import CallPlan, Converter
from outlast.sdk.decorated import Decorated
from outlast.sdk.handlers import Handlers, messages_of
from outlast.sdk.options import ActivityOptions, Definition
from outlast.sdk.scope import Scope

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")

Kind: TypeAlias = Literal["activity", "workflow"]

ENTRY = "__outlast__"
"""Attribute of a workflow class: the Durable that describes it."""


class Durable(Decorated, Generic[P, R]):
    """An activity or a function workflow, callable as the function that it was made of.

    Made by `@activity` and `@workflow`. For a workflow class, the entry that describes the class.
    """

    def __init__(
        self, fn: Callable[P, R], kind: Kind, definition: Definition, scope: Scope, cls: type | None = None
    ) -> None:
        name = definition.name or (fn if cls is None else cls).__qualname__
        super().__init__(fn, scope, name=name, aliases=definition.aliases)
        self.kind: Kind = kind
        self.cls = cls
        """The workflow class, or None."""
        self.handlers: Handlers | None = None if cls is None else messages_of(cls)
        """What a workflow class can be told and asked. None: not known before it runs."""
        self.default_options = definition.options
        self.origin: Durable[..., Any] = self
        """What the decorator made; others are derived from it: bound to an instance, or with other options."""
        self.owner: type | None = None
        """The class whose method it is, if it is an activity that is defined in one."""
        self.bound_to: object = None
        self._plain_call = kind == "activity"
        if self.is_async:
            _mark_async(self, fn)

    @property
    def __outlast_kind__(self) -> Kind:
        """By this `definition`, which knows nothing of this class, tells what is decorated already."""
        return self.kind

    # --- calling ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        run = current_run.get()
        result: R
        if run is None:
            result = self.fn(*args, **kwargs)
        elif self._plain_call:
            result = run.call(self, args, kwargs, self.default_options)
        else:
            result = self._call_otherwise(run, args, kwargs)
        return result

    def _call_otherwise(self, run: RunContext, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.kind == "workflow":
            raise no_child_workflows(self)
        owner = self.owner
        assert owner is not None
        if not args or not isinstance(args[0], owner):
            raise DurableCallError(
                f"{self.name} is a method: call it on an instance of {owner.__qualname__}. The worker runs it on the "
                "instance that it was given."
            )
        return run.call(self.bind(args[0]), args[1:], kwargs, self.default_options)

    def options(self, **options: Unpack[ActivityOptions]) -> Self:
        """The same activity with other options: `charge.options(timeout="5s", queue="payments")(info)`.

        Raises InvalidArgument naming the option.
        """
        if self.kind == "workflow":
            raise DurableCallError(
                f"{self.name} is a workflow, whose options are said where it is started: "
                f"`client.options(id=...).start({self.name}, ...)`."
            )
        given: Mapping[str, object] = cast("Mapping[str, object]", options)
        changed = self._copy()
        changed.default_options = self.default_options.merged(given, where=f"{self.name}.options()")
        return changed

    def entry(self, made: Callable[[object], None]) -> Callable[..., Any]:
        """What a run of this workflow calls with its arguments. A class is instantiated in that call, not before, and
        `made` is told the instance.
        """
        if self.cls is None:
            return self.fn
        return functools.partial(_run_async if self.is_async else _run_sync, self.cls, self.fn, made)

    # --- methods ------------------------------------------------------------------------------------------------------

    def __set_name__(self, owner: type, name: str) -> None:
        if self.fn.__qualname__ != f"{owner.__qualname__}.{self.fn.__name__}":
            return  # defined elsewhere and put into this class: it stays what it is there
        if self.kind == "workflow":
            raise InvalidArgument(
                f"@workflow cannot take {self.fn.__qualname__} ({self.where}): it is a method. Put @workflow on the "
                "class, and @workflow.run on the method."
            )
        self.owner = owner
        self._plain_call = False

    @overload
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self: Durable[Concatenate[S, Q], R], obj: S, owner: type) -> Durable[Q, R]: ...
    def __get__(self, obj: object, owner: type) -> Any:
        if obj is None:
            return self
        if self.owner is None and isinstance(obj, type):  # Python before 3.13: @classmethod above the decorator
            raise InvalidArgument(
                f"{self.name} ({self.where}) is a classmethod, and a history cannot say which class it is called on. "
                "Make it a static method, or a method of an instance that the worker is given."
            )
        return self.bind(obj)

    def bind(self, obj: object) -> Durable[..., Any]:
        """This method on `obj`."""
        bound: Durable[..., Any] = self._copy()
        bound.fn = bound.__dict__["__wrapped__"] = MethodType(self.fn, obj)
        bound.bound_to = obj
        bound._plain_call = self.kind == "activity"
        return bound

    def _copy(self) -> Self:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    # --- payloads -----------------------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> CallPlan:
        return super().plan if self.origin is self else self.origin.plan

    def plan_with(self, converter: Converter) -> CallPlan:
        origin = self.origin
        is_method = origin.owner is not None or origin.cls is not None
        return CallPlan.of(origin.fn, converter, name=self.name, skip_self=is_method, localns=origin.localns)

    # --- identity -----------------------------------------------------------------------------------------------------

    def same_as(self, other: Durable[..., Any]) -> bool:
        """Whether both lead to the same code, on the same instance."""
        if self.bound_to is not other.bound_to:
            return False
        mine, theirs = self.origin, other.origin
        # A file that runs as `__main__` and is imported as well is defined twice; it is the same code all the same.
        # Not so inside a function, which may define different things at one place.
        at_one_place = (mine.where, mine.fn.__qualname__) == (theirs.where, theirs.fn.__qualname__)
        return mine is theirs or (at_one_place and "<locals>" not in mine.fn.__qualname__)

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self.cls is not None:
            return getattr, (self.cls, ENTRY)
        if self.origin is self:
            return self.fn.__qualname__  # by name, as functions are
        return _derived, (self.origin, self.bound_to, self.default_options)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} ({self.where})>"


def no_child_workflows(target: Durable[..., Any]) -> DurableCallError:
    as_a_part = "the method on an instance" if target.cls is not None else f"`{target.fn.__name__}.fn(...)`"
    return DurableCallError(
        f"{target.name} is a workflow, and it was called inside a workflow: child workflows are not supported yet. "
        f"Call it as {as_a_part}, and it is a part of this run; or start a run of its own from an activity, with a "
        "client."
    )


def _derived(origin: Durable[..., Any], bound_to: object, options: Any) -> Durable[..., Any]:
    made = origin.bind(bound_to) if bound_to is not None else origin._copy()  # pyright: ignore[reportPrivateUsage]
    made.default_options = options
    return made


async def _run_async(
    cls: type, method: Callable[..., Any], made: Callable[[object], None], /, *args: Any, **kwargs: Any
) -> Any:
    instance = cls()
    made(instance)
    return await method(instance, *args, **kwargs)


def _run_sync(
    cls: type, method: Callable[..., Any], made: Callable[[object], None], /, *args: Any, **kwargs: Any
) -> Any:
    instance = cls()
    made(instance)
    return method(instance, *args, **kwargs)


def _mark_async(durable: Durable[..., Any], fn: Callable[..., Any]) -> None:
    """Have `inspect.iscoroutinefunction` say yes, which `unittest.mock` asks too."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(durable)
    else:
        # 3.11 looks at the flags of the code of whatever has all the attributes of a function.
        function = cast(FunctionType, inspect.unwrap(fn))
        durable.__dict__.update(
            __code__=function.__code__, __defaults__=function.__defaults__, __kwdefaults__=function.__kwdefaults__
        )
