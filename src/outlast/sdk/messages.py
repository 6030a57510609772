"""Handlers: what a run can be told (signals), asked (queries) and asked to do (updates) while it runs.

A decorated method of a workflow class becomes a descriptor. On an instance it is the plain bound method, which the
workflow's own code may call like any other. On the class it is the descriptor, which knows the method's parameters:
`handle.signal(Approval.decide, "yes")` is checked by type checkers, and its arguments are written by the handler's
own plan. A function workflow has no class, and says its handlers when it runs (`workflow.set_signal_handler`).

Either way a run comes to know its handlers as `Handler`s: functions that are bound to the run's own state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeAlias, TypeVar, cast, overload

from outlast.model.errors import PayloadError
from outlast.model.payloads import Arguments, Payload
from outlast.sdk.converter import CallPlan, Converter
from outlast.sdk.decorated import DEFAULT_CONVERTER, Decorated
from outlast.sdk.definition import code_of, where_of
from outlast.sdk.message_checks import (
    MessageKind,
    check_dynamic,
    check_method,
    check_set,
    check_set_validator,
    check_validator,
)
from outlast.sdk.options import Definition, message_definition
from outlast.sdk.scope import Scope

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
S_co = TypeVar("S_co", covariant=True)
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")


class MessageArguments:
    """The arguments that came for a dynamic handler, which has to know itself what types they have."""

    __slots__ = ("_name", "_recorded")

    def __init__(self, name: str, recorded: Arguments) -> None:
        self._name = name
        self._recorded = recorded

    def __len__(self) -> int:
        """How many came, by position and by name."""
        return len(self._recorded.args) + len(self._recorded.kwargs)

    @overload
    def get(self, which: int | str, type_: type[T], /) -> T: ...
    @overload
    def get(self, which: int | str, type_: object = ..., /) -> Any: ...
    def get(self, which: int | str, type_: Any = Any, /) -> Any:
        """One argument, by its position (from 0) or its name, read as the type; without one, as JSON gives it.

        Raises PayloadError if there is none, or if it does not fit the type.
        """
        args, kwargs = self._recorded.args, self._recorded.kwargs
        by_position = dict(enumerate(args))
        payload = by_position.get(which) if isinstance(which, int) else kwargs.get(which)
        if payload is None:
            named = f" and {', '.join(map(repr, kwargs))} by name" if kwargs else ""
            raise PayloadError(
                f"there is no argument {which!r} of {self._name!r}: {len(args)} came by position{named}. `len(args)` "
                "tells how many there are."
            )
        return self._read(payload, type_, which)

    @overload
    def decode(self, one: type[T1], /) -> tuple[T1]: ...
    @overload
    def decode(self, one: type[T1], two: type[T2], /) -> tuple[T1, T2]: ...
    @overload
    def decode(self, one: type[T1], two: type[T2], three: type[T3], /) -> tuple[T1, T2, T3]: ...
    @overload
    def decode(self, /, *types: object) -> tuple[Any, ...]: ...
    def decode(self, /, *types: Any) -> tuple[Any, ...]:
        """All arguments, by position, each read as its type: `amount, reason = args.decode(int, str)`.

        Raises PayloadError if there are more or fewer, if some came by name, or if one does not fit its type.
        """
        args, kwargs = self._recorded.args, self._recorded.kwargs
        if len(args) != len(types) or kwargs:
            named = f" and by name {', '.join(map(repr, kwargs))}" if kwargs else ""
            raise PayloadError(
                f"{self._name!r} came with {len(args)} arguments by position{named}, and {len(types)} types were given "
                "to decode(). Read them one by one with get()."
            )
        return tuple(
            self._read(payload, type_, at) for at, (payload, type_) in enumerate(zip(args, types, strict=True))
        )

    def raw(self) -> tuple[tuple[bytes, ...], dict[str, bytes]]:
        """As they are recorded, JSON text unless a codec is in use: by position, and by name."""
        args, kwargs = self._recorded.args, self._recorded.kwargs
        return tuple(each.to_bytes() for each in args), {key: each.to_bytes() for key, each in kwargs.items()}

    def _read(self, payload: Payload, type_: Any, which: int | str) -> Any:
        where = f"argument {which!r} of {self._name!r}"
        return DEFAULT_CONVERTER.plan(type_, where, root=f"args[{which!r}]").decode(payload)

    def __repr__(self) -> str:
        args, kwargs = self.raw()
        shown = [text.decode(errors="replace") for text in args]
        shown += [f"{key}={text.decode(errors='replace')}" for key, text in kwargs.items()]
        return f"<MessageArguments {self._name}({', '.join(shown)})>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One handler of one run."""

    kind: MessageKind
    name: str
    aliases: tuple[str, ...] = ()
    fn: Callable[..., Any]
    """Bound: takes the message's arguments and nothing else."""
    is_async: bool
    plan: CallPlan
    validator: Callable[..., object] | None = None
    """Of an update: called with the same arguments before it is accepted, and raises to refuse it."""
    dynamic: bool = False
    """For all names that no other handler has. Its own name says only where it is defined."""
    where: str

    def decode(self, name: str, recorded: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """With what `fn`, and the validator, are called for a message of this name. Raises PayloadError."""
        if self.dynamic:
            return (name, MessageArguments(name, recorded)), {}
        return self.plan.decode_arguments(recorded)


@dataclass(frozen=True, slots=True)
class MessageCall(Generic[R_co]):
    """A message with its arguments: `Approval.decide.call("yes")`, or by name, `MessageCall("decide", ("yes",))`."""

    message: AnyMessage | str
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict[str, object])


