"""Random programs in a random world: what the engine promises holds after every turn, and after every crash."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import get_args
from unittest import mock

from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scripted import snapshot
from engine.tape import ENDS, KINDS, Step, Turn, World, check_every_prefix
from outlast.engine import run as run_module
from outlast.engine.decide import take_turn
from outlast.engine.run import Phase
from outlast.model.events import Event
from outlast.model.ids import MessageId
from outlast.model.inputs import CancelRequested, QueryRequested, SignalReceived, TerminateRequested, UpdateRequested
from outlast.model.replies import Reply


def _long_tape(seed: int) -> list[int]:
    draw = Random(seed)
    return [draw.randrange(301) for _ in range(draw.randrange(20, 100))]


def _patient_tape(seed: int) -> list[int]:
    """Of a program that does not end before it is used up."""
    return [each for part in range(4) for each in _long_tape(seed + part) if each % 30 != ENDS]


def _long_script(seed: int, most: int = 30) -> list[Turn]:
    draw = Random(seed)

    def some_steps(most: int) -> list[Step]:
        return [
            Step(draw.randrange(KINDS), draw.randrange(13), draw.randrange(81)) for _ in range(draw.randrange(most))
        ]

    return [Turn(draw.randrange(-100, 400), some_steps(6), some_steps(3)) for _ in range(draw.randrange(5, most))]


# Short ones are drawn number by number, so that they shrink; long ones from a seed, so that they are long.
seeds = st.integers(0, 2**32)
tapes = st.one_of(st.lists(st.integers(0, 300), max_size=40), seeds.map(_long_tape))
steps = st.builds(Step, st.integers(0, KINDS - 1), st.integers(0, 12), st.integers(0, 80))
times = st.one_of(st.integers(0, 300), st.integers(-500, 2_000))
turns = st.builds(Turn, times, st.lists(steps, max_size=5), st.lists(steps, max_size=2))
scripts = st.one_of(st.lists(turns, max_size=15), seeds.map(_long_script))


@settings(max_examples=300, deadline=None)
@given(tapes, scripts, st.booleans())
def test_history_state_effects_and_replay_agree_after_every_turn(
    tape: list[int], script: list[Turn], hosted_by_starter: bool
) -> None:
    world = World(tape, hosted_by_starter=hosted_by_starter)
    for turn in script:
        world.turn(turn)
    note(f"{world.state.phase.value}, {min(len(world.journal.read()), 60) // 20 * 20}+ events")
    check_every_prefix(world)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_a_run_that_forgets_old_messages_takes_none_twice_of_those_that_may_come_again(seed: int) -> None:
    with mock.patch.object(run_module, "RECENT_MESSAGES", 16):
        world = World(_patient_tape(seed), talkative=True)
        for number, turn in enumerate(_long_script(seed, most=60)):
            world.turn(turn)
            if number % 3 == 2:
                world.reload()
        check_every_prefix(world)


@settings(max_examples=100, deadline=None)
@given(tapes, scripts)
def test_a_crash_after_any_turn_loses_nothing_and_the_run_goes_on_to_its_end(
    tape: list[int], script: list[Turn]
) -> None:
    world = World(tape, hosted_by_starter=False)
    for turn in script:
        world.turn(turn)
    for count in range(1, len(world.journal.rows) + 1):
        crashed = world.crashed_after(count)
        assert crashed.journal.rows[:count] == world.journal.rows[:count]
        crashed.run_to_its_end()
        assert crashed.state.phase is Phase.CLOSED


@settings(max_examples=100, deadline=None)
@given(tapes, scripts, st.integers(1, 4))
def test_a_run_that_crashes_again_and_again_gets_to_its_end(tape: list[int], script: list[Turn], every: int) -> None:
    world = World(tape)
    for number, turn in enumerate(script):
        world.turn(turn)
        if number % every == 0:
            world.reload()
    world.run_to_its_end()
    assert world.state.outcome is not None
    closed = snapshot(world.state)
    late = [
        CancelRequested(MessageId("too late")),
        TerminateRequested(MessageId("too late as well")),
        SignalReceived(MessageId("much too late"), "tick"),
        UpdateRequested(MessageId("later still"), "reprice"),
        QueryRequested(MessageId("last"), "progress"),
    ]
    decision = take_turn(world.state, world.program, late, world.now_us)
    assert (decision.events, decision.taken, decision.outcome, decision.replies) == ([], 0, None, {})
    assert snapshot(world.state) == closed


def test_these_worlds_reach_every_event_and_much_that_is_stale() -> None:
    """The properties above say nothing about what never happens in them."""
    seen: Counter[type] = Counter()
    replied: Counter[type] = Counter()
    given = taken_for_nothing = 0
    for seed in range(100):
        world = World(_long_tape(seed))
        for turn in _long_script(seed + 1_000):
            before = world.state.next_event
            replied.update(type(each) for each in world.turn(turn).replies.values())
            given += len(turn.steps)
            taken_for_nothing += world.state.next_event == before and bool(turn.steps)
        seen.update(type(item.event) for item in world.journal.read())
    assert set(seen) == set(get_args(Event))
    assert min(seen.values()) >= 3, seen
    assert set(replied) == set(get_args(Reply))
    assert min(replied.values()) >= 10, replied
    assert taken_for_nothing >= 50
    assert given >= 1_000
