"""Each rule of `engine.invariants` has a history that breaks it and nothing else; and good histories break none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from engine.scripted import STARTED, fold, history
from engine.situations import A1, A2, FRESH, OOPS, SEEN, SITUATIONS, T1, T2, W1, W2, T
from outlast.engine.invariants import InvariantViolation, check_history, check_state
from outlast.engine.run import Phase, RunState
from outlast.model.errors import InternalError
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
    WorkflowExecutionTerminated,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)
from outlast.model.ids import MessageId
from outlast.model.inputs import AttemptLost, CancelRequested, QueryRequested, SignalReceived, UpdateRequested
from outlast.model.payloads import NULL
from outlast.model.policies import RetryPolicy

Turn = tuple[int, Sequence[Event]]

CANCEL = WorkflowExecutionCancelRequested(SEEN)
COMPLETED = WorkflowExecutionCompleted(NULL)
SCHEDULED = ActivityScheduled(A1, "charge", retry=RetryPolicy(max_attempts=3), schedule_to_close_us=100)
TIMER = TimerStarted(T1, 50, T + 50)
BEGUN: Turn = (T, [STARTED, SCHEDULED, TIMER, WaitStarted(W1, "approval")])
DONE = ActivityCompleted(A1, T, NULL)
LOST = ActivityAttemptLost(A1, 1, T + 10)
SIGNAL = WorkflowExecutionSignaled(FRESH, "approve")
UPDATE = WorkflowExecutionUpdateAccepted(MessageId("u1"), "reprice")
ANSWERED = WorkflowExecutionUpdateCompleted(MessageId("u1"), NULL)
FAILED = WorkflowExecutionUpdateCompleted(MessageId("u2"), failure=OOPS)
FIRED: Turn = (T + 50, [TimerFired(T1)])

GOOD: list[Turn] = [
    (T, [STARTED, SCHEDULED, TIMER, TimerStarted(T2, 1, T + 1), WaitStarted(W1, "approval"), UPDATE]),
    (T + 1, [LOST, TimerFired(T2), ActivityScheduled(A2, "ship"), WaitEnded(W1), WaitStarted(W2, "again")]),
    (T + 10, [ActivityAttemptFailed(A1, 2, T + 10, OOPS, T + 20)]),
    (T + 20, [ActivityFailed(A1, OOPS, 3), CANCEL, ActivityCancelled(A2), TimerCancelled(T1)]),
    (T + 30, [WorkflowExecutionCancelRequested(FRESH), WaitEnded(W2), ANSWERED]),
    (T + 30, [WorkflowExecutionUpdateAccepted(MessageId("u2"), "reprice"), FAILED]),
    (T + 30, [WorkflowExecutionUpdateAccepted(MessageId("u3"), "reprice")]),
    (T + 30, [WorkflowExecutionSignaled(MessageId("s1"), "approve"), WorkflowExecutionSignaled(MessageId("s2"), "x")]),
    (
        T + 30,
        [
            WorkflowExecutionCancelRequested(MessageId("third")),
            MessageUnhandled(CancelRequested(MessageId("late"))),
            MessageUnhandled(SignalReceived(MessageId("late too"), "approve")),
            WorkflowExecutionCancelled(),
        ],
    ),
]

BROKEN: dict[str, tuple[list[Turn], str]] = {
    "time goes back": ([BEGUN, (T - 1, [CANCEL])], "its time 999999 is before 1000000"),
    "it does not begin with its start": ([(T, [CANCEL])], "the first event of a history, and only the first"),
    "it starts twice": ([BEGUN, (T, [STARTED])], "the first event of a history, and only the first"),
    "it goes on after its end": (
        [BEGUN, (T, [CANCEL, COMPLETED, WorkflowExecutionTerminated(FRESH)])],
        "it follows WorkflowExecutionCompleted, which ended the run",
    ),
    "it goes on after it was terminated": (
        [BEGUN, (T, [WorkflowExecutionTerminated(FRESH), CANCEL])],
        "it follows WorkflowExecutionTerminated",
    ),
    "it goes on after it failed": (
        [(T, [STARTED, WorkflowExecutionFailed(OOPS)]), (T, [CANCEL])],
        "it follows WorkflowExecutionFailed",
    ),
    "it goes on after it gave up": (
        [BEGUN, (T, [CANCEL, WorkflowExecutionCancelled()]), (T, [DONE])],
        "it follows WorkflowExecutionCancelled",
    ),
    "a command follows a note": ([BEGUN, (T, [LOST, WaitEnded(W1)])], "it follows a note"),
    "a command follows a note with late mail between them": (
        [BEGUN, (T, [LOST, MessageUnhandled(CancelRequested(FRESH)), COMPLETED])],
        "it follows a note",
    ),
    "a command comes later than its cause": (
        [BEGUN, (T + 1, [CANCEL]), (T + 2, [WaitEnded(W1)])],
        "it has another time (1000002) than what caused it (1000001)",
    ),
    "the run goes on after late mail": (
        [BEGUN, (T, [CANCEL, MessageUnhandled(CancelRequested(FRESH)), WaitEnded(W1)])],
        "only the end of the run may follow a MessageUnhandled",
    ),
    "late mail is the report of an attempt": (
        [BEGUN, (T, [CANCEL, MessageUnhandled(AttemptLost(A1, 1, "gone", 0.0)), COMPLETED])],
        "it holds what nobody was told is in the history",
    ),
    "late mail is an update": (
        [BEGUN, (T, [CANCEL, MessageUnhandled(UpdateRequested(FRESH, "reprice")), COMPLETED])],
        "it holds what nobody was told is in the history",
    ),
    "late mail is a query": (
        [BEGUN, (T, [CANCEL, MessageUnhandled(QueryRequested(FRESH, "total")), COMPLETED])],
        "it holds what nobody was told is in the history",
    ),
    "the run goes on after a late signal": (
        [BEGUN, (T, [CANCEL, MessageUnhandled(SignalReceived(FRESH, "approve")), CANCEL])],
        "only the end of the run may follow a MessageUnhandled",
    ),
    "a signal twice": ([BEGUN, (T, [SIGNAL, SIGNAL])], "message 'fresh' is in the history already"),
    "a signal twice, then too late": (
        [BEGUN, (T, [SIGNAL, MessageUnhandled(SignalReceived(FRESH, "approve")), COMPLETED])],
        "message 'fresh' is in the history already",
    ),
    "an update under the id of a signal": (
        [BEGUN, (T, [SIGNAL, WorkflowExecutionUpdateAccepted(FRESH, "reprice")])],
        "message 'fresh' is in the history already",
    ),
    "an update twice": ([BEGUN, (T, [UPDATE, UPDATE])], "message 'u1' is in the history already"),
    "an update again after its end": (
        [BEGUN, (T, [UPDATE, ANSWERED, UPDATE])],
        "message 'u1' is in the history already",
    ),
    "an update is answered twice": ([BEGUN, (T, [UPDATE, ANSWERED, ANSWERED])], "update 'u1' is over already"),
    "an update is answered that was not accepted": (
        [BEGUN, (T, [UPDATE, FAILED])],
        "update 'u2' was never begun",
    ),
    "a signal is answered": (
        [BEGUN, (T, [SIGNAL, WorkflowExecutionUpdateCompleted(FRESH)])],
        "update 'fresh' was never begun",
    ),
    "an update is answered later than its cause": (
        [BEGUN, (T, [UPDATE]), (T + 1, [ANSWERED])],
        "it has another time (1000001) than what caused it (1000000)",
    ),
    "an update is answered after a note": ([BEGUN, (T, [UPDATE, LOST, ANSWERED])], "it follows a note"),
    "a message twice": ([BEGUN, (T, [CANCEL, CANCEL])], "message 'seen' is in the history already"),
    "a message twice, then too late": (
        [BEGUN, (T, [CANCEL, MessageUnhandled(CancelRequested(SEEN)), COMPLETED])],
        "message 'seen' is in the history already",
    ),
    "a message twice, then terminating": (
        [BEGUN, (T, [CANCEL, WorkflowExecutionTerminated(SEEN)])],
        "message 'seen' is in the history already",
    ),
    "it gives up unasked": ([(T, [STARTED, WorkflowExecutionCancelled()])], "nobody had asked the run to cancel"),
    "an activity twice": ([BEGUN, (T, [CANCEL, SCHEDULED])], "activity 'a1' was scheduled before"),
    "an activity again after its end": ([BEGUN, (T, [DONE, SCHEDULED])], "activity 'a1' was scheduled before"),
    "a result without a schedule": (
        [BEGUN, (T, [ActivityCompleted(A2, T, NULL)])],
        "activity 'a2' was never scheduled",
    ),
    "two results": ([BEGUN, (T, [DONE, DONE])], "activity 'a1' had ended already, with ActivityCompleted"),
    "a failure after the result": (
        [BEGUN, (T, [DONE, ActivityFailed(A1, OOPS)])],
        "activity 'a1' had ended already, with ActivityCompleted",
    ),
    "a result after the cancel": (
        [BEGUN, (T, [CANCEL, ActivityCancelled(A1), DONE])],
        "activity 'a1' had ended already, with ActivityCancelled",
    ),
    "an attempt after the end": (
        [BEGUN, (T, [ActivityFailed(A1, OOPS), LOST])],
        "activity 'a1' had ended already, with ActivityFailed",
    ),
    "an attempt is left out": (
        [BEGUN, (T, [ActivityAttemptLost(A1, 2, T)])],
        "it is about attempt 2, but the activity is at attempt 1",
    ),
    "an attempt ends twice": ([BEGUN, (T, [LOST, LOST])], "it is about attempt 1, but the activity is at attempt 2"),
    "a result of an attempt that was lost": (
        [BEGUN, (T, [LOST, DONE])],
        "it is about attempt 1, but the activity is at attempt 2",
    ),
    "more attempts than allowed": (
        [
            BEGUN,
            (T, [LOST, ActivityAttemptLost(A1, 2, T), ActivityAttemptFailed(A1, 3, T, OOPS, T)]),
        ],
        "another attempt is announced after number 3, but 3 are allowed",
    ),
    "a retry before the failure": (
        [BEGUN, (T + 5, [ActivityAttemptFailed(A1, 1, T, OOPS, T + 4)])],
        "the next attempt is announced for 1000004, before this one ended",
    ),
    "a retry at the deadline": (
        [BEGUN, (T, [ActivityAttemptFailed(A1, 1, T, OOPS, T + 100)])],
        "past the schedule-to-close timeout",
    ),
    "a timer that is due at another time than it says": (
        [(T, [STARTED, TimerStarted(T1, 5, T + 6)])],
        "it is due at 1000006, which is not 5 us after 1000000",
    ),
    "a timer twice": ([BEGUN, FIRED, (T + 50, [CANCEL, TimerStarted(T1, 1, T + 51)])], "timer 't1' was begun before"),
    "a timer fires early": ([BEGUN, (T + 49, [TimerFired(T1)])], "timer 't1' fired 1 us early"),
    "a timer fires twice": ([BEGUN, FIRED, FIRED], "timer 't1' is over already"),
    "a timer fires after it was cancelled": (
        [BEGUN, (T, [CANCEL, TimerCancelled(T1)]), FIRED],
        "timer 't1' is cancelled already",
    ),
    "a timer is cancelled after it fired": (
        [BEGUN, (T + 50, [TimerFired(T1), TimerCancelled(T1)])],
        "timer 't1' is over already",
    ),
    "a timer fires that never ran": ([BEGUN, (T, [TimerFired(T2)])], "timer 't2' was never begun"),
    "a wait twice": (
        [BEGUN, (T, [CANCEL, WaitEnded(W1), WaitStarted(W1, "again")])],
        "wait 'w1' was begun before",
    ),
    "a wait ends twice": ([BEGUN, (T, [CANCEL, WaitEnded(W1), WaitEnded(W1)])], "wait 'w1' is over already"),
    "a wait ends that never began": ([BEGUN, (T, [CANCEL, WaitEnded(W2)])], "wait 'w2' was never begun"),
}


def test_a_good_history_breaks_no_rule_at_any_length() -> None:
    whole = history(*GOOD)
    for length in range(len(whole) + 1):
        check_history(whole[:length])


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_situations_of_these_tests_are_good_histories(name: str) -> None:
    events = SITUATIONS[name]
    check_history([HistoryEvent(index, at_us, event) for index, (event, at_us) in enumerate(events, start=1)])


@pytest.mark.parametrize(("turns", "rule"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_rule_is_named_with_the_event_that_breaks_it(turns: list[Turn], rule: str) -> None:
    broken = history(*turns)
    with pytest.raises(InvariantViolation, match=re.escape(rule)) as caught:
        check_history(broken)
    text = str(caught.value)
    position = int(re.match(r"event (\d+) ", text)[1])  # type: ignore[index]
    assert type(broken[position - 1].event).__name__ in text
    assert "please report it" in text
    check_history(broken[: position - 1])


@pytest.mark.parametrize("positions", [(0, 1), (2, 3), (1, 1), (1, 3), (2, 1)])
def test_positions_count_from_one_without_a_gap(positions: tuple[int, int]) -> None:
    events = [HistoryEvent(position, T, event) for position, event in zip(positions, (STARTED, CANCEL), strict=True)]
    with pytest.raises(InvariantViolation, match=r"it is at position \d, but \d events stand before it"):
        check_history(events)


def test_a_violation_is_a_bug_of_ours() -> None:
    assert issubclass(InvariantViolation, InternalError)


# --- a state against its history ------------------------------------------------------------------------------------

OPEN_HISTORY = [(item.event, item.at_us) for item in history(*GOOD[:3])]


def _lose_activity(state: RunState) -> None:
    del state.activities[A1]


def _forget_attempt(state: RunState) -> None:
    state.activities[A1].attempt -= 1


def _too_soon(state: RunState) -> None:
    state.activities[A1].not_before_us -= 1


SPOILT: dict[str, Callable[[RunState], None]] = {
    "next_event": lambda state: setattr(state, "next_event", state.next_event + 1),
    "phase": lambda state: setattr(state, "phase", Phase.CLOSED),
    "started": lambda state: setattr(state, "started", replace(STARTED, queue="other")),
    "started_at_us": lambda state: setattr(state, "started_at_us", T + 1),
    "last_at_us": lambda state: setattr(state, "last_at_us", T),
    "outcome": lambda state: setattr(state, "outcome", COMPLETED),
    "cancel_requested": lambda state: setattr(state, "cancel_requested", True),
    "running timers": lambda state: state.timers.clear(),
    "open waits": lambda state: state.waits.update({W1: WaitStarted(W1, "approval")}),
    "open updates": lambda state: state.updates.clear(),
    "open updates that it has forgotten": lambda state: state.recent_messages.clear(),
    "messages that are not in the history": lambda state: state.recent_messages.update({FRESH: None}),
}
SPOILT_ACTIVITIES = [_lose_activity, _forget_attempt, _too_soon]


def test_a_state_that_agrees_with_its_history_passes() -> None:
    for length in range(len(OPEN_HISTORY) + 1):
        check_state(fold(OPEN_HISTORY[:length]), history(*GOOD)[:length])


@pytest.mark.parametrize("what", SPOILT)
def test_a_state_that_differs_from_its_history_is_named(what: str) -> None:
    state = fold(OPEN_HISTORY)
    SPOILT[what](state)
    with pytest.raises(InvariantViolation, match=f"the state says {what} = "):
        check_state(state, history(*GOOD[:3]))


@pytest.mark.parametrize("spoil", SPOILT_ACTIVITIES)
def test_an_activity_that_differs_from_its_history_is_named(spoil: Callable[[RunState], None]) -> None:
    state = fold(OPEN_HISTORY)
    spoil(state)
    with pytest.raises(InvariantViolation, match="the state says pending activities = "):
        check_state(state, history(*GOOD[:3]))


@pytest.mark.parametrize("slot", ["activities", "timers", "updates", "waits"])
def test_nothing_is_open_after_the_end(slot: str) -> None:
    turns = [*GOOD[:1], (T + 1, [WorkflowExecutionTerminated(FRESH)])]
    events = [(item.event, item.at_us) for item in history(*turns)]
    state = fold(events)
    check_state(state, history(*turns))
    setattr(state, slot, dict(getattr(fold(events[:-1]), slot)))
    with pytest.raises(InvariantViolation, match="but by the history it is"):
        check_state(state, history(*turns))
