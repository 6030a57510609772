"""All handlers of one workflow class, and the caller's side of a message.

`messages_of` collects what a class has, inherited handlers included, and refuses what would be ambiguous: two
handlers under one name, and what replaces a handler so that senders would not find it any more. `encode_message`
turns what a caller gives, a descriptor or a name, into the name and the arguments that are sent.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any, Final, cast

from outlast.model.errors import InvalidArgument, NotRegistered, PayloadError
from outlast.model.payloads import Arguments, Payload
from outlast.sdk.decorated import DEFAULT_CONVERTER
from outlast.sdk.definition import code_of, effective, where_of
from outlast.sdk.message_checks import MessageKind
from outlast.sdk.messages import AnyMessage, Handler, Message, Update
from outlast.sdk.options import message_definition

KINDS: Final[tuple[MessageKind, ...]] = ("signal", "query", "update")

SHOWN_NAMES: Final = 10
"""A message that lists more names than these is not read."""


class Handlers:
    """The handlers of one workflow class. Never changes."""

    __slots__ = ("_by_name", "_dynamic", "_messages", "workflow")

    def __init__(self, workflow: str, messages: Sequence[AnyMessage]) -> None:
        """Raises InvalidArgument if two of them have one name, with both places."""
        self.workflow = workflow
        """The class's name, for error messages."""
        self._messages = tuple(messages)
        self._by_name: dict[tuple[MessageKind, str], AnyMessage] = {}
        self._dynamic: dict[MessageKind, AnyMessage] = {}
        for message in self._messages:
            self._add(message)

    def _add(self, message: AnyMessage) -> None:
        kind = message.kind
        if message.dynamic:
            other = self._dynamic.setdefault(kind, message)
            if other is not message:
                raise InvalidArgument(
                    f"{self.workflow} has two dynamic {_plural(kind)}, {_described(other)} and {_described(message)}, "
                    "and each is for all names that no other handler has. Keep one."
                )
            return
        for name in (message.name, *message.aliases):
            other = self._by_name.setdefault((kind, name), message)
            if other is not message:
                raise InvalidArgument(
                    f"two {_plural(kind)} of {self.workflow} are called {name!r}: {_described(other)} and "
                    f'{_described(message)}. Rename one: @workflow.{kind}(name="...").'
                )

    def find(self, kind: MessageKind, name: str) -> AnyMessage | None:
        """By name or alias. Does not find the dynamic one."""
        return self._by_name.get((kind, name))

    def dynamic(self, kind: MessageKind) -> AnyMessage | None:
        """The one for all names that no other handler of this kind has."""
        return self._dynamic.get(kind)

    def names(self, kind: MessageKind) -> list[str]:
        """Aliases included, in alphabetical order."""
        return sorted(name for each, name in self._by_name if each == kind)

    def bind(self, instance: object) -> list[Handler]:
        """For the run whose state `instance` is. Raises PayloadError if a type cannot be recorded."""
        return [message.bind(instance) for message in self._messages]

    def prepare(self) -> None:
        """Make the plans. Raises PayloadError naming the parameter whose type cannot be recorded."""
        for message in self._messages:
            _ = message.plan

    def __iter__(self) -> Iterator[AnyMessage]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)

    def unknown(self, kind: MessageKind, name: str) -> str:
        """What is said where there is no such handler: which there are, or what else the name stands for."""
        for other in KINDS:
            if other != kind and (other, name) in self._by_name:
                return (
                    f"{name!r} is {_a(other)} of {self.workflow}, and no {kind}: send it with `{other}(...)`, or "
                    f"define a method with @workflow.{kind}."
                )
        known = self.names(kind)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        if near:
            there = f"Did you mean {' or '.join(map(repr, near))}?"
        elif known:
            more = "" if len(known) <= SHOWN_NAMES else f" and {len(known) - SHOWN_NAMES} more"
            there = f"It has {', '.join(map(repr, known[:SHOWN_NAMES]))}{more}."
        else:
            there = f"It has no {_plural(kind)} at all."
        return (
            f"{self.workflow} has no {kind} called {name!r}. {there} Handlers are methods that are decorated with "
            f'@workflow.{kind}; if it has been renamed, keep the old name: @workflow.{kind}(aliases=["{name}"]).'
        )


def messages_of(cls: type) -> Handlers:
    """The handlers of a class. Raises InvalidArgument where it would be ambiguous which handler is meant."""
    found = effective(cls)
    for base in cls.__mro__:
        for name, value in vars(base).items():
            old = _message(value)
            if old is not None and old is not found[name]:
                _check_replaced(cls, name, old, found[name])
    # Each once, though it may stand under two attributes.
    messages = {id(each): each for each in map(_message, found.values()) if each is not None}
    for message in messages.values():
        if isinstance(message, Update):
            _check_validator_stays(cls, message, found)
    return Handlers(cls.__qualname__.rpartition("<locals>.")[2], list(messages.values()))


def _check_replaced(cls: type, attribute: str, old: AnyMessage, value: object) -> None:
    shown = (
        f"@workflow cannot take the class {cls.__qualname__}: {attribute} replaces {_a(old.kind)}, {_described(old)}"
    )
    new = _message(value)
    if new is None:
        raise InvalidArgument(
            f"{shown}, and {_place(value)} is not decorated. Put @workflow.{old.kind} above it too, or give it another "
            "name."
        )
    if new.kind != old.kind:
        raise InvalidArgument(
            f"{shown}, by {_a(new.kind)}, {_described(new)}: who sends the one would find the other. Give it another "
            "name."
        )
    lost = [] if old.dynamic or new.dynamic else [n for n in (old.name, *old.aliases) if n not in _names(new)]
    if lost:
        raise InvalidArgument(
            f"{shown}, by {_described(new)}, which is not called {' or '.join(map(repr, lost))}: who sends that would "
            f"find nobody. Keep it: @workflow.{new.kind}(aliases={lost})."
        )


