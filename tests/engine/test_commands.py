"""Every command in every situation of a run: the event it becomes and its effects, or a refusal of the turn."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import pytest

from engine.scripted import answering, fold, snapshot
from engine.situations import (
    A1,
    A2,
    FRESH,
    NOW,
    OOPS,
    OPEN,
    PENDING,
    SEEN,
    SITUATIONS,
    T1,
    T2,
    TIMERS,
    W1,
    W2,
    situation,
)
from outlast.engine import replay as replay_module
from outlast.engine.decide import COMMANDS, take_turn
from outlast.engine.run import InvalidTransition
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
from outlast.model.errors import InternalError
from outlast.model.events import (
    TERMINAL_EVENTS,
    ActivityCancelled,
    ActivityScheduled,
    CommandEvent,
    Event,
    TimerCancelled,
    TimerStarted,
    WaitEnded,
    WaitStarted,
    WorkflowExecutionCancelled,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)
from outlast.model.inputs import ActivityDeadlinePassed, CancelRequested, Input, TimerDue, UpdateRequested
from outlast.model.payloads import NO_ARGUMENTS, NULL, Arguments, Payload
from outlast.model.policies import RetryPolicy
from outlast.model.replies import Answered, Ended, Failed, Reply

INPUT = CancelRequested(FRESH)
ARGUMENTS = Arguments((Payload.from_json(b"[1, 2]"),), {"fast": Payload.from_json(b"true")})
POLICY = RetryPolicy(max_attempts=2)
FIVE = Payload.from_json(b"5")


class Row(NamedTuple):
    command: Command
    event: Event
    allowed: set[str]
    """The open situations in which the program may ask for it. In all others the turn fails."""
    dispatch: list[str] = []
    stop: list[str] = []
    alarms: list[tuple[int, Input]] = []
    replies: list[Reply] = []


TABLE: dict[str, Row] = {
    "schedule the same activity": Row(
        ScheduleActivity(activity_id=A1, activity="charge", arguments=NO_ARGUMENTS),
        ActivityScheduled(A1, "charge"),
        OPEN - PENDING,
        dispatch=[A1],
    ),
    "schedule another activity": Row(
        ScheduleActivity(
            activity_id=A2,
            activity="ship",
            arguments=ARGUMENTS,
            queue="trucks",
            label="by road",
            retry=POLICY,
            start_to_close_us=70,
            schedule_to_close_us=700,
        ),
        ActivityScheduled(A2, "ship", ARGUMENTS, "trucks", "by road", POLICY, 70, 700),
        OPEN,
        dispatch=[A2],
        alarms=[(NOW + 700, ActivityDeadlinePassed(A2))],
    ),
    "cancel the activity": Row(CancelActivity(activity_id=A1), ActivityCancelled(A1), PENDING, stop=[A1]),
    "cancel another activity": Row(CancelActivity(activity_id=A2), ActivityCancelled(A2), set()),
    "start the same timer": Row(
        StartTimer(timer_id=T1, delay_us=30),
        TimerStarted(T1, 30, NOW + 30),
        OPEN - TIMERS,
        alarms=[(NOW + 30, TimerDue(T1))],
    ),
    "start another timer": Row(
        StartTimer(timer_id=T2, delay_us=0, label="at once"),
        TimerStarted(T2, 0, NOW, "at once"),
        OPEN,
        alarms=[(NOW, TimerDue(T2))],
    ),
    "cancel the timer": Row(CancelTimer(timer_id=T1), TimerCancelled(T1), TIMERS),
    "cancel another timer": Row(CancelTimer(timer_id=T2), TimerCancelled(T2), set()),
    "begin the same wait": Row(StartWait(wait_id=W1, label="payment"), WaitStarted(W1, "payment"), OPEN - {"wait"}),
    "begin another wait": Row(StartWait(wait_id=W2, label="payment"), WaitStarted(W2, "payment"), OPEN),
    "end the wait": Row(EndWait(wait_id=W1), WaitEnded(W1), {"wait"}),
    "end another wait": Row(EndWait(wait_id=W2), WaitEnded(W2), set()),
    "answer the update": Row(
        CompleteUpdate(message_id=SEEN, result=FIVE),
        WorkflowExecutionUpdateCompleted(SEEN, FIVE),
        {"update is open"},
        replies=[Answered(SEEN, FIVE)],
    ),
    "fail the update": Row(
        CompleteUpdate(message_id=SEEN, failure=OOPS),
        WorkflowExecutionUpdateCompleted(SEEN, failure=OOPS),
        {"update is open"},
        replies=[Failed(SEEN, OOPS)],
    ),
    "answer another update": Row(CompleteUpdate(message_id=FRESH), WorkflowExecutionUpdateCompleted(FRESH), set()),
    "complete": Row(CompleteWorkflow(result=NULL), WorkflowExecutionCompleted(NULL), OPEN),
    "fail": Row(FailWorkflow(failure=OOPS), WorkflowExecutionFailed(OOPS), OPEN),
    "give up": Row(CancelWorkflow(), WorkflowExecutionCancelled(), OPEN),
}

PAIRS = [(where, what) for where in sorted(OPEN) for what in TABLE]


@pytest.mark.parametrize(("where", "what"), PAIRS, ids=[f"{where}-{what}" for where, what in PAIRS])
def test_every_command_is_defined_or_refused_in_every_situation(where: str, what: str) -> None:
    row = TABLE[what]
    state = situation(where)
    program = answering([row.command])
    if where not in row.allowed:
        with pytest.raises(InvalidTransition):
            take_turn(state, program, [INPUT], NOW)
        fed_only = [*SITUATIONS[where], (WorkflowExecutionCancelRequested(FRESH), NOW)]
        assert snapshot(state) == snapshot(fold(fed_only)), "the command that was refused changed something"
        return

    decision = take_turn(state, program, [INPUT], NOW)

    ends = isinstance(row.event, TERMINAL_EVENTS)
    assert decision.events == [WorkflowExecutionCancelRequested(FRESH), row.event]
    assert decision.dispatch == row.dispatch
    assert decision.stop == ([A1] if ends and where in PENDING else row.stop)
    assert decision.alarms == row.alarms
    replies = [Ended(SEEN)] if ends and where == "update is open" else row.replies
    assert decision.replies == {each.message_id: each for each in replies}
    assert decision.outcome == (row.event if ends else None)
    assert decision.taken == 1
    assert snapshot(state) == snapshot(fold([*SITUATIONS[where], *((each, NOW) for each in decision.events)]))


def test_the_tables_of_commands_name_every_command_and_nothing_else() -> None:
    commands = set(get_args(Command))
    assert set(COMMANDS) == commands
    assert set(replay_module._PAIRS) == commands


def test_every_command_event_belongs_to_one_command_by_fields_of_the_same_names() -> None:
    pairs = replay_module._PAIRS
    assert {pair.event for pair in pairs.values()} == set(get_args(CommandEvent))
    assert len({pair.event for pair in pairs.values()}) == len(pairs)
    for command, pair in pairs.items():
        shared = set(command.__struct_fields__) - {"source", "aliases"}
        assert shared <= set(pair.event.__struct_fields__), command


def test_these_tests_try_every_command_where_it_is_allowed() -> None:
    assert {type(row.command) for row in TABLE.values() if row.allowed} == set(COMMANDS)


def _identity(event: Event) -> object:
    """How an update came out may differ on replay."""
    return event.message_id if isinstance(event, WorkflowExecutionUpdateCompleted) else event


def test_replay_takes_each_command_for_the_event_that_it_became() -> None:
    for what, row in TABLE.items():
        same = [other for other, each in TABLE.items() if replay_module._same(row.command, each.event)]
        expected = [other for other, each in TABLE.items() if _identity(each.event) == _identity(row.event)]
        assert same == expected, what


def test_a_command_after_the_one_that_ends_the_run_fails_the_turn() -> None:
    program = answering([CompleteWorkflow(result=NULL), StartTimer(timer_id=T1, delay_us=1)])
    with pytest.raises(InvalidTransition, match=r"TimerStarted cannot be event 4 of run \w+, which is closed"):
        take_turn(situation("idle"), program, [INPUT], NOW)


def test_something_that_is_no_command_is_a_bug_of_ours() -> None:
    nonsense: Any = INPUT
    with pytest.raises(InternalError, match="CancelRequested is no command"):
        take_turn(situation("idle"), answering([nonsense]), [INPUT], NOW)


def test_an_activity_that_is_cancelled_in_the_turn_that_scheduled_it_never_starts() -> None:
    program = answering(
        [ScheduleActivity(activity_id=A1, activity="charge", arguments=NO_ARGUMENTS), CancelActivity(activity_id=A1)]
    )
    decision = take_turn(situation("idle"), program, [INPUT], NOW)
    assert decision.dispatch == []
    assert decision.stop == [A1]
    assert [type(each) for each in decision.events[1:]] == [ActivityScheduled, ActivityCancelled]


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (CompleteUpdate(message_id=FRESH, result=FIVE), Answered(FRESH, FIVE)),
        (CompleteUpdate(message_id=FRESH, failure=OOPS), Failed(FRESH, OOPS)),
    ],
)
def test_an_update_that_is_done_at_once_is_answered_once(command: CompleteUpdate, reply: Reply) -> None:
    state = situation("idle")
    decision = take_turn(state, answering([command]), [UpdateRequested(FRESH, "reprice")], NOW)
    assert decision.events == [
        WorkflowExecutionUpdateAccepted(FRESH, "reprice"),
        WorkflowExecutionUpdateCompleted(FRESH, command.result, command.failure),
    ]
    assert decision.replies == {FRESH: reply}
    assert state.updates == {}


def test_an_update_is_not_answered_twice() -> None:
    answer = CompleteUpdate(message_id=SEEN)
    with pytest.raises(InvalidTransition, match="update 'seen', which is not open"):
        take_turn(situation("update is open"), answering([answer, answer]), [INPUT], NOW)


def test_an_update_that_is_answered_before_the_run_ends_has_its_answer() -> None:
    program = answering([CompleteUpdate(message_id=SEEN, result=FIVE), CompleteWorkflow(result=NULL)])
    decision = take_turn(situation("update is open"), program, [INPUT], NOW)
    assert decision.replies == {SEEN: Answered(SEEN, FIVE)}


def test_an_update_cannot_be_answered_after_the_end() -> None:
    program = answering([CompleteWorkflow(result=NULL), CompleteUpdate(message_id=SEEN)])
    with pytest.raises(InvalidTransition, match="WorkflowExecutionUpdateCompleted cannot be event 5"):
        take_turn(situation("update is open"), program, [INPUT], NOW)


def test_the_place_in_the_code_is_no_part_of_the_history() -> None:
    command = StartTimer(timer_id=T1, delay_us=1, source="order.py:7")
    decision = take_turn(situation("idle"), answering([command]), [INPUT], NOW)
    assert decision.events[1] == TimerStarted(T1, 1, NOW + 1)
