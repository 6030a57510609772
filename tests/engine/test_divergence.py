"""Replay of a history with code that was changed: the error shows what is recorded beside what was attempted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from engine.scripted import RUN, STARTED, Scripted, answering, history, snapshot
from engine.situations import A1, A2, FRESH, OOPS, SEEN, T1, T2, W1, W2, T
from outlast.engine.replay import describe_event, replay
from outlast.engine.run import InvalidTransition, Phase, RunState
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
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityCancelled,
    ActivityCompleted,
    ActivityScheduled,
    Event,
    MessageUnhandled,
    TimerCancelled,
    TimerFired,
    TimerStarted,
    WaitEnded,
    WaitStarted,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionCompleted,
    WorkflowExecutionSignaled,
    WorkflowExecutionTerminated,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
    decode_events,
)
from outlast.model.ids import MessageId
from outlast.model.inputs import CancelRequested, SignalReceived, TerminateRequested
from outlast.model.payloads import NO_ARGUMENTS, NULL, Arguments, Payload

Answers = Sequence[Sequence[Command]]
Turns = list[tuple[int, Sequence[Event]]]

CHARGE = ScheduleActivity(activity_id=A1, activity="charge", arguments=NO_ARGUMENTS, source="order.py:10")
SHIP = ScheduleActivity(activity_id=A2, activity="ship", arguments=NO_ARGUMENTS, source="order.py:11")
SLEEP = StartTimer(timer_id=T1, delay_us=60, source="order.py:12")
WAIT = StartWait(wait_id=W1, label="approval", source="order.py:13")
DONE = CompleteWorkflow(result=NULL, source="order.py:20")

CHARGED = ActivityCompleted(A1, T, NULL)
SLEPT = TimerStarted(T1, 60, T + 60)
COMPLETED = WorkflowExecutionCompleted(NULL)

SEQUENCE: Turns = [
    (T, [STARTED, ActivityScheduled(A1, "charge")]),
    (T + 1, [CHARGED, ActivityScheduled(A2, "ship"), SLEPT]),
    (T + 2, [ActivityCompleted(A2, T, NULL), COMPLETED]),
]
"""Charge; then ship and sleep; then done."""

SIGNAL = WorkflowExecutionSignaled(FRESH, "approve")
UPDATE = WorkflowExecutionUpdateAccepted(SEEN, "reprice")
ANSWERED = WorkflowExecutionUpdateCompleted(SEEN, NULL)
ANSWER = CompleteUpdate(message_id=SEEN, source="order.py:30")

OPEN: Turns = SEQUENCE[:2]

WAITS = "order.py:42, in fulfil"


class Case(NamedTuple):
    turns: Turns
    answers: Answers
    position: int
    recorded: str
    attempted: str


CASES: dict[str, Case] = {
    "another activity": Case(
        SEQUENCE,
        [[ScheduleActivity(activity_id=A1, activity="refund", arguments=NO_ARGUMENTS, source="order.py:99")]],
        2,
        "ActivityScheduled charge #a1",
        "ActivityScheduled refund #a1    at order.py:99",
    ),
    "another id": Case(
        SEQUENCE,
        [[ScheduleActivity(activity_id=A2, activity="charge", arguments=NO_ARGUMENTS, source="order.py:99")]],
        2,
        "ActivityScheduled charge #a1",
        "ActivityScheduled charge #a2    at order.py:99",
    ),
    "another order": Case(
        SEQUENCE,
        [[CHARGE], [SLEEP, SHIP], [DONE]],
        4,
        "ActivityScheduled ship #a2",
        "TimerStarted #t1    at order.py:12",
    ),
    "a timer instead of an activity": Case(
        SEQUENCE,
        [[SLEEP]],
        2,
        "ActivityScheduled charge #a1",
        "TimerStarted #t1    at order.py:12",
    ),
    "an activity instead of a timer": Case(
        SEQUENCE,
        [[CHARGE], [SHIP, ScheduleActivity(activity_id=A1, activity="nap", arguments=NO_ARGUMENTS)], [DONE]],
        5,
        "TimerStarted #t1",
        "ActivityScheduled nap #a1",
    ),
    "a missing command": Case(
        SEQUENCE,
        [[CHARGE], [SHIP], [DONE]],
        5,
        "TimerStarted #t1",
        f"(nothing: the code waits)    at {WAITS}",
    ),
    "all commands missing": Case(
        SEQUENCE,
        [],
        2,
        "ActivityScheduled charge #a1",
        f"(nothing: the code waits)    at {WAITS}",
    ),
    "an extra command in the middle of an answer": Case(
        SEQUENCE,
        [[CHARGE], [SHIP, WAIT, SLEEP], [DONE]],
        5,
        "TimerStarted #t1",
        "WaitStarted approval #w1    at order.py:13",
    ),
    "an extra command at the end of an answer": Case(
        SEQUENCE,
        [[CHARGE], [SHIP, SLEEP, WAIT], [DONE]],
        6,
        "ActivityCompleted #a2",
        "WaitStarted approval #w1    at order.py:13",
    ),
    "an extra command before a note about an attempt": Case(
        [*SEQUENCE[:1], (T + 1, [ActivityAttemptLost(A1, 1, T + 1)])],
        [[CHARGE, WAIT]],
        3,
        "ActivityAttemptLost #a1",
        "WaitStarted approval #w1    at order.py:13",
    ),
    "an extra command in the last turn": Case(
        OPEN,
        [[CHARGE], [SHIP, SLEEP, WAIT]],
        6,
        "(the history ends here)",
        "WaitStarted approval #w1    at order.py:13",
    ),
    "an answer to the last event, where there was none": Case(
        [*SEQUENCE[:1], (T + 1, [WorkflowExecutionCancelRequested(FRESH)])],
        [[CHARGE], [CancelActivity(activity_id=A1, source="order.py:5")]],
        4,
        "(the history ends here)",
        "ActivityCancelled #a1    at order.py:5",
    ),
    "it completes earlier": Case(
        SEQUENCE,
        [[CHARGE], [DONE]],
        4,
        "ActivityScheduled ship #a2",
        "WorkflowExecutionCompleted    at order.py:20",
    ),
    "it completes while the history is open": Case(
        OPEN,
        [[CHARGE], [SHIP, SLEEP, DONE]],
        6,
        "(the history ends here)",
        "WorkflowExecutionCompleted    at order.py:20",
    ),
    "it completes later": Case(
        SEQUENCE,
        [[CHARGE], [SHIP, SLEEP], []],
        7,
        "WorkflowExecutionCompleted",
        f"(nothing: the code waits)    at {WAITS}",
    ),
    "it does something before it completes": Case(
        SEQUENCE,
        [[CHARGE], [SHIP, SLEEP], [CancelTimer(timer_id=T1, source="order.py:19"), DONE]],
        7,
        "WorkflowExecutionCompleted",
        "TimerCancelled #t1    at order.py:19",
    ),
    "it fails where it completed": Case(
        SEQUENCE,
        [[CHARGE], [SHIP, SLEEP], [FailWorkflow(failure=OOPS, source="order.py:21")]],
        7,
        "WorkflowExecutionCompleted",
        "WorkflowExecutionFailed    at order.py:21",
    ),
    "it gives up where it completed": Case(
        SEQUENCE,
        [[CHARGE], [SHIP, SLEEP], [CancelWorkflow(source="order.py:22")]],
        7,
        "WorkflowExecutionCompleted",
        "WorkflowExecutionCancelled    at order.py:22",
    ),
    "commands after the end": Case(
        SEQUENCE,
        [[CHARGE], [SHIP, SLEEP], [DONE, WAIT]],
        8,
        "(the history ends here)",
        "WaitStarted approval #w1    at order.py:13",
    ),
    "commands that were never recorded before a termination": Case(
        [*SEQUENCE[:1], (T + 1, [WorkflowExecutionTerminated(FRESH, "enough")])],
        [[CHARGE, WAIT]],
        3,
        "WorkflowExecutionTerminated",
        "WaitStarted approval #w1    at order.py:13",
    ),
    "an extra command before a signal": Case(
        [*SEQUENCE[:1], (T + 1, [SIGNAL])],
        [[CHARGE, WAIT]],
        3,
        "WorkflowExecutionSignaled approve",
        "WaitStarted approval #w1    at order.py:13",
    ),
    "an extra command before an update": Case(
        [*SEQUENCE[:1], (T + 1, [UPDATE])],
        [[CHARGE, WAIT]],
        3,
        "WorkflowExecutionUpdateAccepted reprice #seen",
        "WaitStarted approval #w1    at order.py:13",
    ),
    "a signal is followed by something else": Case(
        [(T, [STARTED]), (T + 1, [SIGNAL, ActivityScheduled(A1, "charge")])],
        [[], [SHIP]],
        3,
        "ActivityScheduled charge #a1",
        "ActivityScheduled ship #a2    at order.py:11",
    ),
    "an update is answered sooner": Case(
        [*SEQUENCE[:1], (T + 1, [UPDATE]), (T + 2, [CHARGED, ANSWERED])],
        [[CHARGE], [ANSWER]],
        4,
        "ActivityCompleted #a1",
        "WorkflowExecutionUpdateCompleted #seen    at order.py:30",
    ),
    "an update is answered later": Case(
        [*SEQUENCE[:1], (T + 1, [UPDATE, ANSWERED])],
        [[CHARGE], []],
        4,
        "WorkflowExecutionUpdateCompleted #seen",
        f"(nothing: the code waits)    at {WAITS}",
    ),
    "another update is answered first": Case(
        [
            *SEQUENCE[:1],
            (T + 1, [UPDATE, WorkflowExecutionUpdateAccepted(FRESH, "reprice")]),
            (T + 2, [CHARGED, ANSWERED, WorkflowExecutionUpdateCompleted(FRESH, NULL)]),
        ],
        [[CHARGE], [], [], [CompleteUpdate(message_id=FRESH), ANSWER]],
        6,
        "WorkflowExecutionUpdateCompleted #seen",
        "WorkflowExecutionUpdateCompleted #fresh",
    ),
    "an update is no longer answered before the end": Case(
        [*SEQUENCE[:1], (T + 1, [UPDATE, ANSWERED, COMPLETED])],
        [[CHARGE], [DONE]],
        4,
        "WorkflowExecutionUpdateCompleted #seen",
        "WorkflowExecutionCompleted    at order.py:20",
    ),
    "another timer is cancelled": Case(
        [(T, [STARTED, SLEPT]), (T + 1, [WorkflowExecutionCancelRequested(FRESH), TimerCancelled(T1)])],
        [[SLEEP], [CancelTimer(timer_id=T2, source="order.py:19")]],
        4,
        "TimerCancelled #t1",
        "TimerCancelled #t2    at order.py:19",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_changed_code_is_shown_what_is_recorded_beside_what_it_attempted(case: Case) -> None:
    state = RunState(RUN)
    with pytest.raises(NondeterminismError) as caught:
        replay(state, answering(*case.answers), history(*case.turns))
    lines = str(caught.value).split("\n")
    assert lines[:3] == [
        f"Run Order/order-1 ({RUN}) cannot be replayed: at event {case.position} the code does something else "
        "than what is recorded.",
        f"    recorded:  {case.recorded}",
        f"    attempted: {case.attempted}",
    ]
    assert "was changed" in lines[3]
    assert "not recorded" in lines[3]
    assert lines[4].startswith("Nothing was written.")
    assert len(lines) == 5


def test_the_code_that_wrote_a_history_can_replay_it() -> None:
    program = answering([CHARGE], [SHIP, SLEEP], [DONE])
    state = RunState(RUN)
    replay(state, program, history(*SEQUENCE))
    assert state.phase is Phase.CLOSED
    assert state.outcome == COMPLETED
    assert program.fed == [(STARTED, T), (CHARGED, T + 1), (ActivityCompleted(A2, T, NULL), T + 2)]
    assert program.replayed == [True] * 3


def test_arguments_options_and_labels_may_differ() -> None:
    other = Arguments((Payload.from_json(b"2"),))
    changed: Answers = [
        [
            ScheduleActivity(
                activity_id=A1, activity="charge", arguments=other, queue="q", label="l", start_to_close_us=1
            )
        ],
        [SHIP, StartTimer(timer_id=T1, delay_us=61, label="nap")],
        [CompleteWorkflow(result=Payload.from_json(b"3"))],
    ]
    state = RunState(RUN)
    replay(state, answering(*changed), history(*SEQUENCE))
    assert state.outcome == COMPLETED


def test_a_run_that_never_had_a_turn_is_not_fed() -> None:
    state, program = RunState(RUN), answering([CHARGE])
    replay(state, program, history((T, [STARTED])))
    assert program.fed == []
    assert (state.phase, state.next_event) == (Phase.OPEN, 2)


def test_a_run_that_asked_for_nothing_is_fed_before_the_next_event() -> None:
    program = answering([], [CHARGE])
    cancel = WorkflowExecutionCancelRequested(FRESH)
    replay(RunState(RUN), program, history((T, [STARTED]), (T + 5, [cancel, ActivityScheduled(A1, "charge")])))
    assert program.fed == [(STARTED, T), (cancel, T + 5)]


def test_an_input_at_the_end_of_a_history_is_fed() -> None:
    program = answering([CHARGE], [])
    replay(RunState(RUN), program, history(*SEQUENCE[:1], (T + 1, [CHARGED])))
    assert program.fed == [(STARTED, T), (CHARGED, T + 1)]


def test_the_program_never_sees_what_became_of_attempts() -> None:
    program = answering([CHARGE], [DONE])
    notes: list[Event] = [ActivityAttemptLost(A1, 1, T), ActivityAttemptFailed(A1, 2, T, OOPS, T)]
    replay(
        RunState(RUN),
        program,
        history(*SEQUENCE[:1], (T, notes), (T + 1, [ActivityCompleted(A1, T, NULL, 3), COMPLETED])),
    )
    assert [type(event) for event, _ in program.fed] == [type(STARTED), ActivityCompleted]


def test_a_run_that_closed_with_late_mail_can_be_replayed() -> None:
    late = [MessageUnhandled(CancelRequested(SEEN)), MessageUnhandled(TerminateRequested(FRESH))]
    state, program = RunState(RUN), answering([CHARGE, SLEEP], [CancelTimer(timer_id=T1), DONE])
    turns: Turns = [
        (T, [STARTED, ActivityScheduled(A1, "charge"), SLEPT]),
        (T + 1, [CHARGED, TimerCancelled(T1), *late, COMPLETED]),
    ]
    replay(state, program, history(*turns))
    assert state.outcome == COMPLETED
    assert list(state.recent_messages) == [SEEN, FRESH]
    assert len(program.fed) == 2


def test_signals_and_updates_are_fed_and_nothing_is_asked() -> None:
    program = answering([], [CHARGE], [ANSWER], [], [DONE])
    again = WorkflowExecutionUpdateAccepted(MessageId("third"), "reprice")
    turns: Turns = [
        (T, [STARTED]),
        (T + 1, [SIGNAL, ActivityScheduled(A1, "charge"), UPDATE, ANSWERED, again]),
        (T + 2, [CHARGED, MessageUnhandled(SignalReceived(MessageId("late"), "approve")), COMPLETED]),
    ]
    state = RunState(RUN)
    replay(state, program, history(*turns))
    assert state.outcome == COMPLETED
    assert program.fed == [(STARTED, T), (SIGNAL, T + 1), (UPDATE, T + 1), (again, T + 1), (CHARGED, T + 2)]
    assert program.asked == []


def test_an_update_that_is_open_at_the_end_of_a_history_is_open_after_replay() -> None:
    state = RunState(RUN)
    replay(state, answering([CHARGE], []), history(*SEQUENCE[:1], (T + 1, [UPDATE])))
    assert state.updates == {SEEN: UPDATE}


def test_what_an_update_came_to_may_differ() -> None:
    other = CompleteUpdate(message_id=SEEN, failure=OOPS)
    state = RunState(RUN)
    replay(state, answering([CHARGE], [other]), history(*SEQUENCE[:1], (T + 1, [UPDATE, ANSWERED])))
    assert state.updates == {}


def test_a_run_that_was_terminated_before_its_first_turn_with_signals_waiting_can_be_replayed() -> None:
    late = MessageUnhandled(SignalReceived(SEEN, "approve"))
    turns: Turns = [(T, [STARTED]), (T + 1, [late, WorkflowExecutionTerminated(FRESH)])]
    state = RunState(RUN)
    replay(state, answering([CHARGE]), history(*turns))
    assert state.phase is Phase.CLOSED


def test_a_run_that_was_terminated_can_be_replayed() -> None:
    end = WorkflowExecutionTerminated(FRESH, "enough")
    state, program = RunState(RUN), answering([CHARGE], [])
    replay(state, program, history(*SEQUENCE[:1], (T + 1, [CHARGED, MessageUnhandled(CancelRequested(SEEN)), end])))
    assert state.outcome == end
    assert len(program.fed) == 2


@pytest.mark.parametrize("lost", [0, 1, 2, 3, 4, 5])
def test_a_hole_in_the_journal_is_noticed(lost: int) -> None:
    holed = history(*SEQUENCE)
    del holed[lost]
    with pytest.raises(InvalidTransition, match="rows of its journal are missing or out of order"):
        replay(RunState(RUN), answering([CHARGE], [SHIP, SLEEP], [DONE]), holed)


def test_a_history_that_goes_on_after_its_end_is_broken() -> None:
    longer = history(*SEQUENCE, (T + 3, [TimerFired(T1)]))
    with pytest.raises(InvalidTransition, match="TimerFired cannot be event 8"):
        replay(RunState(RUN), answering([CHARGE], [SHIP, SLEEP], [DONE]), longer)


def test_an_error_of_the_program_escapes_from_replay() -> None:
    def broken(event: Any, at_us: int) -> list[Command]:
        raise LookupError("no such order")

    with pytest.raises(LookupError, match="no such order"):
        replay(RunState(RUN), Scripted(broken), history(*SEQUENCE))


def test_something_that_is_no_command_is_a_bug_of_ours_on_replay_too() -> None:
    nonsense: Any = CHARGED
    with pytest.raises(InternalError, match="ActivityCompleted is no command"):
        replay(RunState(RUN), answering([nonsense]), history(*SEQUENCE))


def test_a_program_that_says_not_where_it_waits_leaves_that_out() -> None:
    program = answering()
    program.whereabouts = lambda: ""  # type: ignore[method-assign]
    with pytest.raises(NondeterminismError) as caught:
        replay(RunState(RUN), program, history(*SEQUENCE))
    assert str(caught.value).split("\n")[2] == "    attempted: (nothing: the code waits)"


def test_a_divergence_does_not_change_what_was_folded_before_it() -> None:
    state, whole = RunState(RUN), RunState(RUN)
    with pytest.raises(NondeterminismError):
        replay(state, answering([CHARGE], [SLEEP]), history(*SEQUENCE))
    replay(whole, answering([CHARGE], []), history(*SEQUENCE[:1], (T + 1, [CHARGED])))
    assert snapshot(state) == snapshot(whole)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (ActivityScheduled(A1, "charge", label="by card"), "ActivityScheduled charge by card #a1"),
        (ActivityCancelled(A1), "ActivityCancelled #a1"),
        (TimerStarted(T1, 1, 1, "nap"), "TimerStarted nap #t1"),
        (WaitStarted(W1, "approval"), "WaitStarted approval #w1"),
        (WaitEnded(W1), "WaitEnded #w1"),
        (COMPLETED, "WorkflowExecutionCompleted"),
        (SIGNAL, "WorkflowExecutionSignaled approve"),
        (UPDATE, "WorkflowExecutionUpdateAccepted reprice #seen"),
        (ANSWERED, "WorkflowExecutionUpdateCompleted #seen"),
    ],
)
def test_an_event_is_described_by_its_kind_its_name_and_its_id(event: Event, text: str) -> None:
    assert describe_event(event) == text


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b'[{"type":"WorkflowExecutionPaused"}]', "WorkflowExecutionPaused"),
        (b'[{"type":"TimerFired"}]', "timer_id"),
        (b'[{"timer_id":"1"}]', "type"),
        (b'{"type":"TimerFired","timer_id":"1"}', "array"),
        (b'[{"type":"TimerFired","timer_id":1}]', "str"),
        (b"[{", "truncated"),
        (b"", "truncated"),
        (b"\xff", "malformed"),
    ],
)
def test_events_that_this_release_does_not_know_cannot_be_read(data: bytes, hint: str) -> None:
    with pytest.raises(msgspec.DecodeError, match=hint):
        decode_events(data)


def test_a_history_is_read_one_event_at_a_time() -> None:
    seen: list[int] = []

    def reading() -> Any:
        for item in history(*OPEN):
            seen.append(item.position)
            yield item

    with pytest.raises(NondeterminismError):
        replay(RunState(RUN), answering([SLEEP]), reading())
    assert seen == [1, 2]


def test_ends_of_waits_are_compared_by_id() -> None:
    turns: Turns = [(T, [STARTED, WaitStarted(W1, "approval")])]
    end = (T + 1, [WorkflowExecutionCancelRequested(FRESH), WaitEnded(W1)])
    state = RunState(RUN)
    replay(state, answering([WAIT], [EndWait(wait_id=W1)]), history(*turns, end))
    assert state.waits == {}
    with pytest.raises(NondeterminismError, match="recorded:  WaitEnded #w1\n    attempted: WaitEnded #w2"):
        replay(RunState(RUN), answering([WAIT], [EndWait(wait_id=W2)]), history(*turns, end))


def test_a_run_that_was_terminated_without_its_program_can_be_replayed() -> None:
    state = RunState(RUN)
    replay(state, answering([CHARGE]), history((T, [STARTED]), (T + 1, [WorkflowExecutionTerminated(FRESH)])))
    assert state.phase is Phase.CLOSED
