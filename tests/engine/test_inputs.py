"""Every input in every situation of a run: what it becomes, what the program is fed, what may leave afterwards."""

from __future__ import annotations

from typing import NamedTuple, get_args

import pytest

from engine.scripted import RUN, STARTED, RunState, Scripted, answering, fold, snapshot
from engine.situations import (
    A1,
    A2,
    FRESH,
    HAS_SEEN,
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
from outlast.engine.decide import INPUTS, Decision, begin, close_with_mail, first_turn, resume_work, take_turn
from outlast.engine.run import RECENT_MESSAGES, InvalidTransition, Phase
from outlast.model.commands import CompleteUpdate, CompleteWorkflow, ScheduleActivity, StartTimer
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
    WorkflowExecutionSignaled,
    WorkflowExecutionTerminated,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
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
    QueryRequested,
    SignalReceived,
    TerminateRequested,
    TimerDue,
    UpdateRequested,
)
from outlast.model.payloads import NO_ARGUMENTS, NULL, Arguments, Payload
from outlast.model.replies import Accepted, Answered, Ended, Failed, Recorded, Refused, Reply


class Expected(NamedTuple):
    events: list[Event] = []
    dispatch: list[str] = []
    stop: list[str] = []
    alarms: list[tuple[int, Input]] = []
    replies: list[Reply] = []


NOTHING = Expected()
LOST = Failure("ActivityLost", "attempt 3 was lost: gone", FailureKind.LOST)
TIME_OVER = Failure("ActivityTimeout", "not done within its schedule-to-close timeout of 1000 us", FailureKind.TIMEOUT)
FATAL = Failure("builtins:ValueError", "bad card", non_retryable=True)

ARGUMENTS = Arguments((Payload.from_json(b"[1, 2]"),), {"fast": Payload.from_json(b"true")})
FIVE = Payload.from_json(b"5")


def _asked() -> Scripted:
    """A program that refuses one update, and knows the answer to one query."""
    return Scripted(refusals={"haggle": FATAL}, answers={"total": FIVE, "margin": OOPS})


def _each(situations: set[str], expected: Expected) -> dict[str, Expected]:
    return dict.fromkeys(situations, expected)


def _terminated(message_id: MessageId) -> dict[str, Expected]:
    end = WorkflowExecutionTerminated(message_id, "enough")
    return {
        where: Expected(
            [end],
            stop=[A1] if where in PENDING else [],
            replies=[Ended(SEEN)] if where == "update is open" else [],
        )
        for where in OPEN
    }


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
        _each(OPEN - HAS_SEEN, Expected([WorkflowExecutionCancelRequested(SEEN, "why not")])),
    ),
    "terminate": (TerminateRequested(FRESH, "enough"), _terminated(FRESH)),
    "terminate that was seen": (
        TerminateRequested(SEEN, "enough"),
        {where: expected for where, expected in _terminated(SEEN).items() if where not in HAS_SEEN},
    ),
    "signal": (
        SignalReceived(FRESH, "approve", ARGUMENTS),
        _each(OPEN, Expected([WorkflowExecutionSignaled(FRESH, "approve", ARGUMENTS)])),
    ),
    "signal that was seen": (
        SignalReceived(SEEN, "approve"),
        _each(OPEN - HAS_SEEN, Expected([WorkflowExecutionSignaled(SEEN, "approve")])),
    ),
    "update": (
        UpdateRequested(FRESH, "reprice", ARGUMENTS),
        _each(
            OPEN,
            Expected([WorkflowExecutionUpdateAccepted(FRESH, "reprice", ARGUMENTS)], replies=[Accepted(FRESH)]),
        ),
    ),
    "update that is refused": (
        UpdateRequested(FRESH, "haggle", ARGUMENTS),
        _each(OPEN, Expected(replies=[Refused(FRESH, FATAL)])),
    ),
    "update that was seen": (
        UpdateRequested(SEEN, "reprice"),
        {
            **_each(
                OPEN - HAS_SEEN,
                Expected([WorkflowExecutionUpdateAccepted(SEEN, "reprice")], replies=[Accepted(SEEN)]),
            ),
            **_each(HAS_SEEN, Expected(replies=[Recorded(SEEN)])),
            "update is open": Expected(replies=[Accepted(SEEN)]),
        },
    ),
    "update that was seen and would be refused now": (
        UpdateRequested(SEEN, "haggle"),
        {
            **_each(OPEN, Expected(replies=[Refused(SEEN, FATAL)])),
            **_each(HAS_SEEN, Expected(replies=[Recorded(SEEN)])),
            "update is open": Expected(replies=[Accepted(SEEN)]),
        },
    ),
    "query": (QueryRequested(FRESH, "total", ARGUMENTS), _each(OPEN, Expected(replies=[Answered(FRESH, FIVE)]))),
    "query that fails": (QueryRequested(FRESH, "margin"), _each(OPEN, Expected(replies=[Failed(FRESH, OOPS)]))),
}

