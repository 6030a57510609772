"""A history told to a reader: events in, lines out.

Theory of operation
===================
Each event is a line: its type, and what `DETAILS` says about it. Ids mean nothing to a reader, so activities, timers
and waits are called by their label or name; where one name stands for several of a kind, the id is added.

That an attempt began is not an event of its own (it would cost a commit): the time is in the event that tells how
the attempt ended. From there it is taken, and told as `ActivityStarted` at the time when it happened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from outlast.cli.texts import failure_text, one_line, payload_text
from outlast.cli.times import on_the_clock
from outlast.model.durations import format_duration
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


class Line(NamedTuple):
    at_us: int
    text: str


def narrate(history: Sequence[HistoryEvent]) -> list[Line]:
    """The lines of a whole history, in the order in which things happened."""
    # Stable: what happened at one time stays in the order of the history.
    return sorted(Narrator().tell(history), key=lambda line: line.at_us)


class Narrator:
    """Tells a history that grows, piece by piece, in the order in which it was recorded."""

    def __init__(self) -> None:
        self._story: _Story | None = None

    def tell(self, items: Sequence[HistoryEvent]) -> list[Line]:
        """The lines of the events that follow those that were told before."""
        if not items:
            return []
        if self._story is None:
            self._story = _Story(items[0].at_us)
        story = self._story
        story.learn(items)
        lines: list[Line] = []
        for item in items:
            if (started := story.attempt_began(item)) is not None:
                lines.append(started)
            kind = type(item.event)
            detail = DETAILS[kind](item.event, story)
            lines.append(Line(item.at_us, f"{kind.__name__}: {detail}" if detail else kind.__name__))
        return lines


class _Story:
    """What has to be known of the history so far to tell one event."""

    def __init__(self, began_us: int) -> None:
        self._began_us = began_us
        self._names: dict[tuple[str, str], str] = {}
        self._uses: Counter[tuple[str, str]] = Counter()
        self._ready_us: dict[str, int] = {}
        """When an activity was scheduled, or its last attempt ended: its next attempt began no sooner."""

    def learn(self, items: Sequence[HistoryEvent]) -> None:
        for item in items:
            match item.event:
                case ActivityScheduled(activity_id=id_, activity=activity, label=label):
                    self._call("activity", id_, label or activity)
                    self._ready_us[id_] = item.at_us
                case TimerStarted(timer_id=id_, label=label):
                    self._call("timer", id_, label or "sleep")
                case WaitStarted(wait_id=id_, label=label):
                    self._call("wait", id_, label)
                case WorkflowExecutionUpdateAccepted(message_id=id_, update=update):
                    self._call("update", id_, update)
                case _:
                    pass

    def _call(self, kind: str, id_: str, name: str) -> None:
        self._names[kind, id_] = one_line(name)
        self._uses[kind, one_line(name)] += 1

    def name(self, kind: str, id_: str) -> str:
        name = self._names.get((kind, id_), "?")
        return name if self._uses[kind, name] == 1 else f"{name} #{one_line(id_, 60)}"

    def clock(self, at_us: int) -> str:
        return on_the_clock(at_us, self._began_us)

    def attempt_began(self, item: HistoryEvent) -> Line | None:
        """The line for the beginning of the attempt whose end `item` records."""
        event = item.event
        if not isinstance(event, ActivityCompleted | ActivityFailed | ActivityAttemptFailed | ActivityAttemptLost):
            return None
        id_ = event.activity_id
        ready_us = self._ready_us.get(id_, item.at_us)
        self._ready_us[id_] = item.at_us
        if isinstance(event, ActivityAttemptLost) or event.started_at_us is None:
            return None
        # The clock may have been set meanwhile; what happened in between is told in between all the same.
        at_us = min(max(event.started_at_us, ready_us), item.at_us)
        return Line(at_us, f"ActivityStarted: {self.name('activity', id_)}{_attempt(event.attempt)}")


def _attempt(attempt: int) -> str:
    return f" (attempt {attempt})" if attempt > 1 else ""


def _reason(event: Any, story: _Story) -> str:
    return one_line(event.reason)


def _activity(event: Any, story: _Story) -> str:
    return story.name("activity", event.activity_id)


def _activity_scheduled(event: ActivityScheduled, story: _Story) -> str:
    activity = f" (activity {one_line(event.activity)})" if event.label not in (None, event.activity) else ""
    queue = f" on queue {one_line(event.queue)}" if event.queue is not None else ""
    return f"{_activity(event, story)}{activity}{queue}"


def _activity_completed(event: ActivityCompleted, story: _Story) -> str:
    return f"{_activity(event, story)} → {payload_text(event.result)}"


def _activity_failed(event: ActivityFailed, story: _Story) -> str:
    return f"{_activity(event, story)}: {failure_text(event.failure)} (attempt {event.attempt}, the last)"


def _attempt_failed(event: ActivityAttemptFailed, story: _Story) -> str:
    return f"{_activity(event, story)}: {failure_text(event.failure)} {_next_attempt(event, story)}"


def _attempt_lost(event: ActivityAttemptLost, story: _Story) -> str:
    reason = f": {one_line(event.reason)}" if event.reason else ""
    return f"{_activity(event, story)}{reason} {_next_attempt(event, story)}"


def _next_attempt(event: ActivityAttemptFailed | ActivityAttemptLost, story: _Story) -> str:
    return f"(attempt {event.attempt}; the next one at {story.clock(event.retry_at_us)})"


def _timer(event: TimerFired | TimerCancelled, story: _Story) -> str:
    return story.name("timer", event.timer_id)


def _timer_started(event: TimerStarted, story: _Story) -> str:
    name = story.name("timer", event.timer_id)
    return f"{name} {format_duration(event.delay_us)} (fires at {story.clock(event.fires_at_us)})"


def _wait(event: WaitStarted | WaitEnded, story: _Story) -> str:
    return story.name("wait", event.wait_id)


def _signaled(event: WorkflowExecutionSignaled, story: _Story) -> str:
    return one_line(event.signal)


def _update_accepted(event: WorkflowExecutionUpdateAccepted, story: _Story) -> str:
    return story.name("update", event.message_id)


def _update_completed(event: WorkflowExecutionUpdateCompleted, story: _Story) -> str:
    came_out = payload_text(event.result) if event.failure is None else failure_text(event.failure)
    return f"{story.name('update', event.message_id)} → {came_out}"


def _completed(event: WorkflowExecutionCompleted, story: _Story) -> str:
    return f"→ {payload_text(event.result)}"


def _failed(event: WorkflowExecutionFailed, story: _Story) -> str:
    return failure_text(event.failure)


def _unhandled(event: MessageUnhandled, story: _Story) -> str:
    return f"{type(event.message).__name__} (it came when the workflow had ended)"


DETAILS: dict[type[Event], Callable[[Any, _Story], str]] = {
    WorkflowExecutionStarted: lambda event, story: "",
    WorkflowExecutionCancelRequested: _reason,
    WorkflowExecutionSignaled: _signaled,
    WorkflowExecutionUpdateAccepted: _update_accepted,
    WorkflowExecutionUpdateCompleted: _update_completed,
    WorkflowExecutionCompleted: _completed,
    WorkflowExecutionFailed: _failed,
    WorkflowExecutionCancelled: _reason,
    WorkflowExecutionTerminated: _reason,
    ActivityScheduled: _activity_scheduled,
    ActivityCompleted: _activity_completed,
    ActivityFailed: _activity_failed,
    ActivityCancelled: _activity,
    ActivityAttemptFailed: _attempt_failed,
    ActivityAttemptLost: _attempt_lost,
    TimerStarted: _timer_started,
    TimerFired: _timer,
    TimerCancelled: _timer,
    WaitStarted: _wait,
    WaitEnded: _wait,
    MessageUnhandled: _unhandled,
}
"""What is said about an event, after its type. Every type of event is here (a test sees to it)."""
