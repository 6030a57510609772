"""Exceptions as data, and back.

`failure_from` takes an exception apart where it was raised; `exception_from` builds it again where a workflow waits
for it, so that `except CardDeclined` works across processes. What always holds:

- Whatever the exception is (its `__str__` raises, its attributes are sockets, its causes run in a circle), a failure
  comes out, with bounded size, that can be written as JSON. What cannot be kept is named in a note.
- A history never makes code run that is not loaded already: only classes of modules that are in `sys.modules` are
  rebuilt, without their constructors, and only ordinary exceptions. A failure cannot stop the process, cancel a task
  or end a generator by being rebuilt. Anything else becomes an ActivityError, which says what it was.
- `Failure.non_retryable` is decided where the exception is at hand, since only there the classes it derives from
  are known. The engine looks at the flag and never at types.

An error that wants a say in its own retries derives from ApplicationError. Attributes of the same names on other
exceptions mean nothing: libraries use `retry_after` for strings, dates and milliseconds.
"""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import msgspec
from msgspec import Raw

from outlast.model.durations import SECOND_US, Duration, to_microseconds
from outlast.model.errors import (
    ActivityError,
    ActivityLost,
    ActivityTimeout,
    MessageFailed,
    PayloadError,
    RemoteError,
    WorkflowFailed,
)
from outlast.model.failures import Failure, FailureKind
from outlast.model.payloads import Payload
from outlast.model.policies import RetryPolicy
from outlast.sdk.roundtrip import too_deep
from outlast.sdk.tracebacks import MAX_TRACEBACK, shorten, traceback_text, writable

MAX_FAILURES: Final = 24
"""Failures in one record: causes, and members of groups. With the limits below one record stays well under 2 MiB."""
MAX_MESSAGE: Final = 4_000
"""Characters. A longer one is somebody's response body; the beginning tells what it was."""
MAX_DETAILS: Final = 16_000
"""Bytes of JSON for the arguments, and again for the attributes."""

_MAX_NAMED: Final = 10
"""Names of what was left out, in the note that says so."""

_GROUP: Final = "__exceptions__"
"""Attribute of the record of an exception group: the failures of its members."""
_NOTES: Final = "__notes__"
_WITH_FAILURE: Final = (ActivityError, MessageFailed, WorkflowFailed)
_REMOTE: Final = "__outlast_remote__"
"""Attribute of a rebuilt exception: the failure it was built from."""
_NOT_RECORDED: Final = frozenset((_NOTES, _REMOTE, _GROUP, "failure"))
"""Attributes that are recorded otherwise, or not at all. (`failure` is that of our own errors: it is their cause.)"""


class ApplicationError(Exception):
    """A failure that says itself how it wants to be treated. Raise it, or derive your own errors from it.

    `non_retryable`: no further attempt is made. `retry_after`: how long to wait before the next attempt, in place of
    the backoff of the retry policy. `type`: a name that a policy's `non_retryable` may list. `details` should be plain
    JSON; they come back as they were. A subclass may set the three options as class attributes.
    """

    non_retryable: bool = False
    retry_after: Duration | None = None
    type: str | None = None

    def __init__(
        self,
        message: str = "",
        *details: object,
        non_retryable: bool | None = None,
        retry_after: Duration | None = None,
        type: str | None = None,
    ) -> None:
        super().__init__(message, *details)
        # Only what was given is set: it must not hide the class attributes of a subclass.
        if non_retryable is not None:
            self.non_retryable = non_retryable
        if retry_after is not None:
            self.retry_after = to_microseconds(retry_after) / SECOND_US
        if type is not None:
            self.type = type

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def details(self) -> tuple[Any, ...]:
        return self.args[1:]

    def __str__(self) -> str:
        return self.message


# --- taking apart -------------------------------------------------------------------------------------------------


def failure_from(error: BaseException, policy: RetryPolicy | None = None) -> Failure:
    """The exception as data. Never raises.

    With the retry policy of the attempt, an exception whose class, or any class it derives from, is in the policy's
    `non_retryable` list is marked as such.
    """
    return _Taker().take(error, policy)


