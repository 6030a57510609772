"""Every input in every situation of a run: what it becomes, what the program is fed, what may leave afterwards."""

from __future__ import annotations

from typing import NamedTuple, get_args

import pytest

from engine.scripted import RUN, STARTED, RunState, Scripted, answering, fold, snapshot
from engine.situations import (
    A1,
    A2,
    FRESH,
    NOW,
    OOPS,
    OPEN,
    PENDING,
    PENDING_AT_1,
    PENDING_AT_2,
    SEEN,
    SITUATIONS,
    T1,
    T2,
    TIMERS,
    T,
    situation,
)
from outlast.engine.decide import INPUTS, begin, close_with_mail, first_turn, resume_work, take_turn
from outlast.engine.run import InvalidTransition, Phase
from outlast.model.commands import CompleteWorkflow, ScheduleActivity, StartTimer
from outlast.model.errors import InternalError
from outlast.model.events import (
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Event,
    InputEvent,
    MessageUnhandled,
    TimerFired,
    TimerStarted,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionCompleted,
    WorkflowExecutionTerminated,
)
from outlast.model.failures import Failure, FailureKind
from outlast.model.ids import MessageId
from outlast.model.inputs import (
    ActivityDeadlinePassed,
    AttemptFailed,
    AttemptLost,
    AttemptSucceeded,
    CancelRequested,
    Input,
    Message,
    TerminateRequested,
    TimerDue,
)
from outlast.model.payloads import NO_ARGUMENTS, NULL


class Expected(NamedTuple):
    events: list[Event] = []
    dispatch: list[str] = []
    stop: list[str] = []
    alarms: list[tuple[int, Input]] = []


NOTHING = Expected()
LOST = Failure("ActivityLost", "attempt 3 was lost: gone", FailureKind.LOST)
TIME_OVER = Failure("ActivityTimeout", "not done within its schedule-to-close timeout of 1000 us", FailureKind.TIMEOUT)
FATAL = Failure("builtins:ValueError", "bad card", non_retryable=True)


def _each(situations: set[str], expected: Expected) -> dict[str, Expected]:
    return dict.fromkeys(situations, expected)


def _terminated(message_id: MessageId) -> dict[str, Expected]:
    end = WorkflowExecutionTerminated(message_id, "enough")
    return {where: Expected([end], stop=[A1] if where in PENDING else []) for where in OPEN}


RETRY_1 = Expected([ActivityAttemptFailed(A1, 1, T, OOPS, NOW + 5_000)], dispatch=[A1])
RETRY_2 = Expected([ActivityAttemptFailed(A1, 2, T, OOPS, NOW + 5_000)], dispatch=[A1])
FINAL_1 = Expected([ActivityFailed(A1, OOPS, 1, T)])

TABLE: dict[str, tuple[Input, dict[str, Expected]]] = {
    "result of attempt 1": (
        AttemptSucceeded(A1, 1, T, NULL),
        _each(PENDING_AT_1, Expected([ActivityCompleted(A1, T, NULL, 1)])),
    ),
    "result of attempt 2": (
        AttemptSucceeded(A1, 2, T, NULL),
        _each(PENDING_AT_2, Expected([ActivityCompleted(A1, T, NULL, 2)])),
    ),
    "result of attempt 3": (AttemptSucceeded(A1, 3, T, NULL), {}),
    "result of an unknown activity": (AttemptSucceeded(A2, 1, T, NULL), {}),
    "failure of attempt 1": (
        AttemptFailed(A1, 1, T, OOPS, 0.5),
        {**_each(PENDING_AT_1, RETRY_1), "is past a deadline": FINAL_1},
    ),
    "failure of attempt 2": (AttemptFailed(A1, 2, T, OOPS, 0.5), _each(PENDING_AT_2, RETRY_2)),
    "failure of an unknown activity": (AttemptFailed(A2, 1, T, OOPS, 0.5), {}),
    "failure for good": (
        AttemptFailed(A1, 1, T, FATAL, 0.5),
        _each(PENDING_AT_1, Expected([ActivityFailed(A1, FATAL, 1, T)])),
    ),
    "loss of attempt 1": (
        AttemptLost(A1, 1, "gone", 0.5),
        {
            **_each(PENDING_AT_1, Expected([ActivityAttemptLost(A1, 1, NOW, "gone")], dispatch=[A1])),
            "is past a deadline": Expected(
                [ActivityFailed(A1, Failure("ActivityLost", "attempt 1 was lost: gone", FailureKind.LOST), 1)]
            ),
        },
    ),
    "loss of attempt 2": (
        AttemptLost(A1, 2, "gone", 0.5),
        _each(PENDING_AT_2, Expected([ActivityAttemptLost(A1, 2, NOW + 5_000, "gone")], dispatch=[A1])),
    ),
    "loss of an unknown activity": (AttemptLost(A2, 1, "gone", 0.5), {}),
    "deadline": (
        ActivityDeadlinePassed(A1),
        {
            "has a deadline": Expected(alarms=[(T + 10_000, ActivityDeadlinePassed(A1))]),
            "is past a deadline": Expected([ActivityFailed(A1, TIME_OVER, 1)], stop=[A1]),
        },
    ),
    "deadline of an unknown activity": (ActivityDeadlinePassed(A2), {}),
    "timer": (
        TimerDue(T1),
        {
            "timer is due": Expected([TimerFired(T1)]),
            "timer runs": Expected(alarms=[(T + 9_000, TimerDue(T1))]),
        },
    ),
    "unknown timer": (TimerDue(T2), {}),
    "cancel": (
        CancelRequested(FRESH, "why not"),
        _each(OPEN, Expected([WorkflowExecutionCancelRequested(FRESH, "why not")])),
    ),
    "cancel that was seen": (
        CancelRequested(SEEN, "why not"),
        _each(OPEN - {"cancel requested"}, Expected([WorkflowExecutionCancelRequested(SEEN, "why not")])),
    ),
    "terminate": (TerminateRequested(FRESH, "enough"), _terminated(FRESH)),
    "terminate that was seen": (
        TerminateRequested(SEEN, "enough"),
        {where: expected for where, expected in _terminated(SEEN).items() if where != "cancel requested"},
    ),
}