def _check_validator_stays(cls: type, update: AnyMessage, found: Mapping[str, object]) -> None:
    validator = update.validator_fn
    if validator is None:
        return
    new = found.get(validator.__name__, validator)
    if new is not validator:
        raise InvalidArgument(
            f"@workflow cannot take the class {cls.__qualname__}: {validator.__name__} ({_place(new)}) replaces the "
            f"validator of {_described(update)}, which keeps the old one, at {where_of(code_of(validator))}. Define "
            f"the update again in this class, with @{update.fn.__name__}.validator."
        )


# --- the caller's side ------------------------------------------------------------------------------------------------


def encode_message(
    target: object, args: Sequence[Any], kwargs: Mapping[str, Any], kind: MessageKind, handlers: Handlers | None
) -> tuple[str, Arguments]:
    """The name and the arguments to send, for a handler of a class (`Approval.decide`) or a name.

    `handlers`: those of the workflow it goes to, or None if that is not known here. Raises NotRegistered if there
    is no such handler, InvalidArgument if it cannot be called so, PayloadError if a value does not fit.
    """
    message = _message(target)
    if message is not None:
        return _encode_described(message, args, kwargs, kind, handlers)
    if isinstance(target, str):
        return target, _encode_named(target, args, kwargs, kind, handlers)
    raise InvalidArgument(_why_no_message(target, kind))


def _encode_described(
    target: AnyMessage, args: Sequence[Any], kwargs: Mapping[str, Any], kind: MessageKind, handlers: Handlers | None
) -> tuple[str, Arguments]:
    if target.kind != kind:
        raise InvalidArgument(
            f"{target.title} is {_a(target.kind)} ({target.where}), and was given to `{kind}(...)`. Use "
            f"`{target.kind}({target.title}, ...)`."
        )
    if target.dynamic:
        raise InvalidArgument(
            f"{target.title} ({target.where}) is for all names that no other handler has. Say which: "
            f'`{kind}("name", ...)`.'
        )
    if handlers is None:
        return target.name, target.plan.encode_arguments(args, kwargs)
    # A class that stands in for the workflow (a base class, an interface) may say the name; the workflow's own handler
    # says how the arguments are written.
    found = handlers.find(kind, target.name)
    if found is None and handlers.dynamic(kind) is None:
        raise NotRegistered(handlers.unknown(kind, target.name))
    return target.name, (found or target).plan.encode_arguments(args, kwargs)


def _encode_named(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kind: MessageKind, handlers: Handlers | None
) -> Arguments:
    message_definition({"name": name}, f"`{kind}(...)`")
    if handlers is None:
        return _encode_by_value(f"{kind} {name!r}", args, kwargs, _HANDLER_NOT_KNOWN)
    found = handlers.find(kind, name)
    if found is not None:
        return found.plan.encode_arguments(args, kwargs)
    dynamic = handlers.dynamic(kind)
    if dynamic is None:
        raise NotRegistered(handlers.unknown(kind, name))
    return _encode_by_value(f"{kind} {name!r}", args, kwargs, f"{dynamic.title} is for any name, and says no types.")


_HANDLER_NOT_KNOWN: Final = (
    "The handler's types are not known here: give the handler itself, such as `Approval.decide`, or get the handle "
    "with its workflow: `client.handle(id, Approval)`."
)


def _encode_by_value(what: str, args: Sequence[Any], kwargs: Mapping[str, Any], hint: str) -> Arguments:
    """Nobody says which types are expected: each value is written as one of its own type."""

    def encode(value: Any, which: int | str) -> Payload:
        root = f"args[{which}]" if isinstance(which, int) else which
        try:
            return DEFAULT_CONVERTER.plan(type(value), f"argument {which!r} of {what}", root=root).encode(value)
        except PayloadError as error:
            raise PayloadError(f"{error} {hint}") from error

    positional = tuple([encode(value, at) for at, value in enumerate(args)])
    return Arguments(positional, {key: encode(value, key) for key, value in kwargs.items()})


def _why_no_message(target: object, kind: MessageKind) -> str:
    expected = f"`{kind}(...)` expects {_a(kind)} of the workflow's class, such as `Approval.decide`, or its name"
    if isinstance(target, MethodType):
        cls = target.__self__ if isinstance(target.__self__, type) else type(target.__self__)
        member = _message(effective(cls).get(target.__name__))
        if member is not None:
            return f"{expected}, not the method of an instance: give `{member.title}`."
    if isinstance(target, FunctionType):
        return (
            f"{expected}. {target.__qualname__} ({where_of(code_of(target))}) is not decorated: put "
            f"@workflow.{kind} above it."
        )
    return f"{expected}, not {target!r}."


def _message(value: object) -> AnyMessage | None:
    return cast(AnyMessage, value) if issubclass(type(value), Message) else None


# --- words ------------------------------------------------------------------------------------------------------------


def _names(message: AnyMessage) -> tuple[str, ...]:
    return message.name, *message.aliases


def _described(message: AnyMessage) -> str:
    also = f", also called {', '.join(map(repr, message.aliases))}" if message.aliases else ""
    return f"{message.title} ({message.where}{also})"


def _place(value: object) -> str:
    inner = cast(Any, value).__func__ if isinstance(value, staticmethod | classmethod) else value
    if isinstance(inner, FunctionType):
        return f"{inner.__qualname__} at {where_of(code_of(inner))}"
    return repr(inner)


def _a(kind: MessageKind) -> str:
    return f"an {kind}" if kind == "update" else f"a {kind}"


def _plural(kind: MessageKind) -> str:
    return "queries" if kind == "query" else f"{kind}s"