class _Taker:
    """Takes one exception apart, with its causes and the members of groups, each of them once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def take(self, error: BaseException, policy: RetryPolicy | None = None) -> Failure:
        self._seen.add(id(error))
        if type(error) in (ActivityError, ActivityTimeout, ActivityLost):
            # It stands for another process's failure, and the workflow lets it pass: it stays what it was.
            passed_on: Failure | None = getattr(error, "failure", None)
            if passed_on is not None:
                flagged = _non_retryable(error, policy)
                return msgspec.structs.replace(passed_on, non_retryable=flagged, retry_after_us=None)
        parts = _Parts(error)
        if (group := _as_group(error)) is not None:
            parts.add_members(group, self._members(group))
        path = writable(type_path(type(error)))
        message = _message(error)
        return Failure(
            type=path[:MAX_MESSAGE],
            message=message,
            kind=FailureKind.CANCELLED if isinstance(error, asyncio.CancelledError) else FailureKind.APPLICATION,
            traceback=_traceback(error, f"{path}: {message}" if message else path),
            args=parts.args,
            attributes=parts.attributes(),
            cause=self._cause(error),
            non_retryable=_non_retryable(error, policy),
            retry_after_us=_retry_after_us(error),
        )

    def _cause(self, error: BaseException) -> Failure | None:
        cause = error.__cause__
        if cause is None and not error.__suppress_context__:
            cause = error.__context__
        if cause is not None:
            return None if id(cause) in self._seen or len(self._seen) >= MAX_FAILURES else self.take(cause)
        return getattr(error, "failure", None) if isinstance(error, _WITH_FAILURE) else None

    def _members(self, group: BaseExceptionGroup[BaseException]) -> list[Failure]:
        members: list[Failure] = []
        for member in group.exceptions:
            if id(member) not in self._seen and len(self._seen) < MAX_FAILURES:
                # A comprehension would hide that each step changes what the condition sees.
                members.append(self.take(member))  # noqa: PERF401
        return members


class _Parts:
    """What an exception is made of, as far as it is plain JSON. `dropped` names the rest."""

    def __init__(self, error: BaseException) -> None:
        self.dropped: list[str] = []
        self.args = self._take_args(error)
        self._attributes = self._take_attributes(error)
        self._notes = _own_notes(error)

    def add_members(self, group: BaseExceptionGroup[BaseException], members: list[Failure]) -> None:
        self.dropped = [each for each in self.dropped if each != "args"]
        if len(members) < len(group.exceptions):
            self.dropped.append(f"{len(group.exceptions) - len(members)} of {len(group.exceptions)} sub-exceptions")
        self.args = _as_payload(_json([group.message]))
        self._attributes[_GROUP] = Raw(msgspec.json.encode(members))

    def attributes(self) -> Payload | None:
        notes = list(self._notes)
        if self.dropped:
            named = self.dropped[:_MAX_NAMED]
            more = len(self.dropped) - len(named)
            named += [f"{more} more"] if more else []
            notes.append(f"(not recorded, since not plain JSON or too large: {', '.join(named)})")
        found = {**self._attributes, _NOTES: Raw(msgspec.json.encode(notes))} if notes else self._attributes
        return Payload.from_json(msgspec.json.encode(found)) if found else None

    def _take_args(self, error: BaseException) -> Payload | None:
        args: tuple[object, ...] = error.args
        if isinstance(error, OSError) and type(error).__reduce__ is OSError.__reduce__:
            reduced: Any = error.__reduce__()
            args = reduced[1]  # with the file names, which `args` lacks
        text = _json(list(args))
        if text is None:
            self.dropped.append("args")
        return _as_payload(text)

    def _take_attributes(self, error: BaseException) -> dict[str, Raw]:
        kept: dict[str, Raw] = {}
        room = MAX_DETAILS
        for name, value in _attributes(error).items():
            text = _json(value)
            if text is None or len(text) > room:
                self.dropped.append(writable(name)[:100])
            else:
                room -= len(text) + len(name)
                kept[writable(name)] = Raw(text)
        return kept


def type_path(cls: type) -> str:
    """How a class is named in histories and in `RetryPolicy.non_retryable`."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}:{cls.__qualname__}"


def _json(value: object) -> bytes | None:
    """The value as JSON, if it comes back equal and is not too large."""
    try:
        text = msgspec.json.encode(value)
        if len(text) > MAX_DETAILS or too_deep(text) or (msgspec.json.decode(text) == value) is not True:
            return None
    except Exception:  # also from a user's __eq__
        return None
    return text


def _as_payload(text: bytes | None) -> Payload | None:
    return None if text is None else Payload.from_json(text)


def _attributes(error: BaseException) -> dict[str, object]:
    try:
        return {name: value for name, value in vars(error).items() if name not in _NOT_RECORDED}
    except Exception:  # a class with a __dict__ of its own making
        return {}