PAIRS = [(where, what) for where in SITUATIONS for what in TABLE]


@pytest.mark.parametrize(("where", "what"), PAIRS, ids=[f"{where}-{what}" for where, what in PAIRS])
def test_every_input_is_defined_or_stale_in_every_situation(where: str, what: str) -> None:
    item, rows = TABLE[what]
    expected = rows.get(where, NOTHING)
    state, program = situation(where), Scripted()
    before = snapshot(state)

    decision = take_turn(state, program, [item], NOW)

    assert decision.events == expected.events
    assert (decision.dispatch, decision.stop, decision.alarms) == expected[1:]
    assert decision.first_event == before["next_event"]
    assert decision.at_us == NOW
    assert decision.taken == (1 if where in OPEN else 0)
    assert decision.outcome == next((e for e in expected.events if isinstance(e, WorkflowExecutionTerminated)), None)
    assert program.fed == [(event, NOW) for event in expected.events if isinstance(event, get_args(InputEvent))]
    assert not any(program.replayed)
    folded = fold([*SITUATIONS[where], *((event, NOW) for event in expected.events)])
    assert snapshot(state) == snapshot(folded)
    if not expected.events:
        assert snapshot(state) == before


def test_the_table_of_inputs_names_every_input_and_nothing_else() -> None:
    assert set(INPUTS) == set(get_args(Input))
    assert set(get_args(Message)) < set(get_args(Input))


def test_these_tests_try_every_input_where_it_does_something() -> None:
    assert {type(item) for item, rows in TABLE.values() if rows} == set(INPUTS)


def test_something_that_is_no_input_is_a_bug_of_ours_and_changes_nothing() -> None:
    state, program = situation("attempt 1"), Scripted()
    before = snapshot(state)
    with pytest.raises(InternalError, match="TimerStarted is no input of a run"):
        take_turn(state, program, [TimerStarted(T1, 1, 1)], NOW)  # type: ignore[list-item]
    assert snapshot(state) == before
    assert program.fed == []


# --- turns ----------------------------------------------------------------------------------------------------------


def test_the_same_input_twice_in_one_turn_counts_once() -> None:
    state, program = situation("attempt 1"), Scripted()
    done = AttemptSucceeded(A1, 1, T, NULL)
    decision = take_turn(state, program, [done, done], NOW)
    assert decision.events == [ActivityCompleted(A1, T, NULL, 1)]
    assert decision.taken == 2
    assert len(program.fed) == 1


def test_a_cancel_request_sent_twice_is_in_the_history_once() -> None:
    state, program = situation("idle"), Scripted()
    twice = [CancelRequested(FRESH), CancelRequested(FRESH)]
    assert take_turn(state, program, twice, NOW).events == [WorkflowExecutionCancelRequested(FRESH)]
    assert take_turn(state, program, twice, NOW).events == []
    assert len(program.fed) == 1


