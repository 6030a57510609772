"""Histories, messages, replies and tasks as earlier releases wrote them: read, understood, written the same, for ever.

The files under tests/golden are never changed and never deleted. A new kind of event gets a new file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from engine.scripted import RUN, answering
from outlast.engine.invariants import check_state
from outlast.engine.replay import replay
from outlast.engine.run import Phase, RunState
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
from outlast.model.events import (
    INPUT_EVENTS,
    NOTE_EVENTS,
    ActivityCancelled,
    ActivityScheduled,
    Event,
    HistoryEvent,
    TimerCancelled,
    TimerStarted,
    WaitEnded,
    WaitStarted,
    WorkflowExecutionCancelled,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionUpdateCompleted,
    decode_events,
    encode_events,
)
from outlast.model.inputs import Message, decode_message, encode_message
from outlast.model.replies import Reply, decode_reply, encode_reply
from outlast.runtime.ports import decode_attempt, encode_attempt

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    """What files say nothing of, since it came after them, they had none of."""
    golden: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    golden["amounts_to"].setdefault("updates", {})
    return golden


def read(golden: dict[str, Any]) -> list[HistoryEvent]:
    return [
        HistoryEvent(row["first_event"] + index, row["at_us"], event)
        for row in golden["rows"]
        for index, event in enumerate(decode_events(row["events"].encode()))
    ]


def amounts_to(history: Sequence[HistoryEvent]) -> dict[str, Any]:
    """What the state is after the history, in words that do not change when the state's own fields do."""
    state = RunState(RUN)
    for item in history:
        state.apply(item.event, item.at_us)
    outcome = None if state.outcome is None else json.loads(msgspec.json.encode(state.outcome))
    return {
        "phase": state.phase.value,
        "next_event": state.next_event,
        "started_at_us": state.started_at_us,
        "last_at_us": state.last_at_us,
        "outcome": outcome,
        "cancel_requested": state.cancel_requested,
        "activities": {
            activity_id: {
                "activity": pending.scheduled.activity,
                "attempt": pending.attempt,
                "not_before_us": pending.not_before_us,
                "deadline_us": pending.deadline_us(),
            }
            for activity_id, pending in state.activities.items()
        },
        "timers": {timer_id: timer.fires_at_us for timer_id, timer in state.timers.items()},
        "waits": {wait_id: wait.label for wait_id, wait in state.waits.items()},
        "updates": {message_id: accepted.update for message_id, accepted in state.updates.items()},
        "messages": list(state.recent_messages),
        "wake_at_us": state.wake_at_us(),
    }


def test_there_are_golden_histories_of_every_event() -> None:
    events = {type(item.event) for name in NAMES for item in read(load(name))}
    assert events == set(get_args(Event))


@pytest.mark.parametrize("name", NAMES)
def test_a_history_written_by_an_earlier_release_means_the_same(name: str) -> None:
    golden = load(name)
    history = read(golden)
    assert amounts_to(history) == golden["amounts_to"]
    state = RunState(RUN)
    for item in history:
        state.apply(item.event, item.at_us)
    check_state(state, history)


@pytest.mark.parametrize("name", NAMES)
def test_a_history_is_written_as_earlier_releases_wrote_it(name: str) -> None:
    for row in load(name)["rows"]:
        data = row["events"].encode()
        assert encode_events(decode_events(data)) == data


def _command(event: Event) -> Command:
    match event:
        case ActivityScheduled():
            return ScheduleActivity(activity_id=event.activity_id, activity=event.activity, arguments=event.arguments)
        case ActivityCancelled():
            return CancelActivity(activity_id=event.activity_id)
        case TimerStarted():
            return StartTimer(timer_id=event.timer_id, delay_us=event.delay_us)
        case TimerCancelled():
            return CancelTimer(timer_id=event.timer_id)
        case WaitStarted():
            return StartWait(wait_id=event.wait_id, label=event.label)
        case WaitEnded():
            return EndWait(wait_id=event.wait_id)
        case WorkflowExecutionUpdateCompleted():
            return CompleteUpdate(message_id=event.message_id, result=event.result, failure=event.failure)
        case WorkflowExecutionCompleted():
            return CompleteWorkflow(result=event.result)
        case WorkflowExecutionFailed():
            return FailWorkflow(failure=event.failure)
        case WorkflowExecutionCancelled():
            return CancelWorkflow()
        case _:
            raise AssertionError(f"{event} is no command")


def _answers(history: Sequence[HistoryEvent]) -> list[list[Command]]:
    """What the program must have said, one answer per input."""
    answers: list[list[Command]] = []
    for item in history:
        if isinstance(item.event, INPUT_EVENTS):
            answers.append([])
        elif not isinstance(item.event, NOTE_EVENTS):
            answers[-1].append(_command(item.event))
    return answers


@pytest.mark.parametrize("name", NAMES)
def test_a_program_that_says_what_it_said_then_can_go_on_from_an_old_history(name: str) -> None:
    history = read(load(name))
    program = answering(*_answers(history))
    state = RunState(RUN)
    replay(state, program, history)
    assert [event for event, _ in program.fed] == [each.event for each in history if type(each.event) in INPUT_EVENTS]
    assert (state.outcome is not None) is (state.phase is Phase.CLOSED)


# --- messages, replies and tasks ------------------------------------------------------------------------------------


def _bodies(name: str) -> list[bytes]:
    golden = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    return [each.encode() for each in golden["bodies"]]


MESSAGES = [*_bodies("mailbox/messages.json"), *_bodies("mailbox/signals_updates_queries.json")]
REPLIES = _bodies("replies/replies.json")
ATTEMPTS = _bodies("tasks/attempts.json")


@pytest.mark.parametrize("data", MESSAGES)
def test_a_message_is_written_as_earlier_releases_wrote_it(data: bytes) -> None:
    assert encode_message(decode_message(data)) == data


def test_there_are_golden_messages_of_every_kind() -> None:
    assert {type(decode_message(data)) for data in MESSAGES} == set(get_args(Message))


@pytest.mark.parametrize("data", REPLIES)
def test_a_reply_is_written_as_earlier_releases_wrote_it(data: bytes) -> None:
    assert encode_reply(decode_reply(data)) == data


def test_there_are_golden_replies_of_every_kind() -> None:
    assert {type(decode_reply(data)) for data in REPLIES} == set(get_args(Reply))


@pytest.mark.parametrize("data", ATTEMPTS)
def test_a_task_is_written_as_earlier_releases_wrote_it(data: bytes) -> None:
    assert encode_attempt(decode_attempt(data)) == data


def test_a_golden_task_sets_every_field() -> None:
    assert any(set(json.loads(data)) == set(type(decode_attempt(data)).__struct_fields__) for data in ATTEMPTS)
