"""Events: the record of a run. A published format.

Never rename or reuse a field or a tag; add fields with defaults only. The time of an event is not in the event:
all events of one turn share the time of their journal row. Positions count from 1 and follow from the order.

Three kinds, and what replay does with them:
- *inputs* are fed to the program, which answers with commands;
- *commands* follow the input that caused them, and replay compares them with what the program asks for;
- *notes* are about attempts of an activity; the program never sees them.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from outlast.model.failures import Failure
from outlast.model.ids import ActivityId, MessageId, TimerId, WaitId, WorkflowId
from outlast.model.inputs import Message
from outlast.model.payloads import NO_ARGUMENTS, NULL, Arguments, Payload
from outlast.model.policies import DEFAULT_RETRY, RetryPolicy

EVENT_FORMAT = 1
"""Raised when an older release could not read what this one writes. Stored in every WorkflowExecutionStarted."""


class _Event(Struct, frozen=True, omit_defaults=True, tag_field="type", gc=False):
    """Base of all events; the tag is the class name."""


# --- inputs ---------------------------------------------------------------------------------------------------


class WorkflowExecutionStarted(_Event, frozen=True, tag=True):
    """Always event 1. Written by the starter, with the run's row."""

    workflow: str
    workflow_id: WorkflowId
    queue: str
    arguments: Arguments = NO_ARGUMENTS
    flags: tuple[str, ...] = ()
    """Behaviours that replay must keep as they were when the run began."""
    format: int = 1
    """EVENT_FORMAT of the release that wrote it. The default is that of histories which leave it out, for ever."""


class WorkflowExecutionCancelRequested(_Event, frozen=True, tag=True):
    message_id: MessageId
    reason: str = ""


class WorkflowExecutionSignaled(_Event, frozen=True, tag=True):
    message_id: MessageId
    signal: str
    arguments: Arguments = NO_ARGUMENTS


class WorkflowExecutionUpdateAccepted(_Event, frozen=True, tag=True):
    """The program has agreed to an update. One that it refuses is not recorded."""

    message_id: MessageId
    """Which update it is. Chosen by the sender, so that asking twice does it once."""
    update: str
    arguments: Arguments = NO_ARGUMENTS


class ActivityCompleted(_Event, frozen=True, tag=True):
    activity_id: ActivityId
    started_at_us: int
    result: Payload
    attempt: int = 1


class ActivityFailed(_Event, frozen=True, tag=True):
    """No further attempt will be made. `failure` is that of the last one."""

    activity_id: ActivityId
    failure: Failure
    attempt: int = 1
    started_at_us: int | None = None


class TimerFired(_Event, frozen=True, tag=True):
    timer_id: TimerId


# --- commands -------------------------------------------------------------------------------------------------


class ActivityScheduled(_Event, frozen=True, tag=True):
    activity_id: ActivityId
    activity: str
    arguments: Arguments = NO_ARGUMENTS
    queue: str | None = None
    """None: the queue of the run."""
    label: str | None = None
    """A name for the reader."""
    retry: RetryPolicy = DEFAULT_RETRY
    start_to_close_us: int | None = None
    schedule_to_close_us: int | None = None


class ActivityCancelled(_Event, frozen=True, tag=True):
    """The workflow no longer waits for it. A running attempt is told to stop; what it reports is dropped."""

    activity_id: ActivityId


class TimerStarted(_Event, frozen=True, tag=True):
    timer_id: TimerId
    delay_us: int
    fires_at_us: int
    label: str | None = None


class TimerCancelled(_Event, frozen=True, tag=True):
    timer_id: TimerId


class WaitStarted(_Event, frozen=True, tag=True):
    """The workflow waits for a condition that was given a name for the reader."""

    wait_id: WaitId
    label: str


class WaitEnded(_Event, frozen=True, tag=True):
    wait_id: WaitId


class WorkflowExecutionUpdateCompleted(_Event, frozen=True, tag=True):
    """How an accepted update came out: `failure`, or `result` if that is None."""

    message_id: MessageId
    result: Payload = NULL
    failure: Failure | None = None


class WorkflowExecutionCompleted(_Event, frozen=True, tag=True):
    result: Payload


class WorkflowExecutionFailed(_Event, frozen=True, tag=True):
    failure: Failure


class WorkflowExecutionCancelled(_Event, frozen=True, tag=True):
    """The workflow ended with CancelledError after it had been asked to cancel."""

    reason: str = ""


# --- notes ----------------------------------------------------------------------------------------------------


class WorkflowExecutionTerminated(_Event, frozen=True, tag=True):
    """Ended from outside, at once; the program was not asked."""

    message_id: MessageId
    reason: str = ""


class ActivityAttemptFailed(_Event, frozen=True, tag=True):
    """Another attempt follows, not before `retry_at_us`."""

    activity_id: ActivityId
    attempt: int
    started_at_us: int
    failure: Failure
    retry_at_us: int


class ActivityAttemptLost(_Event, frozen=True, tag=True):
    """The node that ran the attempt is gone, or stopped before it ended. It counts as an attempt; another follows."""

    activity_id: ActivityId
    attempt: int
    retry_at_us: int
    reason: str = ""


class MessageUnhandled(_Event, frozen=True, tag=True):
    """It came when the program had already finished; it is here because it was acknowledged."""

    message: Message


InputEvent: TypeAlias = (
    WorkflowExecutionStarted
    | WorkflowExecutionCancelRequested
    | WorkflowExecutionSignaled
    | WorkflowExecutionUpdateAccepted
    | ActivityCompleted
    | ActivityFailed
    | TimerFired
)
TerminalEvent: TypeAlias = (
    WorkflowExecutionCompleted | WorkflowExecutionFailed | WorkflowExecutionCancelled | WorkflowExecutionTerminated
)
CommandEvent: TypeAlias = (
    ActivityScheduled
    | ActivityCancelled
    | TimerStarted
    | TimerCancelled
    | WaitStarted
    | WaitEnded
    | WorkflowExecutionUpdateCompleted
    | WorkflowExecutionCompleted
    | WorkflowExecutionFailed
    | WorkflowExecutionCancelled
)
NoteEvent: TypeAlias = WorkflowExecutionTerminated | ActivityAttemptFailed | ActivityAttemptLost | MessageUnhandled
Event: TypeAlias = InputEvent | CommandEvent | NoteEvent

INPUT_EVENTS = (
    WorkflowExecutionStarted,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionSignaled,
    WorkflowExecutionUpdateAccepted,
    ActivityCompleted,
    ActivityFailed,
    TimerFired,
)
TERMINAL_EVENTS = (
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionCancelled,
    WorkflowExecutionTerminated,
)
NOTE_EVENTS = (WorkflowExecutionTerminated, ActivityAttemptFailed, ActivityAttemptLost, MessageUnhandled)


class HistoryEvent(Struct, frozen=True, gc=False):
    """An event at its place in a history."""

    position: int
    at_us: int
    """Microseconds since 1970-01-01T00:00:00Z, by the database's clock."""
    event: Event


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[list[Event]] = msgspec.json.Decoder(list[Event])


def encode_events(events: list[Event]) -> bytes:
    return _encoder.encode(events)


def decode_events(data: bytes) -> list[Event]:
    """Raises msgspec.DecodeError if `data` is not a list of events that this release knows."""
    return _decoder.decode(data)