PAIRS = [(where, what) for where in SITUATIONS for what in TABLE]


@pytest.mark.parametrize(("where", "what"), PAIRS, ids=[f"{where}-{what}" for where, what in PAIRS])
def test_every_input_is_defined_or_stale_in_every_situation(where: str, what: str) -> None:
    item, rows = TABLE[what]
    expected = rows.get(where, NOTHING)
    state, program = situation(where), _asked()
    before = snapshot(state)

    decision = take_turn(state, program, [item], NOW)

    assert decision.events == expected.events
    assert (decision.dispatch, decision.stop, decision.alarms) == expected[1:4]
    assert decision.replies == {each.message_id: each for each in expected.replies}
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


# --- signals, updates, queries --------------------------------------------------------------------------------------

PRICED = WorkflowExecutionUpdateAccepted(FRESH, "reprice")
REPRICE = UpdateRequested(FRESH, "reprice")


def test_a_program_is_asked_in_the_order_of_the_inputs_and_sees_what_came_before() -> None:
    program = _asked()
    inputs = [
        QueryRequested(MessageId("q1"), "total"),
        SignalReceived(MessageId("s"), "approve"),
        UpdateRequested(FRESH, "reprice", ARGUMENTS),
        QueryRequested(MessageId("q2"), "total", ARGUMENTS),
    ]
    decision = take_turn(situation("idle"), program, inputs, NOW)
    assert program.asked == [("total", NO_ARGUMENTS, 0), ("reprice", ARGUMENTS, 1), ("total", ARGUMENTS, 2)]
    assert [type(event) for event, _ in program.fed] == [WorkflowExecutionSignaled, WorkflowExecutionUpdateAccepted]
    assert list(decision.replies) == ["q1", FRESH, "q2"]
    assert decision.taken == 4


def test_signals_are_in_the_history_once_each_and_in_their_order() -> None:
    state, program = situation("idle"), Scripted()
    sent = [SignalReceived(MessageId(each), "tick") for each in "abcabc"]
    decision = take_turn(state, program, sent, NOW)
    assert decision.events == [WorkflowExecutionSignaled(MessageId(each), "tick") for each in "abc"]
    assert [event for event, _ in program.fed] == decision.events
    assert take_turn(state, program, sent, NOW).events == []


def test_an_update_asked_for_twice_in_one_turn_is_accepted_once() -> None:
    state, program = situation("idle"), Scripted()
    decision = take_turn(state, program, [REPRICE, REPRICE], NOW)
    assert decision.events == [PRICED]
    assert decision.replies == {FRESH: Accepted(FRESH)}
    assert (len(program.fed), len(program.asked)) == (1, 1)


def test_an_update_asked_for_again_in_the_turn_that_answers_it_at_once_has_its_answer() -> None:
    program = answering([CompleteUpdate(message_id=FRESH, result=FIVE)])
    decision = take_turn(situation("idle"), program, [REPRICE, REPRICE, REPRICE], NOW)
    assert decision.replies == {FRESH: Answered(FRESH, FIVE)}
    assert len(program.fed) == 1


