"""Options: what a user may say about retries, timeouts and queues, and the form in which calls carry them.

Users write durations and classes (`Retry`, the TypedDicts); a call carries `CallOptions`, in microseconds and names.
The change from one to the other checks everything, and happens once: at decoration, or in `.options(...)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypedDict, cast

from outlast.model.durations import Duration, to_microseconds
from outlast.model.errors import InvalidArgument
from outlast.model.policies import DEFAULT_RETRY, RetryPolicy
from outlast.sdk.failures import type_path

MAX_NAME_LENGTH = 500
"""Names stand in every event and in index keys; Python's own qualified names are far shorter."""


class ActivityOptions(TypedDict, total=False):
    """What may be said about one call of an activity. None takes a limit away that the decorator has set."""

    timeout: Duration | None
    """For one attempt, from its start to its end. Default: none."""
    schedule_to_close: Duration | None
    """For all attempts together, waiting included. Default: none."""
    retry: Retry
    queue: str | None
    """Where workers look for it. Default: the queue of the run."""
    label: str | None
    """A name for this call, for whoever reads the history."""


class ActivityDefinition(TypedDict, total=False):
    """What may be said about an activity where it is defined."""

    timeout: Duration | None
    schedule_to_close: Duration | None
    retry: Retry
    queue: str | None
    name: str
    """The name in the history. Default: the function's `__qualname__`."""
    aliases: Sequence[str]
    """Names that it had before: histories that hold them still find it."""


class WorkflowDefinition(TypedDict, total=False):
    """What may be said about a workflow where it is defined."""

    queue: str | None
    """Where its runs are started if the start does not say. Default: "default"."""
    name: str
    aliases: Sequence[str]


class MessageDefinition(TypedDict, total=False):
    """What may be said about a handler (of signals, queries, updates) where it is defined."""

    name: str
    """The name by which it is called from outside. Default: the method's."""
    aliases: Sequence[str]
    """Names that it had before: those who still use them reach it."""
    dynamic: bool
    """Whether it is for all names that no other handler has."""


class StartOptions(TypedDict, total=False):
    """What may be said about the start of a run."""

    id: str
    """The workflow id: your own name for the run. Default: a random one."""
    queue: str
    priority: int
    """Runs of a higher priority are taken first. Default: 0."""


@dataclass(frozen=True, slots=True)
class Retry:
    """When an activity that failed is tried again.

    The first delay is `initial_interval`, each further one `backoff` times the last, up to `max_interval`; a random
    share of up to `jitter` of each delay is taken away. `max_attempts` counts the first one too; 0 means no limit.
    After an exception of a class in `non_retryable` (given as classes, or as names "module:QualName") the activity
    fails at once.
    """

    initial_interval: Duration = 1
    backoff: float = 2
    max_interval: Duration = 100
    max_attempts: int = 0
    jitter: float = 0.2
    non_retryable: Sequence[type[BaseException] | str] = ()

    def __post_init__(self) -> None:
        initial_us = _microseconds("initial_interval", self.initial_interval)
        max_us = _microseconds("max_interval", self.max_interval)
        if max_us < initial_us:
            raise InvalidArgument(
                f"max_interval ({self.max_interval!r}) is shorter than initial_interval ({self.initial_interval!r}), "
                "so it would cut off the very first delay. Pass a max_interval that is at least as long."
            )
        if not _is_number(self.backoff) or not 1 <= self.backoff < math.inf:
            raise InvalidArgument(f"backoff must be a number of 1 or more, not {self.backoff!r}")
        if not _is_count(self.max_attempts):
            raise InvalidArgument(
                f"max_attempts must be 0 (no limit) or a whole number above, not {self.max_attempts!r}"
            )
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise InvalidArgument(f"jitter is a share of the delay, from 0 to 1, not {self.jitter!r}")
        object.__setattr__(self, "non_retryable", _error_names(self.non_retryable))

    @classmethod
    def never(cls) -> Retry:
        """One attempt, whatever happens to it."""
        return cls(max_attempts=1)

    def to_policy(self) -> RetryPolicy:
        """The form in which it stands in the history."""
        return RetryPolicy(
            initial_interval_us=to_microseconds(self.initial_interval),
            backoff=float(self.backoff),
            max_interval_us=to_microseconds(self.max_interval),
            max_attempts=self.max_attempts,
            jitter=float(self.jitter),
            non_retryable=cast("tuple[str, ...]", self.non_retryable),
        )


