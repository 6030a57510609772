"""Commands: what a program asks for in answer to an input. The engine checks them and turns them into events."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from outlast.model.failures import Failure
from outlast.model.ids import ActivityId, MessageId, TimerId, WaitId
from outlast.model.payloads import NULL, Arguments, Payload
from outlast.model.policies import DEFAULT_RETRY, RetryPolicy


class _Command(Struct, frozen=True, kw_only=True, gc=False):
    source: str | None = None
    """File and line in the user's code that asked for it. Filled in on replay only, for error messages."""


class ScheduleActivity(_Command, frozen=True, kw_only=True):
    activity_id: ActivityId
    activity: str
    arguments: Arguments
    aliases: tuple[str, ...] = ()
    """Names that the activity had before. Not recorded: for histories in which it has one of them."""
    queue: str | None = None
    label: str | None = None
    retry: RetryPolicy = DEFAULT_RETRY
    start_to_close_us: int | None = None
    schedule_to_close_us: int | None = None


class CancelActivity(_Command, frozen=True, kw_only=True):
    activity_id: ActivityId


class StartTimer(_Command, frozen=True, kw_only=True):
    timer_id: TimerId
    delay_us: int
    label: str | None = None


class CancelTimer(_Command, frozen=True, kw_only=True):
    timer_id: TimerId


class StartWait(_Command, frozen=True, kw_only=True):
    wait_id: WaitId
    label: str


class EndWait(_Command, frozen=True, kw_only=True):
    wait_id: WaitId


class CompleteUpdate(_Command, frozen=True, kw_only=True):
    """The answer to an update that was accepted: `failure`, or `result` if that is None."""

    message_id: MessageId
    result: Payload = NULL
    failure: Failure | None = None


class CompleteWorkflow(_Command, frozen=True, kw_only=True):
    result: Payload


class FailWorkflow(_Command, frozen=True, kw_only=True):
    failure: Failure


class CancelWorkflow(_Command, frozen=True, kw_only=True):
    """The program gave up because it had been asked to cancel."""


Command: TypeAlias = (
    ScheduleActivity
    | CancelActivity
    | StartTimer
    | CancelTimer
    | StartWait
    | EndWait
    | CompleteUpdate
    | CompleteWorkflow
    | FailWorkflow
    | CancelWorkflow
)