def test_answers_stand_after_the_input_that_caused_them() -> None:
    state = fold([*SITUATIONS["attempt 1"], (TimerStarted(T1, 500, T + 500), T)])
    program = answering(
        [ScheduleActivity(activity_id=A2, activity="ship", arguments=NO_ARGUMENTS)],
        [StartTimer(timer_id=T2, delay_us=9)],
    )
    decision = take_turn(state, program, [TimerDue(T1), AttemptSucceeded(A1, 1, T, NULL)], NOW)
    assert decision.events == [
        TimerFired(T1),
        ActivityScheduled(A2, "ship"),
        ActivityCompleted(A1, T, NULL, 1),
        TimerStarted(T2, 9, NOW + 9),
    ]
    assert decision.dispatch == [A2]
    assert decision.alarms == [(NOW + 9, TimerDue(T2))]
    assert decision.stop == []
    assert (decision.taken, decision.outcome) == (2, None)


def test_two_attempts_that_end_in_one_turn_are_followed_by_one() -> None:
    state = situation("attempt 1")
    ends = [AttemptLost(A1, 1, "gone", 0.0), AttemptFailed(A1, 2, T, OOPS, 0.0)]
    decision = take_turn(state, Scripted(), ends, NOW)
    assert [type(each) for each in decision.events] == [ActivityAttemptLost, ActivityAttemptFailed]
    assert decision.dispatch == [A1]


def test_an_activity_that_ends_in_the_turn_that_announced_its_next_attempt_is_not_started_again() -> None:
    ends: list[Input] = [AttemptLost(A1, 1, "gone", 0.0), AttemptSucceeded(A1, 2, T, NULL)]
    decision = take_turn(situation("attempt 1"), Scripted(), ends, NOW)
    assert [type(each) for each in decision.events] == [ActivityAttemptLost, ActivityCompleted]
    assert decision.dispatch == []


def test_a_clock_that_was_set_back_does_not_set_back_a_history() -> None:
    state = situation("cancel requested")
    decision = take_turn(state, Scripted(), [CancelRequested(FRESH)], T - 1_000_000)
    assert decision.at_us == T + 10
    assert state.last_at_us == T + 10


def test_a_timer_that_goes_off_early_by_a_clock_set_back_is_set_again() -> None:
    state = situation("timer runs")
    decision = take_turn(state, Scripted(), [TimerDue(T1)], T + 8_999)
    assert decision.events == []
    assert decision.alarms == [(T + 9_000, TimerDue(T1))]
    decision = take_turn(state, Scripted(), [TimerDue(T1)], T + 9_000)
    assert decision.events == [TimerFired(T1)]


def test_inputs_after_the_end_are_left_and_are_not_fed() -> None:
    state = situation("attempt 1")
    program = answering([CompleteWorkflow(result=NULL)])
    inputs = [AttemptSucceeded(A1, 1, T, NULL), CancelRequested(FRESH), TimerDue(T1)]
    decision = take_turn(state, program, inputs, NOW)
    assert decision.taken == 1
    assert decision.outcome == WorkflowExecutionCompleted(NULL)
    assert decision.events == [ActivityCompleted(A1, T, NULL, 1), decision.outcome]
    assert len(program.fed) == 1


def test_what_still_runs_when_a_run_ends_is_told_to_stop() -> None:
    state = situation("attempt 1")
    program = answering(
        [ScheduleActivity(activity_id=A2, activity="ship", arguments=NO_ARGUMENTS), CompleteWorkflow(result=NULL)]
    )
    decision = take_turn(state, program, [CancelRequested(FRESH)], NOW)
    assert decision.stop == [A1, A2]
    assert decision.dispatch == []
    assert state.phase is Phase.CLOSED
    assert not state.activities


def test_an_error_of_the_program_escapes() -> None:
    def broken(event: InputEvent, at_us: int) -> list[ScheduleActivity]:
        raise LookupError("no such order")

    with pytest.raises(LookupError, match="no such order"):
        take_turn(situation("idle"), Scripted(broken), [CancelRequested(FRESH)], NOW)


# --- the first turn -------------------------------------------------------------------------------------------------


def test_a_run_begins_with_its_start_and_the_first_commands_at_one_time() -> None:
    state, program = (
        RunState(RUN),
        answering([ScheduleActivity(activity_id=A1, activity="charge", arguments=NO_ARGUMENTS)]),
    )
    decision = begin(state, program, STARTED, T)
    assert decision.events == [STARTED, ActivityScheduled(A1, "charge")]
    assert (decision.first_event, decision.at_us, decision.dispatch) == (1, T, [A1])
    assert program.fed == [(STARTED, T)]
    assert snapshot(state) == snapshot(fold([(STARTED, T), (ActivityScheduled(A1, "charge"), T)]))


def test_a_run_cannot_begin_twice() -> None:
    state = situation("idle")
    before = snapshot(state)
    with pytest.raises(InvalidTransition, match="WorkflowExecutionStarted cannot be event 2"):
        begin(state, Scripted(), STARTED, NOW)
    assert snapshot(state) == before


