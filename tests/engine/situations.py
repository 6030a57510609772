"""The situations that a run can be in, each as the shortest history that leads there.

Times: the run starts at `T`, everything that is tried on it happens at `NOW`; a timer or retry that runs is due by then
unless the situation says otherwise.
"""

from __future__ import annotations

from engine.scripted import STARTED, fold
from outlast.engine.run import RunState
from outlast.model.events import (
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityScheduled,
    Event,
    TimerStarted,
    WaitStarted,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionCompleted,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)
from outlast.model.failures import Failure
from outlast.model.ids import ActivityId, MessageId, TimerId, WaitId
from outlast.model.payloads import NULL
from outlast.model.policies import RetryPolicy

T = 1_000_000
NOW = T + 1_000
A1, A2, T1, T2 = ActivityId("a1"), ActivityId("a2"), TimerId("t1"), TimerId("t2")
W1, W2 = WaitId("w1"), WaitId("w2")
SEEN, FRESH = MessageId("seen"), MessageId("fresh")
OOPS = Failure("builtins:OSError", "disk full")
STEADY = RetryPolicy(initial_interval_us=5_000, backoff=1.0, max_attempts=3, jitter=0.0)
SCHEDULED = ActivityScheduled(A1, "charge", retry=STEADY)
HURRIED = ActivityScheduled(A1, "charge", retry=STEADY, schedule_to_close_us=10_000)
LATE = ActivityScheduled(A1, "charge", retry=STEADY, schedule_to_close_us=1_000)
TIMER = TimerStarted(T1, 500, T + 500)
LONG_TIMER = TimerStarted(T1, 9_000, T + 9_000)
WAIT = WaitStarted(W1, "approval")
UPDATE = WorkflowExecutionUpdateAccepted(SEEN, "reprice")
ANSWERED = WorkflowExecutionUpdateCompleted(SEEN, NULL)

_OPEN: list[tuple[Event, int]] = [(STARTED, T)]

SITUATIONS: dict[str, list[tuple[Event, int]]] = {
    "new": [],
    "idle": _OPEN,
    "attempt 1": [*_OPEN, (SCHEDULED, T)],
    "attempt 2": [*_OPEN, (SCHEDULED, T), (ActivityAttemptLost(A1, 1, T + 10), T + 10)],
    "waits for retry": [*_OPEN, (SCHEDULED, T), (ActivityAttemptFailed(A1, 1, T, OOPS, NOW + 4_000), T + 10)],
    "has a deadline": [*_OPEN, (HURRIED, T)],
    "is past a deadline": [*_OPEN, (LATE, T)],
    "timer is due": [*_OPEN, (TIMER, T)],
    "timer runs": [*_OPEN, (LONG_TIMER, T)],
    "wait": [*_OPEN, (WAIT, T)],
    "cancel requested": [*_OPEN, (WorkflowExecutionCancelRequested(SEEN), T + 10)],
    "update is open": [*_OPEN, (UPDATE, T + 10)],
    "update is over": [*_OPEN, (UPDATE, T + 10), (ANSWERED, T + 10)],
    "closed": [*_OPEN, (WorkflowExecutionCompleted(NULL), T)],
}

PENDING_AT_1 = {"attempt 1", "has a deadline", "is past a deadline"}
PENDING_AT_2 = {"attempt 2", "waits for retry"}
PENDING = PENDING_AT_1 | PENDING_AT_2
TIMERS = {"timer is due", "timer runs"}
HAS_SEEN = {"cancel requested", "update is open", "update is over"}
"""Message `SEEN` is in the history."""
OPEN = set(SITUATIONS) - {"new", "closed"}


def situation(name: str) -> RunState:
    return fold(SITUATIONS[name])
