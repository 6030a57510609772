"""The published formats, frozen: tags, fields in their order, types and defaults of everything that is stored.

A test here fails when a stored type changes. Adding a field with a default is allowed: extend the list, knowingly.
Renaming or removing a field, changing a default or a type, or adding a field without a default is not: old histories
would no longer be read, or would mean something else.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from engine.situations import A1
from outlast.model import events as events_module
from outlast.model.events import EVENT_FORMAT, ActivityScheduled, Event, WorkflowExecutionStarted, decode_events
from outlast.model.failures import Failure, FailureKind
from outlast.model.ids import MessageId
from outlast.model.inputs import ActivityDeadlinePassed, Message, TimerDue, decode_message
from outlast.model.payloads import Arguments, Payload
from outlast.model.policies import RetryPolicy
from outlast.model.replies import Accepted, Reply, decode_reply
from outlast.runtime.ports import Attempt, decode_attempt

EVENTS = """
WorkflowExecutionStarted: workflow: str; workflow_id: WorkflowId; queue: str;
    arguments: Arguments = Arguments(args=(), kwargs={}); flags: tuple[str, ...] = (); format: int = 1
WorkflowExecutionCancelRequested: message_id: MessageId; reason: str = ''
WorkflowExecutionSignaled: message_id: MessageId; signal: str;
    arguments: Arguments = Arguments(args=(), kwargs={})
WorkflowExecutionUpdateAccepted: message_id: MessageId; update: str;
    arguments: Arguments = Arguments(args=(), kwargs={})
ActivityCompleted: activity_id: ActivityId; started_at_us: int; result: Payload; attempt: int = 1
ActivityFailed: activity_id: ActivityId; failure: Failure; attempt: int = 1; started_at_us: int | None = None
TimerFired: timer_id: TimerId
ActivityScheduled: activity_id: ActivityId; activity: str; arguments: Arguments = Arguments(args=(), kwargs={});
    queue: str | None = None; label: str | None = None;
    retry: RetryPolicy = RetryPolicy(initial_interval_us=1000000, backoff=2.0, max_interval_us=100000000,
    max_attempts=0, jitter=0.2, non_retryable=());
    start_to_close_us: int | None = None; schedule_to_close_us: int | None = None
ActivityCancelled: activity_id: ActivityId
TimerStarted: timer_id: TimerId; delay_us: int; fires_at_us: int; label: str | None = None
TimerCancelled: timer_id: TimerId
WaitStarted: wait_id: WaitId; label: str
WaitEnded: wait_id: WaitId
WorkflowExecutionUpdateCompleted: message_id: MessageId; result: Payload = null; failure: Failure | None = None
WorkflowExecutionCompleted: result: Payload
WorkflowExecutionFailed: failure: Failure
WorkflowExecutionCancelled: reason: str = ''
WorkflowExecutionTerminated: message_id: MessageId; reason: str = ''
ActivityAttemptFailed: activity_id: ActivityId; attempt: int; started_at_us: int; failure: Failure;
    retry_at_us: int
ActivityAttemptLost: activity_id: ActivityId; attempt: int; retry_at_us: int; reason: str = ''
MessageUnhandled: message: Message
"""

MESSAGES = """
AttemptSucceeded: activity_id: ActivityId; attempt: int; started_at_us: int; result: Payload
AttemptFailed: activity_id: ActivityId; attempt: int; started_at_us: int; failure: Failure; jitter: float
AttemptLost: activity_id: ActivityId; attempt: int; reason: str; jitter: float
CancelRequested: message_id: MessageId; reason: str = ''
TerminateRequested: message_id: MessageId; reason: str = ''
SignalReceived: message_id: MessageId; signal: str; arguments: Arguments = Arguments(args=(), kwargs={})
UpdateRequested: message_id: MessageId; update: str; arguments: Arguments = Arguments(args=(), kwargs={})
QueryRequested: message_id: MessageId; query: str; arguments: Arguments = Arguments(args=(), kwargs={})
"""

REPLIES = """
Answered: message_id: MessageId; result: Payload = null
Failed: message_id: MessageId; failure: Failure
Refused: message_id: MessageId; failure: Failure
Accepted: message_id: MessageId
Recorded: message_id: MessageId
Ended: message_id: MessageId
"""

PARTS = """
Failure: type: str; message: str; kind: FailureKind = <FailureKind.APPLICATION: 'application'>; traceback: str = '';
    args: Payload | None = None; attributes: Payload | None = None; cause: Failure | None = None;
    non_retryable: bool = False; retry_after_us: int | None = None
Payload: data: Raw; encoding: str = 'json'; metadata: dict[str, str] | None = None
Arguments: args: tuple[Payload, ...] = (); kwargs: dict[str, Payload] = {}
RetryPolicy: initial_interval_us: int = 1000000; backoff: float = 2.0; max_interval_us: int = 100000000;
    max_attempts: int = 0; jitter: float = 0.2; non_retryable: tuple[str, ...] = ()
