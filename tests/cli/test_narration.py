"""A history told to a reader: every event, attempts at the time when they began, nothing that steers a terminal."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from outlast.cli.narration import DETAILS, Line, narrate
from outlast.cli.texts import LINE_LIMIT, failure_chain, one_line, payload_text
from outlast.model.events import (
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Event,
    HistoryEvent,
    MessageUnhandled,
    TimerCancelled,
    TimerFired,
    TimerStarted,
    WaitEnded,
    WaitStarted,
    WorkflowExecutionCancelled,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionSignaled,
    WorkflowExecutionStarted,
    WorkflowExecutionTerminated,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)
from outlast.model.failures import Failure, FailureKind
from outlast.model.ids import ActivityId, MessageId, TimerId, WaitId, WorkflowId
from outlast.model.inputs import CancelRequested
from outlast.model.payloads import Arguments, Payload

S = 1_000_000
RESULT = Payload.from_json(b'{"payment_id":"pay_xyz"}')
REFUSED = Failure("shop.errors:CardRefused", "no funds")

STARTED = WorkflowExecutionStarted("order", WorkflowId("order-1"), "default")
SAID = Arguments((Payload.from_json(b'"yes"'),))
AMEND = WorkflowExecutionUpdateAccepted(MessageId("u"), "amend")
CHARGE = ActivityScheduled(ActivityId("1"), "charge")

TOLD: list[tuple[list[Event], str]] = [
    ([], "WorkflowExecutionStarted"),
    ([WorkflowExecutionCancelRequested(MessageId("m"))], "WorkflowExecutionCancelRequested"),
    ([WorkflowExecutionCancelRequested(MessageId("m"), "too late")], "WorkflowExecutionCancelRequested: too late"),
    ([WorkflowExecutionSignaled(MessageId("m"), "decide", SAID)], "WorkflowExecutionSignaled: decide"),
    ([AMEND], "WorkflowExecutionUpdateAccepted: amend"),
    (
        [AMEND, WorkflowExecutionUpdateAccepted(MessageId("v"), "amend")],
        "WorkflowExecutionUpdateAccepted: amend #v",
    ),
    (
        [AMEND, WorkflowExecutionUpdateCompleted(MessageId("u"), RESULT)],
        'WorkflowExecutionUpdateCompleted: amend → {"payment_id": "pay_xyz"}',
    ),
    (
        [AMEND, WorkflowExecutionUpdateCompleted(MessageId("u"), failure=REFUSED)],
        "WorkflowExecutionUpdateCompleted: amend → CardRefused: no funds",
    ),
    ([CHARGE], "ActivityScheduled: charge"),
    (
        [ActivityScheduled(ActivityId("1"), "charge", label="take the money", queue="pay")],
        "ActivityScheduled: take the money (activity charge) on queue pay",
    ),
    ([CHARGE, ActivityCompleted(ActivityId("1"), 0, RESULT)], 'ActivityCompleted: charge → {"payment_id": "pay_xyz"}'),
    (
        [CHARGE, ActivityFailed(ActivityId("1"), REFUSED, 3)],
        "ActivityFailed: charge: CardRefused: no funds (attempt 3, the last)",
    ),
    (
        [CHARGE, ActivityAttemptFailed(ActivityId("1"), 1, 0, REFUSED, 90 * S)],
        "ActivityAttemptFailed: charge: CardRefused: no funds (attempt 1; the next one at 00:01:30)",
    ),
    (
        [CHARGE, ActivityAttemptLost(ActivityId("1"), 2, 90 * S, "node 7 is gone")],
        "ActivityAttemptLost: charge: node 7 is gone (attempt 2; the next one at 00:01:30)",
    ),
    ([CHARGE, ActivityCancelled(ActivityId("1"))], "ActivityCancelled: charge"),
    ([TimerStarted(TimerId("1"), 7200 * S, 7260 * S)], "TimerStarted: sleep 2h (fires at 02:01:00)"),
    (
        [TimerStarted(TimerId("1"), 36 * 3600 * S, 36 * 3600 * S, "wait-for-warehouse")],
        "TimerStarted: wait-for-warehouse 1d12h (fires at 1970-01-02 12:00:00)",
    ),
    ([TimerStarted(TimerId("1"), S, S, "pack"), TimerFired(TimerId("1"))], "TimerFired: pack"),
    ([TimerStarted(TimerId("1"), S, S, "pack"), TimerCancelled(TimerId("1"))], "TimerCancelled: pack"),
    ([WaitStarted(WaitId("1"), "approval")], "WaitStarted: approval"),
    ([WaitStarted(WaitId("1"), "approval"), WaitEnded(WaitId("1"))], "WaitEnded: approval"),
    ([WorkflowExecutionCompleted(RESULT)], 'WorkflowExecutionCompleted: → {"payment_id": "pay_xyz"}'),
    ([WorkflowExecutionFailed(REFUSED)], "WorkflowExecutionFailed: CardRefused: no funds"),
    ([WorkflowExecutionCancelled("too late")], "WorkflowExecutionCancelled: too late"),
    ([WorkflowExecutionTerminated(MessageId("m"), "stop")], "WorkflowExecutionTerminated: stop"),
    (
        [MessageUnhandled(CancelRequested(MessageId("m")))],
        "MessageUnhandled: CancelRequested (it came when the workflow had ended)",
    ),
]


def told(*events: Event, at_us: int = 0) -> list[Line]:
    return narrate([HistoryEvent(position, at_us, event) for position, event in enumerate([STARTED, *events], 1)])


@pytest.mark.parametrize(("events", "text"), TOLD, ids=[text.split(":")[0] for _, text in TOLD])
def test_event_is_told(events: list[Event], text: str) -> None:
    assert told(*events)[-1].text == text


def test_every_type_of_event_can_be_told_and_is_tested() -> None:
    assert set(DETAILS) == set(get_args(Event))
    assert {text.split(":")[0] for _, text in TOLD} == {kind.__name__ for kind in get_args(Event)}


def test_attempts_are_told_at_the_time_when_they_began() -> None:
    activity = ActivityId("1")
    history = [
        HistoryEvent(1, 0, STARTED),
        HistoryEvent(2, 0, CHARGE),
        HistoryEvent(3, 5 * S, WorkflowExecutionCancelRequested(MessageId("m"))),
        HistoryEvent(4, 7 * S, ActivityAttemptFailed(activity, 1, 3 * S, REFUSED, 8 * S)),
        HistoryEvent(5, 12 * S, ActivityCompleted(activity, 9 * S, RESULT, 2)),
    ]

    assert [(line.at_us // S, line.text.split(" → ")[0]) for line in narrate(history)] == [
        (0, "WorkflowExecutionStarted"),
        (0, "ActivityScheduled: charge"),
        (3, "ActivityStarted: charge"),
        (5, "WorkflowExecutionCancelRequested"),
        (7, "ActivityAttemptFailed: charge: CardRefused: no funds (attempt 1; the next one at 00:00:08)"),
        (9, "ActivityStarted: charge (attempt 2)"),
        (12, "ActivityCompleted: charge"),
    ]


def test_a_clock_that_was_set_back_does_not_put_the_beginning_before_the_schedule_or_after_the_end() -> None:
    for began_us in (-5 * S, 50 * S):
        history = [
            HistoryEvent(1, S, STARTED),
            HistoryEvent(2, S, CHARGE),
            HistoryEvent(3, 2 * S, ActivityCompleted(ActivityId("1"), began_us, RESULT)),
        ]
        kinds = [line.text.partition(":")[0] for line in narrate(history)]
        assert kinds == ["WorkflowExecutionStarted", "ActivityScheduled", "ActivityStarted", "ActivityCompleted"]


def test_a_lost_attempt_has_no_known_beginning() -> None:
    lines = told(CHARGE, ActivityAttemptLost(ActivityId("1"), 1, 0))
    assert [line.text.partition(":")[0] for line in lines][1:] == ["ActivityScheduled", "ActivityAttemptLost"]


def test_several_of_one_name_are_told_apart() -> None:
    lines = told(
        CHARGE,
        ActivityScheduled(ActivityId("2"), "charge"),
        ActivityScheduled(ActivityId("3"), "charge", label="refund"),
        ActivityCancelled(ActivityId("2")),
    )
    assert [line.text for line in lines][1:] == [
        "ActivityScheduled: charge #1",
        "ActivityScheduled: charge #2",
        "ActivityScheduled: refund (activity charge)",
        "ActivityCancelled: charge #2",
    ]


def test_an_empty_history_is_told_in_no_lines() -> None:
    assert narrate([]) == []


def test_long_values_are_shortened() -> None:
    text = payload_text(Payload.from_json(b'"' + b"x" * 100_000 + b'"'))
    assert len(text) == LINE_LIMIT
    assert text.endswith("x…")


def test_a_value_in_another_encoding_is_named_and_not_printed() -> None:
    assert payload_text(Payload.from_bytes(b"\x00secret", "aes-gcm")) == "<aes-gcm, 7 bytes>"


def test_recorded_text_cannot_steer_the_terminal_or_break_the_line() -> None:
    assert one_line("a\x1b[2J\nb\tc\x9b d\u202e") == "a\\x1b[2J b c\\x9b d\\u202e"


def test_a_chain_of_failures_names_each_cause_and_its_place() -> None:
    lost = Failure("ActivityLost", "its process is gone", FailureKind.LOST)
    trace = 'Traceback (most recent call last):\n  File "/shop/pay.py", line 12, in charge\n    raise CardRefused\n'
    trace += f'  File "{json.__file__}", line 346, in loads\n'
    refused = Failure("shop.errors:CardRefused", "no funds", traceback=trace, cause=lost)

    assert failure_chain(Failure("OrderFailed", "", cause=refused)) == [
        "OrderFailed",
        "  caused by CardRefused: no funds (at /shop/pay.py:12 in charge)",
        "  caused by ActivityLost: its process is gone",
    ]
    assert failure_chain(None) == []
