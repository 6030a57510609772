"""A failure as data: what went wrong, carried through the history and across languages."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from outlast.model.payloads import Payload


class FailureKind(StrEnum):
    """Who says that it failed."""

    APPLICATION = "application"
    """The user's own code raised."""
    TIMEOUT = "timeout"
    """The time allowed ran out."""
    LOST = "lost"
    """The process that ran the last attempt is gone, and no further attempt is allowed."""
    CANCELLED = "cancelled"
    """It stopped because it was asked to."""


class Failure(Struct, frozen=True, omit_defaults=True, gc=False):
    type: str
    """Where the exception class is to be found: "module:Qualified.Name"; a bare name for built-in classes and
    for failures that no exception class stands for."""
    message: str
    kind: FailureKind = FailureKind.APPLICATION
    traceback: str = ""
    args: Payload | None = None
    """The exception's `args`, as a JSON array, if they can be written as JSON."""
    attributes: Payload | None = None
    """The exception's `__dict__`, as a JSON object, if it can be written as JSON."""
    cause: Failure | None = None
    """The failure behind this one: `__cause__`, or `__context__` where that is not suppressed."""
    non_retryable: bool = False
    retry_after_us: int | None = None
    """The error itself says how long to wait before the next attempt."""
