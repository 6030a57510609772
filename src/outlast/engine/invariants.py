"""What every history must look like, checked by a second set of books.

Theory of operation
===================
`check_history` reads a history from its first event to its last and keeps books of its own: every id that was ever
used, what became of it, and when. It shares no code with `engine.run`, because its use is to catch that fold, the
decisions, and the stores in a mistake; the simulator and the property tests call it after every turn. It therefore
remembers more than the fold, which forgets what is over. `check_state` compares a fold with these books.

The rules, in the order in which an event is held against them:
- positions count from 1 without a gap, and times never go back;
- the first event is WorkflowExecutionStarted, and only the first; nothing follows the event that ends the run;
- a command follows the input that caused it, after nothing but other commands of the same answer, and has its
  time (a run that was started by somebody else has its first commands later); mail that came while the run closed
  may stand before the command that ends it, and nothing else may follow such mail;
- no id of an activity, timer or wait is used twice, and no message is in the history twice;
- an activity has at most one end, none without a schedule; its attempts count from 1 without a gap, are no more than
  its retry policy allows, and none is announced for a time past its schedule-to-close timeout;
- an update that was accepted is answered at most once, and none is that was not;
- a timer fires at most once, never early, never after it was cancelled; a wait ends at most once;
- a run ends as cancelled only after it had been asked to cancel.

Refused: to check what a program asks for against what is recorded. That takes the program; see `engine.replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NoReturn, TypeVar, assert_never

from outlast.engine.run import Phase, RunState
from outlast.model.errors import InternalError
from outlast.model.events import (
    TERMINAL_EVENTS,
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityCancelled,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Event,
    HistoryEvent,
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
from outlast.model.ids import ActivityId, MessageId, TimerId, WaitId
from outlast.model.inputs import CancelRequested, SignalReceived, TerminateRequested

K = TypeVar("K")


class InvariantViolation(InternalError):
    """A history, or a state folded from it, that breaks one of the rules at the top of this file."""


def check_history(events: Sequence[HistoryEvent]) -> None:
    """Hold a history, or the beginning of one, against the rules. InvariantViolation names the first broken one."""
    _keep_books(events)


def check_state(state: RunState, events: Sequence[HistoryEvent]) -> None:
    """Check the history, and then that `state` is what it amounts to. Raises InvariantViolation."""
    books = _keep_books(events)
    _compare("next_event", state.next_event, len(events) + 1)
    _compare("phase", state.phase, books.phase())
    _compare("started", state.started, events[0].event if events else None)
    _compare("started_at_us", state.started_at_us, events[0].at_us if events else 0)
    _compare("last_at_us", state.last_at_us, events[-1].at_us if events else 0)
    _compare("outcome", state.outcome, books.outcome)
    _compare("cancel_requested", state.cancel_requested, books.cancel_requested)
    pending = {each: (at.attempt, at.not_before_us) for each, at in state.activities.items()}
    _compare("pending activities", pending, books.pending())
    _compare("running timers", set(state.timers), books.still_open(books.timers))
    _compare("open waits", set(state.waits), books.still_open(books.waits))
    _compare("open updates", set(state.updates), books.still_open(books.updates))
    _compare("open updates that it has forgotten", set(state.updates) - set(state.recent_messages), frozenset[str]())
    _compare("messages that are not in the history", set(state.recent_messages) - books.messages, frozenset[str]())


def _compare(what: str, state: object, history: object) -> None:
    if state != history:
        raise InvariantViolation(f"the state says {what} = {state!r}, but by the history it is {history!r}")


class _Role(Enum):
    """What an event is to its neighbours."""

    START = "start"
    INPUT = "input"
    COMMAND = "command"
    NOTE = "note"
    LATE_MAIL = "late mail"


class _Life(Enum):
    """What became of a timer or a wait."""

    OPEN = "open"
    OVER = "over"
    CANCELLED = "cancelled"


class _Activity:
    __slots__ = ("attempt", "end", "not_before_us", "scheduled", "scheduled_at_us")

    def __init__(self, scheduled: ActivityScheduled, at_us: int) -> None:
        self.scheduled = scheduled
        self.scheduled_at_us = at_us
        self.attempt = 1
        self.not_before_us = at_us
        self.end: str | None = None
        """The kind of the event that ended it."""


def _keep_books(events: Sequence[HistoryEvent]) -> _Books:
    books = _Books()
    for index, item in enumerate(events):
        books.enter(index + 1, item)
    return books


class _Books:
    """Everything that happened so far. Nothing is ever taken out."""

    def __init__(self) -> None:
        self.item: HistoryEvent | None = None
        self.answers: _Role | None = None
        """What the last event was, not counting late mail: what a command would be the answer to."""
        self.late_mail = False
        self.at_us = 0
        self.outcome: TerminalEvent | None = None
        self.cancel_requested = False
        self.activities: dict[ActivityId, _Activity] = {}
        self.timers: dict[TimerId, _Life] = {}
        self.timers_due_us: dict[TimerId, int] = {}
        self.waits: dict[WaitId, _Life] = {}
        self.updates: dict[MessageId, _Life] = {}
        self.messages: set[MessageId] = set()

    def phase(self) -> Phase:
        if self.item is None:
            return Phase.NEW
        return Phase.OPEN if self.outcome is None else Phase.CLOSED

    def pending(self) -> dict[ActivityId, tuple[int, int]]:
        """Attempt and its earliest time of every activity that has not ended. Nothing is open after the end."""
        if self.outcome is not None:
            return {}
        return {each: (at.attempt, at.not_before_us) for each, at in self.activities.items() if at.end is None}

    def still_open(self, lives: dict[K, _Life]) -> set[K]:
        if self.outcome is not None:
            return set()
        return {each for each, life in lives.items() if life is _Life.OPEN}

    def enter(self, position: int, item: HistoryEvent) -> None:
        role = _role(item.event)
        last_at_us = self.at_us
        self.item, self.at_us = item, item.at_us
        if item.position != position:
            self.broken(f"it is at position {item.position}, but {position - 1} events stand before it")
        if item.at_us < last_at_us:
            self.broken(f"its time {item.at_us} is before {last_at_us}, that of the event before it")
        if (position == 1) is not (role is _Role.START):
            self.broken("the first event of a history, and only the first, is WorkflowExecutionStarted")
        if self.outcome is not None:
            self.broken(f"it follows {type(self.outcome).__name__}, which ended the run")
        self.check_neighbours(role, last_at_us)
        self.check_event(item.event)

    def check_neighbours(self, role: _Role, last_at_us: int) -> None:
        """A command belongs to the answer to an input; late mail stands before the end, and before nothing else."""
        assert self.item is not None
        if role is _Role.LATE_MAIL:
            self.late_mail = True
            return
        if self.late_mail and not isinstance(self.item.event, TERMINAL_EVENTS):
            self.broken("only the end of the run may follow a MessageUnhandled")
        if role is _Role.COMMAND:
            if self.answers is _Role.NOTE:
                self.broken("it is a command, but it follows a note, to which no program answers")
            if self.answers is not _Role.START and self.at_us != last_at_us:
                self.broken(f"it has another time ({self.at_us}) than what caused it ({last_at_us})")
        self.answers = role

    def check_event(self, event: Event) -> None:
        match event:
            case WorkflowExecutionStarted():
                pass
            case WorkflowExecutionCancelRequested(message_id=message_id):
                self.message(message_id)
                self.cancel_requested = True
            case WorkflowExecutionSignaled(message_id=message_id):
                self.message(message_id)
            case WorkflowExecutionUpdateAccepted(message_id=message_id):
                self.message(message_id)
                self.begin(self.updates, message_id, "update")
            case WorkflowExecutionUpdateCompleted(message_id=message_id):
                self.end(self.updates, message_id, "update", _Life.OVER)
            case MessageUnhandled(message=CancelRequested() | TerminateRequested() | SignalReceived() as message):
                self.message(message.message_id)
            case MessageUnhandled():
                self.broken("it holds what nobody was told is in the history: the report of an attempt, or a question")
            case ActivityScheduled():
                self.activity_scheduled(event)
            case ActivityCompleted() | ActivityFailed() | ActivityCancelled():
                self.activity_ended(event)
            case ActivityAttemptFailed() | ActivityAttemptLost():
                self.attempt_ended(event)
            case TimerStarted() | TimerFired() | TimerCancelled():
                self.timer(event)
            case WaitStarted(wait_id=wait_id):
                self.begin(self.waits, wait_id, "wait")
            case WaitEnded(wait_id=wait_id):
                self.end(self.waits, wait_id, "wait", _Life.OVER)
            case WorkflowExecutionTerminated(message_id=message_id):
                self.message(message_id)
                self.outcome = event
            case WorkflowExecutionCancelled():
                if not self.cancel_requested:
                    self.broken("nobody had asked the run to cancel")
                self.outcome = event
            case WorkflowExecutionCompleted() | WorkflowExecutionFailed():
                self.outcome = event
            case _:
                assert_never(event)

    # --- activities ---------------------------------------------------------------------------------------------------

    def activity_scheduled(self, event: ActivityScheduled) -> None:
        if event.activity_id in self.activities:
            self.broken(f"activity {event.activity_id!r} was scheduled before")
        self.activities[event.activity_id] = _Activity(event, self.at_us)

    def open_activity(self, activity_id: ActivityId) -> _Activity:
        activity = self.activities.get(activity_id)
        if activity is None:
            self.broken(f"activity {activity_id!r} was never scheduled")
        if activity.end is not None:
            self.broken(f"activity {activity_id!r} had ended already, with {activity.end}")
        return activity

    def activity_ended(self, event: ActivityCompleted | ActivityFailed | ActivityCancelled) -> None:
        activity = self.open_activity(event.activity_id)
        if not isinstance(event, ActivityCancelled):
            self.check_attempt(activity, event.attempt)
        activity.end = type(event).__name__

    def attempt_ended(self, event: ActivityAttemptFailed | ActivityAttemptLost) -> None:
        activity = self.open_activity(event.activity_id)
        self.check_attempt(activity, event.attempt)
        limit = activity.scheduled.retry.max_attempts
        if limit and event.attempt >= limit:
            self.broken(f"another attempt is announced after number {event.attempt}, but {limit} are allowed")
        if event.retry_at_us < self.at_us:
            self.broken(f"the next attempt is announced for {event.retry_at_us}, before this one ended")
        timeout_us = activity.scheduled.schedule_to_close_us
        if timeout_us is not None and event.retry_at_us >= activity.scheduled_at_us + timeout_us:
            self.broken("the next attempt is announced for a time past the schedule-to-close timeout")
        activity.attempt = event.attempt + 1
        activity.not_before_us = event.retry_at_us

    def check_attempt(self, activity: _Activity, attempt: int) -> None:
        if attempt != activity.attempt:
            self.broken(f"it is about attempt {attempt}, but the activity is at attempt {activity.attempt}")

    # --- timers, waits, messages --------------------------------------------------------------------------------------

    def timer(self, event: TimerStarted | TimerFired | TimerCancelled) -> None:
        match event:
            case TimerStarted(timer_id, delay_us, fires_at_us):
                self.begin(self.timers, timer_id, "timer")
                if fires_at_us != self.at_us + delay_us:
                    self.broken(f"it is due at {fires_at_us}, which is not {delay_us} us after {self.at_us}")
                self.timers_due_us[timer_id] = fires_at_us
            case TimerFired(timer_id):
                self.end(self.timers, timer_id, "timer", _Life.OVER)
                if self.at_us < self.timers_due_us[timer_id]:
                    self.broken(f"timer {timer_id!r} fired {self.timers_due_us[timer_id] - self.at_us} us early")
            case TimerCancelled(timer_id):
                self.end(self.timers, timer_id, "timer", _Life.CANCELLED)
            case _:
                assert_never(event)

    def begin(self, lives: dict[K, _Life], key: K, what: str) -> None:
        if key in lives:
            self.broken(f"{what} {key!r} was begun before")
        lives[key] = _Life.OPEN

    def end(self, lives: dict[K, _Life], key: K, what: str, life: _Life) -> None:
        before = lives.get(key)
        if before is None:
            self.broken(f"{what} {key!r} was never begun")
        if before is not _Life.OPEN:
            self.broken(f"{what} {key!r} is {before.value} already")
        lives[key] = life

    def message(self, message_id: MessageId) -> None:
        if message_id in self.messages:
            self.broken(f"message {message_id!r} is in the history already")
        self.messages.add(message_id)

    def broken(self, rule: str) -> NoReturn:
        assert self.item is not None
        raise InvariantViolation(
            f"event {self.item.position} ({type(self.item.event).__name__}) breaks an invariant: {rule}. "
            "This is a bug in Outlast: please report it, with the history if you can."
        )


def _role(event: Event) -> _Role:
    match event:
        case WorkflowExecutionStarted():
            return _Role.START
        case (
            WorkflowExecutionCancelRequested()
            | WorkflowExecutionSignaled()
            | WorkflowExecutionUpdateAccepted()
            | ActivityCompleted()
            | ActivityFailed()
            | TimerFired()
        ):
            return _Role.INPUT
        case MessageUnhandled():
            return _Role.LATE_MAIL
        case ActivityAttemptFailed() | ActivityAttemptLost() | WorkflowExecutionTerminated():
            return _Role.NOTE
        case (
            ActivityScheduled()
            | ActivityCancelled()
            | TimerStarted()
            | TimerCancelled()
            | WaitStarted()
            | WaitEnded()
            | WorkflowExecutionUpdateCompleted()
            | WorkflowExecutionCompleted()
            | WorkflowExecutionFailed()
            | WorkflowExecutionCancelled()
        ):
            return _Role.COMMAND
        case _:
            assert_never(event)