def test_a_run_that_waited_for_its_first_turn_is_fed_the_time_of_its_start() -> None:
    state, program = situation("idle"), answering([StartTimer(timer_id=T1, delay_us=100)])
    decision = first_turn(state, program, NOW)
    assert program.fed == [(STARTED, T)]
    assert decision.events == [TimerStarted(T1, 100, NOW + 100)]
    assert (decision.first_event, decision.at_us) == (2, NOW)
    assert decision.alarms == [(NOW + 100, TimerDue(T1))]


# --- a new owner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", sorted(OPEN))
def test_a_new_owner_asks_for_everything_that_a_run_waits_for(where: str) -> None:
    state = situation(where)
    before = snapshot(state)
    decision = take_turn(state, Scripted(), [], NOW)
    resume_work(state, decision)
    assert decision.dispatch == ([A1] if where in PENDING else [])
    alarms: list[tuple[int, Input]] = [(timer.fires_at_us, TimerDue(T1)) for timer in state.timers.values()]
    deadlines = {"has a deadline": T + 10_000, "is past a deadline": T + 1_000}
    if where in deadlines:
        alarms = [(deadlines[where], ActivityDeadlinePassed(A1))]
    assert decision.alarms == alarms
    assert bool(alarms) is (where in TIMERS or where in deadlines)
    assert (decision.events, decision.stop, decision.outcome) == ([], [], None)
    assert snapshot(state) == before


# --- mail at the edge -----------------------------------------------------------------------------------------------


def _closing(*inputs: Input) -> tuple[RunState, list[Event]]:
    state = situation("cancel requested")
    program = answering([CompleteWorkflow(result=NULL)])
    decision = take_turn(state, program, [inputs[0]], NOW)
    close_with_mail(state, decision, inputs[1:])  # type: ignore[arg-type]
    return state, decision.events


def test_mail_that_came_while_a_run_closed_is_kept_before_the_end() -> None:
    late = [CancelRequested(MessageId("late-1"), "please"), TerminateRequested(MessageId("late-2"))]
    state, events = _closing(CancelRequested(FRESH), *late)
    assert events == [
        WorkflowExecutionCancelRequested(FRESH),
        MessageUnhandled(late[0]),
        MessageUnhandled(late[1]),
        WorkflowExecutionCompleted(NULL),
    ]
    assert snapshot(state) == snapshot(fold([*SITUATIONS["cancel requested"], *((each, NOW) for each in events)]))


def test_late_mail_that_is_in_the_history_already_is_not_kept_again() -> None:
    _, events = _closing(CancelRequested(FRESH), CancelRequested(FRESH), CancelRequested(SEEN))
    assert events == [WorkflowExecutionCancelRequested(FRESH), WorkflowExecutionCompleted(NULL)]


def test_a_termination_sent_twice_is_in_the_history_once() -> None:
    _, events = _closing(TerminateRequested(FRESH), TerminateRequested(FRESH))
    assert events == [WorkflowExecutionTerminated(FRESH)]


def test_late_reports_of_attempts_are_dropped() -> None:
    late: list[Input] = [AttemptSucceeded(A1, 1, T, NULL), AttemptLost(A1, 1, "gone", 0.0)]
    _, events = _closing(CancelRequested(FRESH), *late)
    assert events == [WorkflowExecutionCancelRequested(FRESH), WorkflowExecutionCompleted(NULL)]


def test_more_mail_may_come_while_the_closing_commit_is_repeated() -> None:
    state = situation("idle")
    decision = take_turn(state, answering([CompleteWorkflow(result=NULL)]), [CancelRequested(FRESH)], NOW)
    for number in range(2):
        close_with_mail(state, decision, [CancelRequested(MessageId(f"late-{number}"))])
    assert [type(each).__name__ for each in decision.events] == [
        "WorkflowExecutionCancelRequested",
        "MessageUnhandled",
        "MessageUnhandled",
        "WorkflowExecutionCompleted",
    ]
    assert state.next_event == 6


@pytest.mark.parametrize("where", sorted(OPEN))
def test_a_termination_needs_no_program(where: str) -> None:
    """So a run whose code is nowhere, or cannot be replayed, can be ended from its folded history alone."""

    def gone(event: InputEvent, at_us: int) -> list[ScheduleActivity]:
        raise AssertionError("the program was asked")

    state = situation(where)
    decision = take_turn(state, Scripted(gone), [TerminateRequested(FRESH)], NOW)
    assert decision.events == [WorkflowExecutionTerminated(FRESH)]
    assert state.phase is Phase.CLOSED