def _error_names(given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidArgument(
            f"non_retryable must be a list of exception classes or names, not {given!r}. Put it in brackets: [...]"
        )
    return tuple(_error_name(item) for item in cast("Iterable[object]", given))


def _error_name(item: object) -> str:
    match item:
        case type() if issubclass(item, BaseException):
            return type_path(item)
        case str() if item and not any(character.isspace() for character in item):
            return item
        case _:
            raise InvalidArgument(
                f"non_retryable holds {item!r}; expected exception classes, or their names as "
                '"package.module:ClassName" (built-in ones bare: "ValueError")'
            )


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The options of a call, resolved: nothing of it is worked out again when the call is made."""

    queue: str | None = None
    label: str | None = None
    retry: RetryPolicy = DEFAULT_RETRY
    start_to_close_us: int | None = None
    schedule_to_close_us: int | None = None

    def merged(self, given: Mapping[str, object], *, where: str) -> CallOptions:
        """These, with what is `given` (see ActivityOptions) in their place. `where` names the call for errors."""
        if not given:
            return self
        _refuse_unknown(given, ActivityOptions, where)
        changes: dict[str, Any] = {RESOLVED[name]: _resolve(name, value, where) for name, value in given.items()}
        return replace(self, **changes)


DEFAULT_CALL_OPTIONS: Final = CallOptions()

RESOLVED: Final = {
    "timeout": "start_to_close_us",
    "schedule_to_close": "schedule_to_close_us",
    "retry": "retry",
    "queue": "queue",
    "label": "label",
}
"""Which field of CallOptions an option sets."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What the decorator was told."""

    name: str | None = None
    aliases: tuple[str, ...] = ()
    options: CallOptions = DEFAULT_CALL_OPTIONS
    dynamic: bool = False
    """Of handlers only."""


def activity_definition(given: Mapping[str, object]) -> Definition:
    return _definition(given, ActivityDefinition, "@activity")


def workflow_definition(given: Mapping[str, object]) -> Definition:
    return _definition(given, WorkflowDefinition, "@workflow")


def message_definition(given: Mapping[str, object], where: str) -> Definition:
    definition = _definition({key: value for key, value in given.items() if key != "dynamic"}, MessageDefinition, where)
    dynamic = given.get("dynamic", False)
    if not isinstance(dynamic, bool):
        raise InvalidArgument(f"{where}: dynamic must be True or False, not {dynamic!r}")
    if dynamic and (definition.name is not None or definition.aliases):
        raise InvalidArgument(
            f"{where}: a dynamic handler is for all names that no other handler has, so it has none itself. Leave "
            "`name` and `aliases` out, or `dynamic`."
        )
    return replace(definition, dynamic=dynamic)


def _definition(given: Mapping[str, object], shape: type[Any], where: str) -> Definition:
    if not given:
        return Definition()
    _refuse_unknown(given, shape, where)
    options = {name: value for name, value in given.items() if name in RESOLVED}
    aliases: Any = given.get("aliases", ())
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        raise InvalidArgument(f"{where}: aliases must be a list of names, not {aliases!r}. Put it in brackets: [...]")
    names = tuple(_text("aliases", alias, where) for alias in cast("Iterable[object]", aliases))
    name = _text("name", given["name"], where) if "name" in given else None
    return Definition(name, names, DEFAULT_CALL_OPTIONS.merged(options, where=where))


MAX_PRIORITY = 1_000_000_000
"""More than anybody needs, and less than any database holds as a whole number."""


def check_start_options(given: Mapping[str, object], where: str = "the start of a workflow") -> StartOptions:
    """The same options, checked. Raises InvalidArgument naming the option."""
    _refuse_unknown(given, StartOptions, where)
    for name in ("id", "queue"):
        if name in given:
            _text(name, given[name], where)
    priority = given.get("priority", 0)
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise InvalidArgument(f"{where}: priority must be a whole number, not {priority!r}")
    if abs(priority) > MAX_PRIORITY:
        raise InvalidArgument(f"{where}: priority must be between -{MAX_PRIORITY} and {MAX_PRIORITY}, not {priority}")
    return cast(StartOptions, dict(given))


def _refuse_unknown(given: Mapping[str, object], shape: type[Any], where: str) -> None:
    known: Mapping[str, object] = shape.__annotations__
    for name in given:
        if name not in known:
            raise InvalidArgument(
                f"{where}: unknown option {name!r}; known are {', '.join(known)}.{_hint(name, shape)}"
            )


def _hint(name: str, shape: type[Any]) -> str:
    if shape is ActivityOptions and name in ("name", "aliases"):
        return f" `{name}` belongs to the decorator; a call may have a `label`, for whoever reads the history."
    if shape is ActivityDefinition and name == "label":
        return " A `label` belongs to a call: `.options(label=...)`; here it is `name` that the history shows."
    return (
        " Arguments of the function itself go by position here; "
        f"to pass them by keyword too, give the options first: `.options(...)(..., {name}=...)`."
        if shape is ActivityOptions
        else " Arguments of the workflow go by position here; "
        f"to pass them by keyword too, give the options first: `client.options(...).start(..., {name}=...)`."
        if shape is StartOptions
        else ""
    )


def _resolve(name: str, value: object, where: str) -> object:
    match name, value:
        case (("timeout" | "schedule_to_close" | "queue" | "label"), None):
            return None
        case (("timeout" | "schedule_to_close"), _):
            limit_us = _microseconds(f"{where}: {name}", value)
            if limit_us == 0:
                raise InvalidArgument(
                    f"{where}: {name} must be longer than nothing, not {value!r}; None means no limit"
                )
            return limit_us
        case "retry", Retry():
            return value.to_policy()
        case "retry", _:
            raise InvalidArgument(
                f"{where}: retry must be a Retry, such as Retry(max_attempts=5) or Retry.never(), not {value!r}"
            )
        case _:
            return _text(name, value, where)


def _text(name: str, value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_NAME_LENGTH:
        shown = repr(value) if len(repr(value)) <= 100 else f"{value!r:.100}..."
        raise InvalidArgument(
            f"{where}: {name} must be a string of 1 to {MAX_NAME_LENGTH} characters that are not all white space, "
            f"not {shown}"
        )
    return value


def _microseconds(name: str, value: object) -> int:
    try:
        return to_microseconds(cast(Duration, value))
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
