"""The state of a run: a fold over its events, and nothing else.

Theory of operation
===================
`RunState.apply` is the only place that turns events into state, live and on replay. Which event is allowed when is
the table `TRANSITIONS` at the end of this file: the phase the run must be in, and a function that first checks what
the event refers to (an activity that is pending, a timer that runs) and then changes the state. A pair that is not
in the table, or a check that fails, raises `InvalidTransition` and changes nothing.

The state is changed in place, since it is folded millions of times. That is safe because a state is never shared
and never repaired: a turn that fails, or whose commit is fenced, is thrown away together with its state, and the
run is folded anew from the journal.

The state holds what is still open. What is over leaves it, so that it does not grow with the length of the history.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from outlast.model.errors import InternalError
from outlast.model.events import (
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Event,
    MessageUnhandled,
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
from outlast.model.ids import ActivityId, MessageId, RunId, TimerId, WaitId

RECENT_MESSAGES = 1_000
"""Message ids that a run remembers after it is done with them: has consumed them or, of an update, has answered it.
A client retries a lost reply within seconds; a run that takes a thousand messages in that time is beyond what one
actor does. The ids of updates that are open are kept besides."""


class InvalidTransition(InternalError):
    """An event that cannot follow the ones before it. The state is as it was."""


class Phase(Enum):
    NEW = "new"
    """No event yet."""
    OPEN = "open"
    CLOSED = "closed"


class PendingActivity:
    """An activity that was scheduled and has not ended. `attempt` is the one that runs, or that comes next."""

    __slots__ = ("attempt", "not_before_us", "scheduled", "scheduled_at_us")

    def __init__(self, scheduled: ActivityScheduled, at_us: int) -> None:
        self.scheduled = scheduled
        self.scheduled_at_us = at_us
        self.attempt = 1
        self.not_before_us = at_us

    def deadline_us(self) -> int | None:
        timeout = self.scheduled.schedule_to_close_us
        return None if timeout is None else self.scheduled_at_us + timeout


class RunState:
    """What a history amounts to. Read it freely; only `apply` changes it."""

    __slots__ = (
        "activities",
        "cancel_requested",
        "last_at_us",
        "next_event",
        "outcome",
        "phase",
        "recent_messages",
        "run_id",
        "started",
        "started_at_us",
        "timers",
        "updates",
        "waits",
    )

    def __init__(self, run_id: RunId) -> None:
        self.run_id = run_id
        self.phase = Phase.NEW
        self.next_event = 1
        self.last_at_us = 0
        self.started: WorkflowExecutionStarted | None = None
        self.started_at_us = 0
        self.outcome: TerminalEvent | None = None
        self.cancel_requested = False
        self.activities: dict[ActivityId, PendingActivity] = {}
        self.timers: dict[TimerId, TimerStarted] = {}
        self.waits: dict[WaitId, WaitStarted] = {}
        self.updates: dict[MessageId, WorkflowExecutionUpdateAccepted] = {}
        """Accepted, and not yet answered."""
        self.recent_messages: dict[MessageId, None] = {}

    def apply(self, event: Event, at_us: int) -> None:
        """Fold one event. Raises InvalidTransition, and then nothing is changed."""
        transition = TRANSITIONS.get(type(event))
        if transition is None or transition.phase is not self.phase:
            raise InvalidTransition(
                f"{type(event).__name__} cannot be event {self.next_event} of run {self.run_id}, "
                f"which is {self.phase.value}"
            )
        transition.apply(self, event, at_us)
        self.next_event += 1
        if at_us > self.last_at_us:
            self.last_at_us = at_us

    def wake_at_us(self) -> int | None:
        """When the run has to do something by itself: the earliest timer, retry or deadline. None: never."""
        times = [timer.fires_at_us for timer in self.timers.values()]
        for pending in self.activities.values():
            times.append(pending.not_before_us)
            deadline = pending.deadline_us()
            if deadline is not None:
                times.append(deadline)
        return min(times, default=None)

    def step(self) -> str | None:
        """What the run waits for, for the reader: the label or name of the newest thing that is open."""
        if self.waits:
            return next(reversed(self.waits.values())).label
        if self.timers:
            timer = next(reversed(self.timers.values()))
            return timer.label or "sleep"
        if self.activities:
            scheduled = next(reversed(self.activities.values())).scheduled
            return scheduled.label or scheduled.activity
        return None

    def refuse(self, why: str) -> InvalidTransition:
        return InvalidTransition(f"event {self.next_event} of run {self.run_id}: {why}")


def _started(state: RunState, event: WorkflowExecutionStarted, at_us: int) -> None:
    state.phase = Phase.OPEN
    state.started = event
    state.started_at_us = at_us


def _cancel_requested(state: RunState, event: WorkflowExecutionCancelRequested, at_us: int) -> None:
    _remember(state, event.message_id)
    state.cancel_requested = True


def _signaled(state: RunState, event: WorkflowExecutionSignaled, at_us: int) -> None:
    _remember(state, event.message_id)


def _update_accepted(state: RunState, event: WorkflowExecutionUpdateAccepted, at_us: int) -> None:
    _remember(state, event.message_id, forget=False)  # an open one takes no place
    state.updates[event.message_id] = event


def _update_completed(state: RunState, event: WorkflowExecutionUpdateCompleted, at_us: int) -> None:
    if state.updates.pop(event.message_id, None) is None:
        raise state.refuse(f"WorkflowExecutionUpdateCompleted for update {event.message_id!r}, which is not open")
    # However long it took: who asks again, since the answer was lost, does so from now on.
    state.recent_messages.pop(event.message_id, None)
    _remember(state, event.message_id)


def _message_unhandled(state: RunState, event: MessageUnhandled, at_us: int) -> None:
    message_id = getattr(event.message, "message_id", None)
    if message_id is not None:
        _remember(state, message_id, forget=False)


def _remember(state: RunState, message_id: MessageId, *, forget: bool = True) -> None:
    """At the end no other is forgotten for it: the mail that came too late is held against all of them."""
    recent = state.recent_messages
    if message_id in recent:
        raise state.refuse(f"message {message_id!r} is in the history already")
    if forget and len(recent) - len(state.updates) >= RECENT_MESSAGES:
        _forget_oldest(state)
    recent[message_id] = None


def _forget_oldest(state: RunState) -> None:
    """Open updates are passed over, and count as young."""
    recent = state.recent_messages
    while (oldest := next(iter(recent))) in state.updates:
        del recent[oldest]
        recent[oldest] = None
    del recent[oldest]


def _activity_scheduled(state: RunState, event: ActivityScheduled, at_us: int) -> None:
    if event.activity_id in state.activities:
        raise state.refuse(f"activity {event.activity_id} is scheduled already")
    state.activities[event.activity_id] = PendingActivity(event, at_us)


def _activity_closed(state: RunState, event: ActivityCompleted | ActivityFailed, at_us: int) -> None:
    pending = state.activities.get(event.activity_id)
    if pending is None or pending.attempt != event.attempt:
        raise state.refuse(
            f"{type(event).__name__} for attempt {event.attempt} of activity {event.activity_id}, {_is(pending)}"
        )
    del state.activities[event.activity_id]


def _activity_cancelled(state: RunState, event: ActivityCancelled, at_us: int) -> None:
    if state.activities.pop(event.activity_id, None) is None:
        raise state.refuse(f"ActivityCancelled for activity {event.activity_id}, which is not pending")


def _attempt_over(state: RunState, event: ActivityAttemptFailed | ActivityAttemptLost, at_us: int) -> None:
    pending = state.activities.get(event.activity_id)
    if pending is None or pending.attempt != event.attempt:
        raise state.refuse(
            f"{type(event).__name__} for attempt {event.attempt} of activity {event.activity_id}, {_is(pending)}"
        )
    pending.attempt += 1
    pending.not_before_us = event.retry_at_us


def _is(pending: PendingActivity | None) -> str:
    return "which is not pending" if pending is None else f"which is at attempt {pending.attempt}"


def _timer_started(state: RunState, event: TimerStarted, at_us: int) -> None:
    if event.timer_id in state.timers:
        raise state.refuse(f"timer {event.timer_id} runs already")
    state.timers[event.timer_id] = event


def _timer_fired(state: RunState, event: TimerFired, at_us: int) -> None:
    timer = state.timers.get(event.timer_id)
    if timer is None:
        raise state.refuse(f"TimerFired for timer {event.timer_id}, which does not run")
    if at_us < timer.fires_at_us:
        raise state.refuse(f"timer {event.timer_id} fired {timer.fires_at_us - at_us} us early")
    del state.timers[event.timer_id]


def _timer_cancelled(state: RunState, event: TimerCancelled, at_us: int) -> None:
    if state.timers.pop(event.timer_id, None) is None:
        raise state.refuse(f"TimerCancelled for timer {event.timer_id}, which does not run")


def _wait_started(state: RunState, event: WaitStarted, at_us: int) -> None:
    if event.wait_id in state.waits:
        raise state.refuse(f"wait {event.wait_id} has begun already")
    state.waits[event.wait_id] = event


def _wait_ended(state: RunState, event: WaitEnded, at_us: int) -> None:
    if state.waits.pop(event.wait_id, None) is None:
        raise state.refuse(f"WaitEnded for wait {event.wait_id}, which has not begun")


def _terminated(state: RunState, event: WorkflowExecutionTerminated, at_us: int) -> None:
    _remember(state, event.message_id, forget=False)
    _closed(state, event, at_us)


def _closed(state: RunState, event: TerminalEvent, at_us: int) -> None:
    state.phase = Phase.CLOSED
    state.outcome = event
    state.activities.clear()
    state.timers.clear()
    state.updates.clear()
    state.waits.clear()


class Transition(NamedTuple):
    phase: Phase
    """The phase that the run must be in."""
    apply: Callable[[RunState, Any, int], None]
    """Checks, then changes. The phase after it is the same, but for the first and the last event."""


TRANSITIONS: dict[type, Transition] = {
    WorkflowExecutionStarted: Transition(Phase.NEW, _started),  # -> OPEN
    WorkflowExecutionCancelRequested: Transition(Phase.OPEN, _cancel_requested),
    WorkflowExecutionSignaled: Transition(Phase.OPEN, _signaled),
    WorkflowExecutionUpdateAccepted: Transition(Phase.OPEN, _update_accepted),
    WorkflowExecutionUpdateCompleted: Transition(Phase.OPEN, _update_completed),
    MessageUnhandled: Transition(Phase.OPEN, _message_unhandled),
    ActivityScheduled: Transition(Phase.OPEN, _activity_scheduled),
    ActivityAttemptFailed: Transition(Phase.OPEN, _attempt_over),
    ActivityAttemptLost: Transition(Phase.OPEN, _attempt_over),
    ActivityCompleted: Transition(Phase.OPEN, _activity_closed),
    ActivityFailed: Transition(Phase.OPEN, _activity_closed),
    ActivityCancelled: Transition(Phase.OPEN, _activity_cancelled),
    TimerStarted: Transition(Phase.OPEN, _timer_started),
    TimerFired: Transition(Phase.OPEN, _timer_fired),
    TimerCancelled: Transition(Phase.OPEN, _timer_cancelled),
    WaitStarted: Transition(Phase.OPEN, _wait_started),
    WaitEnded: Transition(Phase.OPEN, _wait_ended),
    WorkflowExecutionCompleted: Transition(Phase.OPEN, _closed),  # -> CLOSED
    WorkflowExecutionFailed: Transition(Phase.OPEN, _closed),  # -> CLOSED
    WorkflowExecutionCancelled: Transition(Phase.OPEN, _closed),  # -> CLOSED
    WorkflowExecutionTerminated: Transition(Phase.OPEN, _terminated),  # -> CLOSED
}