@pytest.mark.parametrize("again", [0, 1])
def test_an_update_asked_for_again_in_the_turn_that_answers_it_has_its_answer(again: int) -> None:
    inputs: list[Input] = [CancelRequested(FRESH)]
    inputs.insert(again, UpdateRequested(SEEN, "reprice"))
    program = answering([CompleteUpdate(message_id=SEEN, failure=OOPS)])
    decision = take_turn(situation("update is open"), program, inputs, NOW)
    assert decision.replies == {SEEN: Failed(SEEN, OOPS)}


@pytest.mark.parametrize("end", [TerminateRequested(FRESH), CancelRequested(FRESH)])
def test_an_update_asked_for_again_in_the_turn_that_ends_the_run_hears_of_the_end(end: Input) -> None:
    program = answering([CompleteWorkflow(result=NULL)])
    decision = take_turn(situation("update is open"), program, [UpdateRequested(SEEN, "reprice"), end], NOW)
    assert decision.replies == {SEEN: Ended(SEEN)}


def test_all_open_updates_hear_of_the_end() -> None:
    program = answering([CompleteWorkflow(result=NULL)])
    state = situation("update is open")
    decision = take_turn(state, program, [REPRICE], NOW)
    assert decision.events == [PRICED, WorkflowExecutionCompleted(NULL)]
    assert decision.replies == {FRESH: Ended(FRESH), SEEN: Ended(SEEN)}
    assert state.updates == {}


def test_an_update_that_is_refused_may_be_asked_for_again_and_is_then_put_to_the_program_again() -> None:
    state, program = situation("idle"), Scripted(refusals={"reprice": FATAL})

    def allow(event: InputEvent, at_us: int) -> list[ScheduleActivity]:
        program.refusals = {}
        return []

    decision = take_turn(state, program, [REPRICE, REPRICE], NOW)
    assert (decision.events, decision.replies) == ([], {FRESH: Refused(FRESH, FATAL)})
    program.script = allow
    decision = take_turn(state, program, [REPRICE, SignalReceived(MessageId("s"), "approve"), REPRICE], NOW)
    assert decision.events == [WorkflowExecutionSignaled(MessageId("s"), "approve"), PRICED]
    assert decision.replies == {FRESH: Accepted(FRESH)}
    assert len(program.asked) == 4


@pytest.mark.parametrize("where", sorted(HAS_SEEN))
def test_an_update_that_was_seen_is_not_put_to_the_program_again(where: str) -> None:
    program = _asked()
    take_turn(situation(where), program, [UpdateRequested(SEEN, "haggle")], NOW)
    assert (program.fed, program.asked) == ([], [])


def test_an_update_that_is_open_is_not_done_twice_whatever_came_in_between() -> None:
    state, program = situation("update is open"), Scripted()
    again = UpdateRequested(SEEN, "reprice")
    many: list[Input] = [SignalReceived(MessageId(f"s{number}"), "tick") for number in range(RECENT_MESSAGES + 1)]
    decision = take_turn(state, program, [*many, again], NOW)
    assert (len(decision.events), decision.replies) == (len(many), {SEEN: Accepted(SEEN)})
    program.script = lambda event, at_us: [CompleteUpdate(message_id=SEEN, result=FIVE)]
    decision = take_turn(state, program, [CancelRequested(FRESH)], NOW)
    assert decision.replies == {SEEN: Answered(SEEN, FIVE)}
    decision = take_turn(state, program, [again], NOW)
    assert (decision.events, decision.replies) == ([], {SEEN: Recorded(SEEN)})


@pytest.mark.parametrize("item", [REPRICE, QueryRequested(FRESH, "total")])
def test_an_error_of_the_program_that_is_asked_escapes_and_changes_nothing(item: Input) -> None:
    class Broken(Scripted):
        def refuse_update(self, update: str, arguments: Arguments) -> Failure | None:
            raise LookupError("no such order")

        def answer_query(self, query: str, arguments: Arguments) -> Payload | Failure:
            raise LookupError("no such order")

    state = situation("idle")
    before = snapshot(state)
    with pytest.raises(LookupError, match="no such order"):
        take_turn(state, Broken(), [item], NOW)
    assert snapshot(state) == before