Attempt: namespace: Namespace; workflow: str; workflow_id: WorkflowId; run_id: RunId; activity_id: ActivityId;
    activity: str; queue: str; attempt: int; scheduled_at_us: int; arguments: Arguments; retry: RetryPolicy;
    start_to_close_us: int | None = None; deadline_us: int | None = None
"""


def frozen(text: str) -> list[str]:
    """One line per type."""
    return text.strip().replace("\n    ", " ").split("\n")


def described(kind: type[msgspec.Struct]) -> str:
    annotations: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        annotations.update(getattr(base, "__annotations__", {}))
    fields = []
    for field in msgspec.structs.fields(kind):
        default = ""
        if not field.required:
            value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            default = f" = {value.to_bytes().decode() if isinstance(value, Payload) else repr(value)}"
        fields.append(f"{field.encode_name}: {annotations[field.name]}{default}")
    return f"{kind.__name__}: {'; '.join(fields)}"


def test_the_events_are_the_published_ones() -> None:
    assert [described(kind) for kind in get_args(Event)] == frozen(EVENTS)


def test_the_messages_are_the_published_ones() -> None:
    assert [described(kind) for kind in get_args(Message)] == frozen(MESSAGES)


def test_the_replies_are_the_published_ones() -> None:
    assert [described(kind) for kind in get_args(Reply)] == frozen(REPLIES)


def test_what_events_and_messages_are_made_of_is_published_too() -> None:
    assert [described(kind) for kind in (Failure, Payload, Arguments, RetryPolicy, Attempt)] == frozen(PARTS)


@pytest.mark.parametrize("kind", [*get_args(Event), *get_args(Message), *get_args(Reply)])
def test_the_tag_is_the_name_of_the_class(kind: type[msgspec.Struct]) -> None:
    config = kind.__struct_config__
    assert (config.tag_field, config.tag) == ("type", kind.__name__)
    assert config.omit_defaults


def test_no_tag_stands_for_two_things() -> None:
    tags = [kind.__struct_config__.tag for kind in (*get_args(Event), *get_args(Message), *get_args(Reply))]
    assert len(tags) == len(set(tags))


def test_kinds_of_failures_are_the_published_ones() -> None:
    assert [each.value for each in FailureKind] == ["application", "timeout", "lost", "cancelled"]


def test_every_event_of_the_module_is_in_the_union() -> None:
    kinds = {
        value
        for value in vars(events_module).values()
        if isinstance(value, type) and issubclass(value, events_module._Event) and value is not events_module._Event
    }
    assert kinds == set(get_args(Event))


def test_the_event_format_is_one() -> None:
    """Raising it: write the number with each start, since what old histories leave out means 1 for ever."""
    assert EVENT_FORMAT == 1
    (started,) = decode_events(b'[{"type":"WorkflowExecutionStarted","workflow":"w","workflow_id":"i","queue":"q"}]')
    assert isinstance(started, WorkflowExecutionStarted)
    assert started.format == 1


def test_a_field_that_a_newer_release_added_is_skipped() -> None:
    data = b'[{"type":"ActivityScheduled","activity_id":"a1","activity":"charge","colour":{"r":1}}]'
    assert decode_events(data) == [ActivityScheduled(A1, "charge")]
    assert decode_message(b'{"type":"CancelRequested","message_id":"m","colour":"red"}').message_id == "m"  # type: ignore[union-attr]
    assert decode_reply(b'{"type":"Accepted","message_id":"m","colour":"red"}') == Accepted(MessageId("m"))


@pytest.mark.parametrize("kind", [TimerDue, ActivityDeadlinePassed])
def test_what_only_the_owner_may_say_does_not_come_through_a_mailbox(kind: type[msgspec.Struct]) -> None:
    with pytest.raises(msgspec.DecodeError, match=kind.__name__):
        decode_message(b'{"type":"%s","timer_id":"1","activity_id":"1"}' % kind.__name__.encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"type":"Unknown"}', b'{"type":"CancelRequested"}'])
def test_a_message_that_this_release_does_not_know_cannot_be_read(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_message(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"type":"Unknown","message_id":"m"}',
        b'{"type":"Accepted"}',
        b'{"type":"Failed","message_id":"m"}',
        b'{"type":"QueryRequested","message_id":"m","query":"total"}',
    ],
)
def test_a_reply_that_this_release_does_not_know_cannot_be_read(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_reply(data)


def test_a_task_that_lacks_a_field_cannot_be_read() -> None:
    with pytest.raises(msgspec.DecodeError, match="namespace"):
        decode_attempt(b"{}")