def _own_notes(error: BaseException) -> list[str]:
    """The user's notes, without the one that a rebuilt exception was given."""
    notes: object = getattr(error, _NOTES, None)
    if not isinstance(notes, list):
        return []
    remote = _remote(error)
    given = None if remote is None else _remote_note(remote)
    texts = [note for note in cast("list[object]", notes) if isinstance(note, str) and note != given]
    return [shorten(text, MAX_MESSAGE) for text in texts[:_MAX_NAMED]]


def _remote(error: BaseException) -> Failure | None:
    remote: object = getattr(error, _REMOTE, None)
    return remote if isinstance(remote, Failure) else None


def _message(error: BaseException) -> str:
    try:
        group = _as_group(error)
        # Without "(2 sub-exceptions)", which str() of a group adds each time.
        text = str(error) if group is None else str(group.message)
    except Exception as trouble:
        return f"<no message: {type(error).__qualname__}.__str__ raised {type(trouble).__name__}>"
    if len(text) > MAX_MESSAGE:
        text = f"{text[:MAX_MESSAGE]}... ({len(text) - MAX_MESSAGE:,} characters left out)"
    return writable(text)


def _as_group(error: BaseException) -> BaseExceptionGroup[BaseException] | None:
    return cast("BaseExceptionGroup[BaseException]", error) if isinstance(error, BaseExceptionGroup) else None


def _traceback(error: BaseException, last_line: str) -> str:
    text = traceback_text(error, last_line)
    remote = _remote(error)
    if remote is None or not remote.traceback:
        return text
    if error.__traceback__ is None:
        return remote.traceback
    return shorten(f"{remote.traceback}\n\nand then, where it was waited for:\n\n{text}", MAX_TRACEBACK)


# --- what the error wants -----------------------------------------------------------------------------------------


def _non_retryable(error: BaseException, policy: RetryPolicy | None) -> bool:
    # What cannot be recorded today cannot be recorded at the next attempt either, whose effects would be real.
    if isinstance(error, PayloadError) or (isinstance(error, ApplicationError) and error.non_retryable):
        return True
    return policy is not None and bool(policy.non_retryable) and _is_listed(error, policy.non_retryable)


def _is_listed(error: BaseException, listed: tuple[str, ...]) -> bool:
    if isinstance(error, ApplicationError) and error.type in listed:
        return True
    # A bare name, and a class of the main program, match by name alone: what one process runs as __main__ another
    # imports under its real name.
    bare = {name.removeprefix("__main__:") for name in listed}
    from_main = {name.partition(":")[2] for name in listed}
    for cls in type(error).__mro__:
        if type_path(cls) in listed or cls.__qualname__ in bare:
            return True
        if cls.__module__ == "__main__" and cls.__qualname__ in from_main:
            return True
    return False


def _retry_after_us(error: BaseException) -> int | None:
    if not isinstance(error, ApplicationError) or error.retry_after is None:
        return None
    try:
        return to_microseconds(error.retry_after)
    except Exception:  # a class attribute that is no duration: the policy's own backoff applies
        return None


# --- building again -----------------------------------------------------------------------------------------------

_StandIn: TypeAlias = Callable[[Failure, str], Exception]
"""Makes the exception for a failure whose own class cannot be had."""


def exception_from(failure: Failure) -> Exception:
    """The exception that a workflow gets for the failure of an activity.

    It is of the class that was raised, where that is loaded here, with its arguments, attributes and cause; else an
    ActivityError (ActivityTimeout, ActivityLost) whose `failure` has all there is. A note shows the traceback of where
    it was raised.
    """
    return _build(failure, lambda failure, message: ActivityError(message, failure), MAX_FAILURES)


def message_failed(failure: Failure) -> Exception:
    """What a client gets for a query or update that failed: as for an activity, but a MessageFailed where the class
    of the exception cannot be had."""
    return _build(failure, lambda failure, message: MessageFailed(message, failure), MAX_FAILURES)


def workflow_failed(failure: Failure, workflow_id: str) -> WorkflowFailed:
    """What waiting for the run raises; its cause is what the workflow raised, rebuilt where that can be done."""
    error = WorkflowFailed(f"workflow {workflow_id!r} failed: {_headline(failure)}", failure)
    error.__cause__ = _build(failure, lambda _, message: RemoteError(message), MAX_FAILURES)
    return error


def _headline(failure: Failure) -> str:
    name = failure.type.partition(":")[2] or failure.type
    return f"{name}: {failure.message}" if failure.message else name