def test_questions_behind_the_end_are_left() -> None:
    program = answering([CompleteWorkflow(result=NULL)])
    inputs = [
        CancelRequested(FRESH),
        QueryRequested(MessageId("q"), "total"),
        UpdateRequested(MessageId("u"), "reprice"),
    ]
    decision = take_turn(situation("idle"), program, inputs, NOW)
    assert (decision.taken, decision.replies, program.asked) == (1, {}, [])


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
    assert decision.replies == {}
    assert bool(alarms) is (where in TIMERS or where in deadlines)
    assert (decision.events, decision.stop, decision.outcome) == ([], [], None)
    assert snapshot(state) == before


# --- mail at the edge -----------------------------------------------------------------------------------------------


def _closing(*inputs: Input) -> tuple[RunState, Decision]:
    state = situation("cancel requested")
    program = answering([CompleteWorkflow(result=NULL)])
    decision = take_turn(state, program, [inputs[0]], NOW)
    close_with_mail(state, decision, inputs[1:])  # type: ignore[arg-type]
    return state, decision


def test_mail_that_came_while_a_run_closed_is_kept_before_the_end() -> None:
    late = [CancelRequested(MessageId("late-1"), "please"), TerminateRequested(MessageId("late-2"))]
    state, decision = _closing(CancelRequested(FRESH), *late)
    assert decision.events == [
        WorkflowExecutionCancelRequested(FRESH),
        MessageUnhandled(late[0]),
        MessageUnhandled(late[1]),
        WorkflowExecutionCompleted(NULL),
    ]
    assert snapshot(state) == snapshot(
        fold([*SITUATIONS["cancel requested"], *((each, NOW) for each in decision.events)])
    )


def test_late_mail_that_is_in_the_history_already_is_not_kept_again() -> None:
    _, decision = _closing(CancelRequested(FRESH), CancelRequested(FRESH), CancelRequested(SEEN))
    assert decision.events == [WorkflowExecutionCancelRequested(FRESH), WorkflowExecutionCompleted(NULL)]


def test_a_termination_sent_twice_is_in_the_history_once() -> None:
    _, decision = _closing(TerminateRequested(FRESH), TerminateRequested(FRESH))
    assert decision.events == [WorkflowExecutionTerminated(FRESH)]


def test_late_reports_of_attempts_are_dropped() -> None:
    late: list[Input] = [AttemptSucceeded(A1, 1, T, NULL), AttemptLost(A1, 1, "gone", 0.0)]
    _, decision = _closing(CancelRequested(FRESH), *late)
    assert decision.events == [WorkflowExecutionCancelRequested(FRESH), WorkflowExecutionCompleted(NULL)]


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


def test_late_signals_are_kept_in_their_order_and_once() -> None:
    late = [SignalReceived(MessageId(each), "tick", ARGUMENTS) for each in "bab"]
    state, decision = _closing(SignalReceived(FRESH, "tick"), *late, SignalReceived(FRESH, "tick"))
    assert decision.events == [
        WorkflowExecutionSignaled(FRESH, "tick"),
        MessageUnhandled(late[0]),
        MessageUnhandled(late[1]),
        WorkflowExecutionCompleted(NULL),
    ]
    assert decision.replies == {}
    assert snapshot(state) == snapshot(
        fold([*SITUATIONS["cancel requested"], *((each, NOW) for each in decision.events)])
    )


def test_late_questions_are_answered_with_the_end_and_are_not_kept() -> None:
    update, query = MessageId("u"), MessageId("q")
    mail = [UpdateRequested(update, "reprice"), QueryRequested(query, "total"), SignalReceived(MessageId("s"), "tick")]
    state, decision = _closing(CancelRequested(FRESH), *mail, *mail)
    assert decision.events[1:] == [MessageUnhandled(mail[2]), WorkflowExecutionCompleted(NULL)]
    assert decision.replies == {update: Ended(update), query: Ended(query)}
    assert update not in state.recent_messages


