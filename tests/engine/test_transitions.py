"""Every event in every situation of a run: it changes what the table says, or is refused and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import pytest

from engine.scripted import RUN, STARTED, changes, fold, snapshot
from engine.situations import (
    A1,
    A2,
    ANSWERED,
    FRESH,
    HAS_SEEN,
    NOW,
    OOPS,
    OPEN,
    PENDING,
    PENDING_AT_1,
    PENDING_AT_2,
    SCHEDULED,
    SEEN,
    SITUATIONS,
    T1,
    T2,
    TIMER,
    TIMERS,
    UPDATE,
    W1,
    W2,
    WAIT,
    situation,
)
from outlast.engine.run import RECENT_MESSAGES, TRANSITIONS, InvalidTransition, Phase, RunState
from outlast.model.errors import InternalError
from outlast.model.events import (
    INPUT_EVENTS,
    NOTE_EVENTS,
    TERMINAL_EVENTS,
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    CommandEvent,
    Event,
    InputEvent,
    MessageUnhandled,
    NoteEvent,
    TerminalEvent,
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
from outlast.model.ids import MessageId
from outlast.model.inputs import AttemptLost, CancelRequested, SignalReceived, TerminateRequested
from outlast.model.payloads import NULL

Snapshot = dict[str, Any]


class Row(NamedTuple):
    event: Event
    defined: set[str]
    """The situations in which it may come. In all others it is refused."""
    changed: Callable[[Snapshot], Snapshot]
    """What it changes, besides `next_event` and `last_at_us`, given what was before."""


def _remembers(message_id: str) -> Callable[[Snapshot], Snapshot]:
    return lambda before: {"recent_messages": [*before["recent_messages"], message_id]}


def _accepts(event: WorkflowExecutionUpdateAccepted) -> Callable[[Snapshot], Snapshot]:
    return lambda before: {
        **_remembers(event.message_id)(before),
        "updates": [*before["updates"], (event.message_id, event)],
    }


def _no_activity(_: Snapshot) -> Snapshot:
    return {"activities": []}


def _next_attempt(before: Snapshot) -> Snapshot:
    ((key, pending),) = before["activities"]
    return {"activities": [(key, {**pending, "attempt": pending["attempt"] + 1, "not_before_us": NOW + 7})]}


def _scheduled(event: ActivityScheduled) -> Callable[[Snapshot], Snapshot]:
    pending = {"attempt": 1, "not_before_us": NOW, "scheduled": event, "scheduled_at_us": NOW}
    return lambda before: {"activities": [*before["activities"], (event.activity_id, pending)]}


def _closes(outcome: TerminalEvent, *remembered: str) -> Callable[[Snapshot], Snapshot]:
    def changed(before: Snapshot) -> Snapshot:
        emptied = {slot: [] for slot in ("activities", "timers", "updates", "waits") if before[slot]}
        messages = sorted([*before["recent_messages"], *remembered])
        return {
            "phase": Phase.CLOSED,
            "outcome": outcome,
            **emptied,
            **({"recent_messages": messages} if remembered else {}),
        }

    return changed


A2_SCHEDULED = ActivityScheduled(A2, "ship")
T2_STARTED = TimerStarted(T2, 1, NOW + 1)
W2_STARTED = WaitStarted(W2, "second")
DONE = WorkflowExecutionCompleted(NULL)
FAILED = WorkflowExecutionFailed(OOPS)
GAVE_UP = WorkflowExecutionCancelled()
SIGNAL = WorkflowExecutionSignaled(FRESH, "approve")
FRESH_UPDATE = WorkflowExecutionUpdateAccepted(FRESH, "reprice")
ENDED = WorkflowExecutionTerminated(FRESH)
NEVER: set[str] = set()

TABLE: dict[str, Row] = {
    "start": Row(STARTED, {"new"}, lambda before: {"phase": Phase.OPEN, "started": STARTED, "started_at_us": NOW}),
    "cancel request": Row(
        WorkflowExecutionCancelRequested(FRESH),
        OPEN,
        lambda before: {
            **_remembers(FRESH)(before),
            **({} if before["cancel_requested"] else {"cancel_requested": True}),
        },
    ),
    "cancel request that was seen": Row(
        WorkflowExecutionCancelRequested(SEEN),
        OPEN - HAS_SEEN,
        lambda before: {**_remembers(SEEN)(before), "cancel_requested": True},
    ),
    "signal": Row(SIGNAL, OPEN, _remembers(FRESH)),
    "signal that was seen": Row(WorkflowExecutionSignaled(SEEN, "approve"), OPEN - HAS_SEEN, _remembers(SEEN)),
    "accept an update": Row(FRESH_UPDATE, OPEN, _accepts(FRESH_UPDATE)),
    "accept an update that was seen": Row(UPDATE, OPEN - HAS_SEEN, _accepts(UPDATE)),
    "answer the update": Row(ANSWERED, {"update is open"}, lambda before: {"updates": []}),
    "fail the update": Row(
        WorkflowExecutionUpdateCompleted(SEEN, failure=OOPS), {"update is open"}, lambda before: {"updates": []}
    ),
    "answer another update": Row(WorkflowExecutionUpdateCompleted(FRESH), NEVER, lambda before: {"updates": []}),
    "result of attempt 0": Row(ActivityCompleted(A1, NOW, NULL, 0), NEVER, _no_activity),
    "result of attempt 1": Row(ActivityCompleted(A1, NOW, NULL, 1), PENDING_AT_1, _no_activity),
    "result of attempt 2": Row(ActivityCompleted(A1, NOW, NULL, 2), PENDING_AT_2, _no_activity),
    "result of attempt 3": Row(ActivityCompleted(A1, NOW, NULL, 3), NEVER, _no_activity),
    "result of another activity": Row(ActivityCompleted(A2, NOW, NULL, 1), NEVER, _no_activity),
    "failure of attempt 1": Row(ActivityFailed(A1, OOPS, 1), PENDING_AT_1, _no_activity),
    "failure of attempt 2": Row(ActivityFailed(A1, OOPS, 2), PENDING_AT_2, _no_activity),
    "failure of another activity": Row(ActivityFailed(A2, OOPS, 1), NEVER, _no_activity),
    "attempt 1 failed": Row(ActivityAttemptFailed(A1, 1, NOW, OOPS, NOW + 7), PENDING_AT_1, _next_attempt),
    "attempt 2 failed": Row(ActivityAttemptFailed(A1, 2, NOW, OOPS, NOW + 7), PENDING_AT_2, _next_attempt),
    "attempt of another activity failed": Row(ActivityAttemptFailed(A2, 1, NOW, OOPS, NOW), NEVER, _next_attempt),
    "attempt 1 lost": Row(ActivityAttemptLost(A1, 1, NOW + 7), PENDING_AT_1, _next_attempt),
    "attempt 2 lost": Row(ActivityAttemptLost(A1, 2, NOW + 7), PENDING_AT_2, _next_attempt),
    "attempt of another activity lost": Row(ActivityAttemptLost(A2, 1, NOW), NEVER, _next_attempt),
    "schedule the same activity": Row(SCHEDULED, OPEN - PENDING, _scheduled(SCHEDULED)),
    "schedule another activity": Row(A2_SCHEDULED, OPEN, _scheduled(A2_SCHEDULED)),
    "cancel the activity": Row(ActivityCancelled(A1), PENDING, _no_activity),
    "cancel another activity": Row(ActivityCancelled(A2), NEVER, _no_activity),
    "start the same timer": Row(TIMER, OPEN - TIMERS, lambda before: {"timers": [(T1, TIMER)]}),
    "start another timer": Row(T2_STARTED, OPEN, lambda before: {"timers": [*before["timers"], (T2, T2_STARTED)]}),
    "timer fires": Row(TimerFired(T1), {"timer is due"}, lambda before: {"timers": []}),
    "another timer fires": Row(TimerFired(T2), NEVER, lambda before: {"timers": []}),
    "cancel the timer": Row(TimerCancelled(T1), TIMERS, lambda before: {"timers": []}),
    "cancel another timer": Row(TimerCancelled(T2), NEVER, lambda before: {"timers": []}),
    "begin the same wait": Row(WAIT, OPEN - {"wait"}, lambda before: {"waits": [(W1, WAIT)]}),
    "begin another wait": Row(W2_STARTED, OPEN, lambda before: {"waits": [*before["waits"], (W2, W2_STARTED)]}),
    "end the wait": Row(WaitEnded(W1), {"wait"}, lambda before: {"waits": []}),
    "end another wait": Row(WaitEnded(W2), NEVER, lambda before: {"waits": []}),
    "complete": Row(DONE, OPEN, _closes(DONE)),
    "fail": Row(FAILED, OPEN, _closes(FAILED)),
    "cancel": Row(GAVE_UP, OPEN, _closes(GAVE_UP)),
    "terminate": Row(ENDED, OPEN, _closes(ENDED, FRESH)),
    "terminate by a message that was seen": Row(
        WorkflowExecutionTerminated(SEEN),
        OPEN - HAS_SEEN,
        _closes(WorkflowExecutionTerminated(SEEN), SEEN),
    ),
    "late mail": Row(MessageUnhandled(CancelRequested(FRESH)), OPEN, _remembers(FRESH)),
    "late signal": Row(MessageUnhandled(SignalReceived(FRESH, "approve")), OPEN, _remembers(FRESH)),
    "late signal that was seen": Row(
        MessageUnhandled(SignalReceived(SEEN, "approve")), OPEN - HAS_SEEN, _remembers(SEEN)
    ),
    "late mail that was seen": Row(MessageUnhandled(TerminateRequested(SEEN)), OPEN - HAS_SEEN, _remembers(SEEN)),
    "late mail without an id": Row(MessageUnhandled(AttemptLost(A1, 1, "gone", 0.5)), OPEN, lambda before: {}),
}

PAIRS = [(where, what) for where in SITUATIONS for what in TABLE]


@pytest.mark.parametrize(("where", "what"), PAIRS, ids=[f"{where}-{what}" for where, what in PAIRS])
def test_every_event_is_defined_or_refused_in_every_situation(where: str, what: str) -> None:
    row = TABLE[what]
    state = situation(where)
    before = snapshot(state)
    if where in row.defined:
        state.apply(row.event, NOW)
        after = snapshot(state)
        assert changes(before, after) == row.changed(before)
        assert after["next_event"] == before["next_event"] + 1
        assert after["last_at_us"] == NOW
    else:
        with pytest.raises(InvalidTransition) as caught:
            state.apply(row.event, NOW)
        assert snapshot(state) == before
        assert f"event {before['next_event']} of run {RUN}" in str(caught.value)


def _members(*unions: Any) -> set[type]:
    return {member for union in unions for member in get_args(union)}


def test_the_table_of_transitions_names_every_event_and_nothing_else() -> None:
    assert set(TRANSITIONS) == _members(Event)


def test_these_tests_try_every_event_where_it_is_defined() -> None:
    tried = {type(row.event) for row in TABLE.values()}
    defined = {type(row.event) for row in TABLE.values() if row.defined}
    assert tried == defined == set(TRANSITIONS)


def test_the_tuples_of_event_kinds_are_the_unions() -> None:
    assert set(INPUT_EVENTS) == _members(InputEvent)
    assert set(TERMINAL_EVENTS) == _members(TerminalEvent)
    assert set(NOTE_EVENTS) == _members(NoteEvent)
    kinds = [*get_args(InputEvent), *get_args(CommandEvent), *get_args(NoteEvent)]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) == _members(Event)


def test_something_that_is_no_event_is_refused() -> None:
    state = situation("idle")
    before = snapshot(state)
    with pytest.raises(InvalidTransition, match="AttemptLost cannot be event 2"):
        state.apply(AttemptLost(A1, 1, "gone", 0.0), NOW)  # type: ignore[arg-type]
    assert snapshot(state) == before


def test_an_invalid_transition_is_a_bug_of_ours() -> None:
    assert issubclass(InvalidTransition, InternalError)


def test_a_timer_never_fires_a_microsecond_early() -> None:
    state = situation("timer is due")
    before = snapshot(state)
    due_us = TIMER.fires_at_us
    with pytest.raises(InvalidTransition, match="timer t1 fired 1 us early"):
        state.apply(TimerFired(T1), due_us - 1)
    assert snapshot(state) == before
    state.apply(TimerFired(T1), due_us)
    assert changes(before, snapshot(state)) == {"timers": []}


def test_time_in_the_state_never_goes_back() -> None:
    state = situation("idle")
    state.apply(SCHEDULED, NOW)
    state.apply(WAIT, NOW - 500)
    assert state.last_at_us == NOW


def test_a_new_state_is_empty() -> None:
    assert snapshot(RunState(RUN)) == {
        "run_id": RUN,
        "phase": Phase.NEW,
        "next_event": 1,
        "last_at_us": 0,
        "started": None,
        "started_at_us": 0,
        "outcome": None,
        "cancel_requested": False,
        "activities": [],
        "timers": [],
        "updates": [],
        "waits": [],
        "recent_messages": [],
    }


def test_a_run_forgets_only_its_oldest_messages() -> None:
    state = situation("idle")
    for number in range(RECENT_MESSAGES + 2):
        state.apply(WorkflowExecutionCancelRequested(f"m{number}"), NOW)  # type: ignore[arg-type]
    assert list(state.recent_messages) == [f"m{number}" for number in range(2, RECENT_MESSAGES + 2)]
    with pytest.raises(InvalidTransition, match="message 'm2' is in the history already"):
        state.apply(WorkflowExecutionCancelRequested("m2"), NOW)  # type: ignore[arg-type]


def _signals(state: RunState, prefix: str, count: int = RECENT_MESSAGES) -> None:
    for number in range(count):
        state.apply(WorkflowExecutionSignaled(MessageId(f"{prefix}{number}"), "tick"), NOW)


def test_an_update_is_known_for_as_long_as_it_is_open() -> None:
    state = situation("update is open")
    _signals(state, "m")
    assert len(state.recent_messages) == RECENT_MESSAGES + 1
    before = snapshot(state)
    for event in (UPDATE, WorkflowExecutionSignaled(SEEN, "approve"), MessageUnhandled(SignalReceived(SEEN, "x"))):
        with pytest.raises(InvalidTransition, match="message 'seen' is in the history already"):
            state.apply(event, NOW)
        assert snapshot(state) == before


@pytest.mark.parametrize("count", [1, RECENT_MESSAGES - 1, RECENT_MESSAGES])
def test_an_update_is_remembered_from_its_end_on(count: int) -> None:
    """Whoever waited for it asks again when the answer is lost, however long that was after the run had accepted it."""
    state = situation("update is open")
    _signals(state, "m", count)
    state.apply(ANSWERED, NOW)
    assert len(state.recent_messages) == min(count + 1, RECENT_MESSAGES)
    _signals(state, "n", RECENT_MESSAGES - 1)
    with pytest.raises(InvalidTransition, match="message 'seen' is in the history already"):
        state.apply(UPDATE, NOW)
    _signals(state, "o", 1)
    assert SEEN not in state.recent_messages


def test_a_run_with_more_open_updates_than_it_remembers_messages_forgets_none_of_them() -> None:
    state = situation("idle")
    for number in range(RECENT_MESSAGES + 5):
        state.apply(WorkflowExecutionUpdateAccepted(MessageId(f"u{number}"), "reprice"), NOW)
    _signals(state, "m")
    assert set(state.recent_messages) == {*state.updates, *(f"m{number}" for number in range(RECENT_MESSAGES))}
    _signals(state, "n", 10)
    assert set(state.updates) <= set(state.recent_messages)
    assert len(state.recent_messages) == len(state.updates) + RECENT_MESSAGES
    with pytest.raises(InvalidTransition, match="message 'u0' is in the history already"):
        state.apply(WorkflowExecutionUpdateAccepted(MessageId("u0"), "reprice"), NOW)


@pytest.mark.parametrize("outcome", [DONE, ENDED])
def test_a_run_that_ends_still_knows_the_updates_that_were_open(outcome: TerminalEvent) -> None:
    """Late mail is held against them."""
    state = situation("update is open")
    _signals(state, "m")
    state.apply(outcome, NOW)
    assert SEEN in state.recent_messages


@pytest.mark.parametrize(
    ("where", "wake_at_us", "step"),
    [
        ("idle", None, None),
        ("attempt 1", 1_000_000, "charge"),
        ("attempt 2", 1_000_010, "charge"),
        ("waits for retry", NOW + 4_000, "charge"),
        ("has a deadline", 1_000_000, "charge"),
        ("timer is due", TIMER.fires_at_us, "sleep"),
        ("wait", None, "approval"),
        ("update is open", None, None),
        ("closed", None, None),
    ],
)
def test_a_run_knows_when_it_is_due_and_what_it_waits_for(where: str, wake_at_us: int | None, step: str | None) -> None:
    state = situation(where)
    assert state.wake_at_us() == wake_at_us
    assert state.step() == step


def test_a_retry_beyond_the_deadline_wakes_the_run_at_the_deadline() -> None:
    state = fold(SITUATIONS["has a deadline"])
    state.apply(ActivityAttemptFailed(A1, 1, NOW, OOPS, NOW + 1_000_000), NOW)
    assert state.wake_at_us() == 1_000_000 + 10_000


def test_the_newest_open_thing_is_what_the_run_waits_for() -> None:
    state = situation("attempt 1")
    state.apply(TimerStarted(T1, 5, NOW + 5, label="cool down"), NOW)
    assert state.step() == "cool down"
    state.apply(WAIT, NOW)
    assert state.step() == "approval"


def test_a_started_run_keeps_the_event_that_started_it() -> None:
    assert situation("idle").started == WorkflowExecutionStarted("Order", STARTED.workflow_id, "default")