def _build(failure: Failure, stand_in: _StandIn, depth: int) -> Exception:
    match failure.kind:
        case FailureKind.TIMEOUT:
            error: Exception = ActivityTimeout(failure.message, failure)
        case FailureKind.LOST:
            error = ActivityLost(failure.message, failure)
        case FailureKind.CANCELLED:
            # Not as CancelledError: whoever waits for it has not been cancelled.
            error = stand_in(failure, _headline(failure))
        case FailureKind.APPLICATION:
            error = _rebuild(failure, stand_in, depth) or _substitute(failure, stand_in)
    vars(error)[_REMOTE] = failure
    _add_note(error, _remote_note(failure))
    if failure.cause is not None and depth > 0:
        # By the descriptor: a frozen dataclass that is an exception refuses to be assigned to.
        cast(Any, BaseException.__cause__).__set__(error, _build(failure.cause, stand_in, depth - 1))
    return error


def _substitute(failure: Failure, stand_in: _StandIn) -> Exception:
    error = stand_in(failure, _headline(failure))
    module = failure.type.partition(":")[0] if ":" in failure.type else None
    if module is not None and module not in sys.modules:
        error.add_note(
            f"({failure.type} is not loaded in this process. To catch it by its class, import {module} here.)"
        )
    return error


def _remote_note(failure: Failure) -> str:
    return f"\nTraceback where it was raised:\n\n{failure.traceback}" if failure.traceback else ""


def _add_note(error: BaseException, note: str) -> None:
    if note:
        own = vars(error)
        own[_NOTES] = [*own.get(_NOTES, ()), note]


def _rebuild(failure: Failure, stand_in: _StandIn, depth: int) -> Exception | None:
    cls = _loaded_class(failure.type)
    if cls is None or depth <= 0:
        return None
    try:
        attributes = _attributes_of(failure)
        members = attributes.pop(_GROUP, Raw(b"[]"))
        if issubclass(cls, ExceptionGroup):
            error: Exception = _rebuild_group(cast(Any, cls), failure, members, stand_in, depth)
        else:
            error = _bare(cls, _args(failure))
        vars(error).update({name: msgspec.json.decode(text) for name, text in attributes.items()})
        if isinstance(error, _WITH_FAILURE):
            error.failure = failure.cause
        if failure.args is None and _message(error) != failure.message:
            _add_note(error, failure.message)
    except (
        Exception
    ):  # a layout of C, a foreign metaclass, a history of another making: the substitute says what it was
        return None
    return error


def _loaded_class(path: str) -> type[Exception] | None:
    """The class by that name, without importing anything, and only if raising it is an ordinary event."""
    module_name, _, qualname = path.rpartition(":")
    found: object = sys.modules.get(module_name) if module_name else builtins
    for name in qualname.split("."):
        # vars(), since getattr() may run a module's own __getattr__, which may import.
        found = getattr(found, "__dict__", {}).get(name)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return None
    # These two mean "finished" to generators, coroutines and futures, which they would break.
    return None if issubclass(found, (StopIteration, StopAsyncIteration)) else found


def _args(failure: Failure) -> list[Any]:
    if failure.args is None:
        return [failure.message] if failure.message else []
    return msgspec.json.decode(failure.args.to_bytes(), type=list[Any])


def _attributes_of(failure: Failure) -> dict[str, Raw]:
    return {} if failure.attributes is None else msgspec.json.decode(failure.attributes.to_bytes(), type=dict[str, Raw])


def _bare(cls: type[Exception], args: list[Any]) -> Exception:
    """An instance as its built-in base makes it. The class's own constructor is not called: it may want other
    arguments than `args`, and may do things."""
    base: Any = next(each for each in cls.__mro__ if each.__module__ == "builtins")
    error: Exception = base.__new__(cls, *args)
    try:
        base.__init__(error, *args)  # sets what C keeps: errno, file names, encodings
    except TypeError:
        BaseException.__init__(error, *args)
    return error


def _rebuild_group(
    cls: type[ExceptionGroup[Exception]], failure: Failure, members: Raw, stand_in: _StandIn, depth: int
) -> ExceptionGroup[Exception]:
    recorded = msgspec.json.decode(members, type=list[Failure])
    inner = [_build(member, stand_in, depth - 1) for member in recorded]
    [message] = _args(failure)
    group: ExceptionGroup[Exception] = ExceptionGroup.__new__(cls, message, inner)
    return group