@pytest.mark.parametrize(
    ("where", "reply"), [("update is open", Ended(SEEN)), ("update is over", Recorded(SEEN)), ("idle", Ended(SEEN))]
)
def test_an_update_that_comes_again_too_late_hears_what_became_of_it(where: str, reply: Reply) -> None:
    state = situation(where)
    decision = take_turn(state, answering([CompleteWorkflow(result=NULL)]), [CancelRequested(FRESH)], NOW)
    for _ in range(2):
        close_with_mail(state, decision, [UpdateRequested(SEEN, "reprice")])
    assert decision.events == [WorkflowExecutionCancelRequested(FRESH), WorkflowExecutionCompleted(NULL)]
    assert decision.replies == {SEEN: reply}


def test_an_answer_of_the_turn_that_ends_a_run_is_kept_when_the_question_comes_again() -> None:
    query = QueryRequested(MessageId("q"), "total")
    program = answering([CompleteUpdate(message_id=FRESH, result=FIVE), CompleteWorkflow(result=NULL)])
    state = situation("idle")
    decision = take_turn(state, program, [query, REPRICE], NOW)
    close_with_mail(state, decision, [REPRICE, query])
    assert decision.replies == {FRESH: Answered(FRESH, FIVE), query.message_id: Answered(query.message_id, NULL)}
    assert decision.events[1:] == [WorkflowExecutionUpdateCompleted(FRESH, FIVE), WorkflowExecutionCompleted(NULL)]


def test_a_late_signal_under_the_id_of_an_update_that_was_open_does_not_break_the_history() -> None:
    state = situation("update is open")
    many: list[Input] = [SignalReceived(MessageId(f"s{number}"), "tick") for number in range(RECENT_MESSAGES)]
    program = Scripted(lambda event, at_us: [CompleteWorkflow(result=NULL)] if len(program.fed) == len(many) else [])
    decision = take_turn(state, program, many, NOW)
    close_with_mail(state, decision, [SignalReceived(SEEN, "tick"), SignalReceived(FRESH, "tick")])
    assert decision.events[-2:] == [MessageUnhandled(SignalReceived(FRESH, "tick")), WorkflowExecutionCompleted(NULL)]
    fold([*SITUATIONS["update is open"], *((each, NOW) for each in decision.events)])


def test_a_message_that_comes_again_while_the_thousandth_ends_the_run_does_not_break_the_history() -> None:
    """Late mail stands before the wish to terminate that made it late, and there the run has forgotten less."""
    state = situation("cancel requested")
    many: list[Input] = [SignalReceived(MessageId(f"s{number}"), "tick") for number in range(RECENT_MESSAGES - 1)]
    decision = take_turn(state, Scripted(), [*many, TerminateRequested(FRESH)], NOW)
    close_with_mail(state, decision, [CancelRequested(SEEN), SignalReceived(MessageId("late"), "tick")])
    assert decision.events[-2:] == [
        MessageUnhandled(SignalReceived(MessageId("late"), "tick")),
        WorkflowExecutionTerminated(FRESH),
    ]
    folded = fold([*SITUATIONS["cancel requested"], *((each, NOW) for each in decision.events)])
    assert snapshot(state) == snapshot(folded)


def test_a_late_query_is_not_taken_for_an_update() -> None:
    _, decision = _closing(CancelRequested(FRESH), QueryRequested(SEEN, "total"))
    assert decision.replies == {SEEN: Ended(SEEN)}


@pytest.mark.parametrize("where", sorted(OPEN))
def test_a_termination_needs_no_program(where: str) -> None:
    """So a run whose code is nowhere, or cannot be replayed, can be ended from its folded history alone."""

    def gone(event: InputEvent, at_us: int) -> list[ScheduleActivity]:
        raise AssertionError("the program was asked")

    state = situation(where)
    decision = take_turn(state, Scripted(gone), [TerminateRequested(FRESH)], NOW)
    assert decision.events == [WorkflowExecutionTerminated(FRESH)]
    assert state.phase is Phase.CLOSED