class Message(Decorated, Generic[S_co, P, R_co]):
    """A handler in a workflow class. On an instance it is the method; on the class it stands for the message."""

    kind: MessageKind

    def __init__(self, fn: Callable[Concatenate[Any, P], R_co], definition: Definition, scope: Scope) -> None:
        super().__init__(fn, scope, name=definition.name or fn.__name__, aliases=definition.aliases)
        self.dynamic = definition.dynamic
        """Whether it is for all names that no other handler has."""
        self.validator_fn: Callable[..., object] | None = None

    @property
    def __outlast_kind__(self) -> MessageKind:
        return self.kind

    @overload
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self: Message[S, P, R], obj: S, owner: type | None = None) -> Callable[P, R]: ...
    def __get__(self, obj: object, owner: type | None = None) -> Any:
        return self if obj is None else MethodType(self.fn, obj)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> MessageCall[R_co]:
        """This message with its arguments, for `client.signal_with_start(..., signal=Approval.decide.call(1))`."""
        return MessageCall(self, args, kwargs)

    @property
    def title(self) -> str:
        """Class and method, for error messages."""
        return self.fn.__qualname__.rpartition("<locals>.")[2]

    def plan_with(self, converter: Converter) -> CallPlan:
        return CallPlan.of(
            self.fn,
            converter,
            name=self.title,
            skip_self=True,
            localns=self.localns,
            takes=not self.dynamic,
            returns=self.kind != "signal",
        )

    def bind(self, instance: object) -> Handler:
        """This handler for the run whose state `instance` is."""
        validator = self.validator_fn
        return Handler(
            kind=self.kind,
            name=self.name,
            aliases=self.aliases,
            fn=MethodType(self.fn, instance),
            is_async=self.is_async,
            plan=self.plan,
            validator=None if validator is None else MethodType(validator, instance),
            dynamic=self.dynamic,
            where=self.where,
        )

    def __reduce__(self) -> str:
        return self.fn.__qualname__  # by name, as functions are

    def __repr__(self) -> str:
        return f"<{self.kind} {self.title} ({self.where})>"


class Signal(Message[S_co, P, R_co]):
    """What a run is told: nobody waits for the handler, and what it returns is not kept."""

    kind = "signal"


class Query(Message[S_co, P, R_co]):
    """What a run is asked: the handler looks, changes nothing, and answers at once."""

    kind = "query"


class Update(Message[S_co, P, R_co]):
    """What a run is asked to do: the handler may wait, and whoever asked gets its result."""

    kind = "update"

    def validator(self: Update[S, P, R], fn: Callable[Concatenate[S, P], None], /) -> Callable[Concatenate[S, P], None]:
        """Mark the method that is called with the same arguments before the update is accepted: it raises to refuse.

        A refused update leaves no trace in the history. Raises InvalidArgument if its parameters are others.
        """
        check_validator(fn, self)
        self.validator_fn = fn
        return fn


AnyMessage: TypeAlias = Message[Any, ..., Any]

DESCRIPTORS: Mapping[MessageKind, Callable[..., AnyMessage]] = {
    "signal": Signal,
    "query": Query,
    "update": Update,
}


def make_message(fn: object, kind: MessageKind, definition: Definition) -> AnyMessage:
    """What the decorators do. Raises InvalidArgument if `fn` cannot be a handler, with what to do instead."""
    function = check_method(fn, kind)
    if definition.dynamic:
        check_dynamic(function, f"@workflow.{kind}(dynamic=True)", skip_self=True)
    made: AnyMessage = DESCRIPTORS[kind](function, definition, Scope.of(function))
    return made


def function_handler(kind: MessageKind, name: object, fn: object, validator: object = None) -> Handler:
    """What `workflow.set_signal_handler` and the others set. Raises InvalidArgument, PayloadError."""
    verb = f"workflow.set_{kind}_handler()"
    definition = message_definition({"dynamic": True} if name is None else {"name": name}, verb)
    function = check_set(fn, kind, verb)
    bound = cast("Callable[..., Any]", fn)
    if definition.dynamic:
        check_dynamic(bound, verb, skip_self=False)
    if validator is not None:
        check_set_validator(validator, bound, verb)
    plan = CallPlan.of(
        function,
        DEFAULT_CONVERTER,
        name=definition.name or function.__name__,
        skip_self=isinstance(fn, MethodType),
        localns=Scope.of(function).names(),
        takes=not definition.dynamic,
        returns=kind != "signal",
        warns=function.__name__ != "<lambda>",
    )
    return Handler(
        kind=kind,
        name=definition.name or function.__name__,
        fn=bound,
        is_async=inspect.iscoroutinefunction(fn),
        plan=plan,
        validator=cast("Callable[..., object] | None", validator),
        dynamic=definition.dynamic,
        where=where_of(code_of(function)),
    )
