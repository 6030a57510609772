"""Replay: rebuild a run from its history, and find out if the code still does what it did.

The fold and the program are taken through the events in order, exactly as live. The commands with which the program
answers a fed event must be the command events that follow it, one by one: the same kind, the same id, the same name.
Arguments are not compared: a value that is computed a little differently breaks nothing that is recorded.

The first difference raises NondeterminismError. The state and the program are then of no more use; the history is
not touched, so the run goes on when the code is put right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from outlast.engine.program import Program
from outlast.engine.run import InvalidTransition, RunState
from outlast.model.commands import (
    CancelActivity,
    CancelTimer,
    CancelWorkflow,
    Command,
    CompleteUpdate,
    CompleteWorkflow,
    EndWait,
    FailWorkflow,
    ScheduleActivity,
    StartTimer,
    StartWait,
)
from outlast.model.errors import InternalError, NondeterminismError
from outlast.model.events import (
    INPUT_EVENTS,
    NOTE_EVENTS,
    ActivityCancelled,
    ActivityScheduled,
    Event,
    HistoryEvent,
    MessageUnhandled,
    TimerCancelled,
    TimerStarted,
    WaitEnded,
    WaitStarted,
    WorkflowExecutionCancelled,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionTerminated,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)

_INPUTS = frozenset(INPUT_EVENTS)
_NOTES = frozenset(NOTE_EVENTS)


def replay(state: RunState, program: Program, history: Iterable[HistoryEvent]) -> None:
    """Fold `history` into the new `state`, and bring the new `program` to where it was.

    A history that holds nothing but the start is folded and not fed: the run has not had its first turn yet.
    It may be terminated before that turn, which needs no program: then nothing in the history answers the start.
    Raises NondeterminismError, InvalidTransition (the history is broken), and what the program raises.
    """
    events = iter(history)
    asked: deque[Command] = deque()
    unfed: HistoryEvent | None = None
    answered = False
    for item in events:
        event = item.event
        kind = type(event)
        if item.position != state.next_event:
            raise InvalidTransition(
                f"the history of run {state.run_id} has event {item.position} where {state.next_event} was expected: "
                "rows of its journal are missing or out of order"
            )
        if unfed is not None:
            asked.extend(program.feed(unfed.event, unfed.at_us, replaying=True))  # type: ignore[arg-type]
            unfed = None
        if kind in _INPUTS or kind in _NOTES:
            if asked and kind is WorkflowExecutionTerminated and not answered:
                asked.clear()  # terminated before its first turn
            # Mail that came while the run closed was put before the command that ends it.
            if asked and kind is not MessageUnhandled:
                raise _diverged(state, program, item, asked[0])
            state.apply(event, item.at_us)
            if kind in _INPUTS:
                unfed = item
        else:
            if not asked:
                raise _diverged(state, program, item, None)
            command = asked.popleft()
            if not _same(command, event):
                raise _diverged(state, program, item, command)
            answered = True
            state.apply(event, item.at_us)
    if unfed is not None and state.next_event > 2:
        asked.extend(program.feed(unfed.event, unfed.at_us, replaying=True))  # type: ignore[arg-type]
    if asked:
        raise _diverged(state, program, None, asked[0])


class _Pair(NamedTuple):
    event: type[Event]
    identity: tuple[str, ...]
    """Fields that must be equal. They have the same names in the command and the event."""


_PAIRS: dict[type[Command], _Pair] = {
    ScheduleActivity: _Pair(ActivityScheduled, ("activity", "activity_id")),
    CancelActivity: _Pair(ActivityCancelled, ("activity_id",)),
    StartTimer: _Pair(TimerStarted, ("timer_id",)),
    CancelTimer: _Pair(TimerCancelled, ("timer_id",)),
    StartWait: _Pair(WaitStarted, ("wait_id",)),
    EndWait: _Pair(WaitEnded, ("wait_id",)),
    CompleteUpdate: _Pair(WorkflowExecutionUpdateCompleted, ("message_id",)),
    CompleteWorkflow: _Pair(WorkflowExecutionCompleted, ()),
    FailWorkflow: _Pair(WorkflowExecutionFailed, ()),
    CancelWorkflow: _Pair(WorkflowExecutionCancelled, ()),
}


def _same(command: Command, event: Event) -> bool:
    pair = _PAIRS.get(type(command))
    if pair is None:
        raise InternalError(f"{type(command).__name__} is no command, but the program asked for it")
    if type(event) is not pair.event:
        return False
    if isinstance(command, ScheduleActivity) and getattr(event, "activity", None) in command.aliases:
        return command.activity_id == getattr(event, "activity_id", None)
    return all(getattr(command, field) == getattr(event, field) for field in pair.identity)


# --- the error, side by side ----------------------------------------------------------------------------------------


def _diverged(
    state: RunState, program: Program, recorded: HistoryEvent | None, attempted: Command | None
) -> NondeterminismError:
    position = state.next_event
    started = state.started
    name = f"{started.workflow}/{started.workflow_id}" if started is not None else "?"
    left = "(the history ends here)" if recorded is None else describe_event(recorded.event)
    if attempted is not None:
        right = _describe_command(attempted)
        where = attempted.source
    else:
        right = "(nothing: the code waits)"
        where = program.whereabouts()
    lines = [
        f"Run {name} ({state.run_id}) cannot be replayed: at event {position} the code does something else "
        "than what is recorded.",
        f"    recorded:  {left}",
        f"    attempted: {right}" + (f"    at {where}" if where else ""),
        "The workflow's code was changed in a way that this run cannot follow, or it depends on something that is "
        "not recorded (a clock, a random number, a global, the order of a set).",
        "Nothing was written. The run stays open and goes on when the code does again what is recorded.",
    ]
    return NondeterminismError("\n".join(lines))


def describe_event(event: Event | CompleteUpdate) -> str:
    """One event in a few words: its kind, its name, its id."""
    words = [type(event).__name__]
    words += [
        str(value) for field in ("activity", "label", "signal", "update") if (value := getattr(event, field, None))
    ]
    for field in ("activity_id", "timer_id", "wait_id"):
        value = getattr(event, field, None)
        if value is not None:
            words.append(f"#{value}")
    if isinstance(event, CompleteUpdate | WorkflowExecutionUpdateAccepted | WorkflowExecutionUpdateCompleted):
        words.append(f"#{event.message_id}")
    return " ".join(words)


def _describe_command(command: Command) -> str:
    words = describe_event(command).split(" ", 1)  # type: ignore[arg-type]
    return " ".join([_PAIRS[type(command)].event.__name__, *words[1:]])
