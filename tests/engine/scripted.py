"""Programs and histories for the engine's tests: no SDK, no store, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from outlast.engine.decide import Decision
from outlast.engine.run import Phase, RunState
from outlast.model.commands import Command
from outlast.model.events import (
    Event,
    HistoryEvent,
    InputEvent,
    WorkflowExecutionStarted,
    decode_events,
    encode_events,
)
from outlast.model.failures import Failure
from outlast.model.ids import RunId, WorkflowId
from outlast.model.payloads import NULL, Arguments, Payload

RUN = RunId("0190f3c1e5b07abc8def0123456789ab")
STARTED = WorkflowExecutionStarted("Order", WorkflowId("order-1"), "default")

Script = Callable[[InputEvent, int], Sequence[Command]]


class Scripted:
    """A program that answers as `script` says, and remembers what it was fed and asked.

    It refuses the updates named in `refusals`, and answers the queries named in `answers`; all others with null.
    """

    def __init__(
        self,
        script: Script = lambda event, at_us: (),
        *,
        refusals: Mapping[str, Failure] = {},
        answers: Mapping[str, Payload | Failure] = {},
    ) -> None:
        self.script = script
        self.refusals = refusals
        self.answers = answers
        self.asked: list[tuple[str, Arguments, int]] = []
        """Updates that it might have refused, and queries; and how many events it had been fed by then."""
        self.fed: list[tuple[InputEvent, int]] = []
        self.replayed: list[bool] = []

    def feed(self, event: InputEvent, at_us: int, *, replaying: bool) -> Sequence[Command]:
        self.fed.append((event, at_us))
        self.replayed.append(replaying)
        return self.script(event, at_us)

    def refuse_update(self, update: str, arguments: Arguments) -> Failure | None:
        self.asked.append((update, arguments, len(self.fed)))
        return self.refusals.get(update)

    def answer_query(self, query: str, arguments: Arguments) -> Payload | Failure:
        self.asked.append((query, arguments, len(self.fed)))
        return self.answers.get(query, NULL)

    def whereabouts(self) -> str:
        return "order.py:42, in fulfil"

    def close(self) -> None:
        pass


def answering(*answers: Sequence[Command]) -> Scripted:
    """A program that gives these answers in order, and nothing after the last."""
    left = list(answers)
    return Scripted(lambda event, at_us: left.pop(0) if left else ())


def fold(events: Sequence[tuple[Event, int]]) -> RunState:
    state = RunState(RUN)
    for event, at_us in events:
        state.apply(event, at_us)
    return state


def history(*rows: tuple[int, Sequence[Event]]) -> list[HistoryEvent]:
    """A history of turns, each given as its time and its events."""
    events = [(event, at_us) for at_us, turn in rows for event in turn]
    return [HistoryEvent(index, at_us, event) for index, (event, at_us) in enumerate(events, start=1)]


class Journal:
    """What a store would hold: one row of bytes per turn."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, bytes]] = []

    def write(self, decision: Decision) -> None:
        if decision.events:
            self.rows.append((decision.first_event, decision.at_us, encode_events(decision.events)))

    def read(self, turns: int | None = None) -> list[HistoryEvent]:
        return [
            HistoryEvent(first + index, at_us, event)
            for first, at_us, data in self.rows[:turns]
            for index, event in enumerate(decode_events(data))
        ]


def snapshot(state: RunState) -> dict[str, Any]:
    """Everything a state holds, as plain values. The order of what is open counts; that of what a closed run
    remembers does not."""
    result = {slot: getattr(state, slot) for slot in RunState.__slots__}
    result["activities"] = [
        (key, {slot: getattr(pending, slot) for slot in type(pending).__slots__})
        for key, pending in state.activities.items()
    ]
    result["timers"] = list(state.timers.items())
    result["waits"] = list(state.waits.items())
    result["updates"] = list(state.updates.items())
    recent = list(state.recent_messages)
    result["recent_messages"] = sorted(recent) if state.phase is Phase.CLOSED else recent
    return result


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is different, leaving out the two slots that every event moves on."""
    moving = ("next_event", "last_at_us")
    return {slot: after[slot] for slot in after if slot not in moving and after[slot] != before[slot]}
