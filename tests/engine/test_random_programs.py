"""Random programs in a random world: what the engine promises holds after every turn, and after every crash."""

from __future__ import annotations

from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st
from outlast.engine.decide import take_turn
from outlast.engine.run import Phase
from outlast.model.inputs import CancelRequested, TerminateRequested
from outlast.model.ids import MessageId

from engine.scripted import snapshot
from engine.tape import Step, Turn, World, check_every_prefix

tapes = st.lists(st.integers(0, 300), max_size=40)
steps = st.builds(Step, st.integers(0, 7), st.integers(0, 12), st.integers(0, 80))
times = st.one_of(st.integers(0, 300), st.integers(-500, 2_000))
turns = st.builds(Turn, times, st.lists(steps, max_size=5), st.lists(steps, max_size=2))


@settings(max_examples=150, deadline=None)
@given(tapes, st.lists(turns, max_size=20), st.booleans())
def test_history_state_effects_and_replay_agree_after_every_turn(
    tape: list[int], script: list[Turn], hosted_by_starter: bool
) -> None:
    world = World(tape, hosted_by_starter=hosted_by_starter)
    for turn in script:
        world.turn(turn)
    note(f"{world.state.phase.value}, {min(len(world.journal.read()), 60) // 20 * 20}+ events")
    check_every_prefix(world)


@settings(max_examples=50, deadline=None)
@given(tapes, st.lists(turns, max_size=8))
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


@settings(max_examples=50, deadline=None)
@given(tapes, st.lists(turns, max_size=15), st.integers(1, 4))
def test_a_run_that_crashes_again_and_again_gets_to_its_end(tape: list[int], script: list[Turn], every: int) -> None:
    world = World(tape)
    for number, turn in enumerate(script):
        world.turn(turn)
        if number % every == 0:
            world.reload()
    world.run_to_its_end()
    assert world.state.outcome is not None
    closed = snapshot(world.state)
    late = [CancelRequested(MessageId("too late")), TerminateRequested(MessageId("too late as well"))]
    decision = take_turn(world.state, world.program, late, world.now_us)
    assert (decision.events, decision.taken, decision.outcome) == ([], 0, None)
    assert snapshot(world.state) == closed
