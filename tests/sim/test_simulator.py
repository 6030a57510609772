"""The simulator itself: a seed means the same each time, trouble does what it says, a failure is made small."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from sim.bugs import planted
from sim.campaign import Summary, run_campaign, run_seeds
from sim.loop import SECOND_US, ProcessLoop, Scheduler
from sim.plan import draw_plan
from sim.regressions import FIXED
from sim.shrink import apply, kind_of, shrink
from sim.world import simulate

ROOT = Path(__file__).resolve().parents[2]


def loop_on(scheduler: Scheduler) -> ProcessLoop:
    def broken(context: dict[str, object]) -> None:
        raise AssertionError(context)

    return ProcessLoop(scheduler, random.Random(1), lambda: None, broken)


def test_a_seed_means_the_same_each_time() -> None:
    first = [(each.seed, each.trace, each.steps, each.covered) for each in run_seeds(range(15))]
    second = [(each.seed, each.trace, each.steps, each.covered) for each in run_seeds(range(15))]
    assert first == second
    assert len({trace for _, trace, _, _ in first}) == 15, "different seeds are different worlds"


def test_a_seed_means_the_same_in_every_process() -> None:
    """Also when Python orders its sets of strings differently."""
    said = [
        subprocess.run(
            [sys.executable, "-c", "from sim.campaign import *; print('trace', simulate(draw_plan(7)).trace)"],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]  # fmt: skip
    assert said[0] == said[1]
    assert "trace" in said[0]


@pytest.mark.parametrize("seed", FIXED)
def test_a_bug_that_was_found_stays_away(seed: int) -> None:
    assert simulate(draw_plan(seed)).violation is None


def test_a_failure_is_made_small_and_shows_the_same() -> None:
    with planted("a run is closed without a second look into its mailbox"):
        failed = next(each for each in run_seeds(range(100)) if each.violation)
        assert failed.violation is not None
        left_out, smallest = shrink(failed.seed, failed.violation)
        again = simulate(apply(draw_plan(failed.seed), left_out))
    assert kind_of(again.violation) == kind_of(failed.violation)
    assert again.trace == smallest.trace
    assert len(apply(draw_plan(failed.seed), left_out).parts()) < len(draw_plan(failed.seed).parts()) / 2


def test_a_campaign_stops_at_the_first_failure_and_says_what_happened() -> None:
    with planted("effects leave before the commit"):
        summary = run_campaign(range(50))
    assert len(summary.failures) == 1
    assert summary.worlds < 50
    assert summary.covered["commit committed"] > 0


def test_callbacks_of_a_process_keep_their_order_and_a_frozen_one_waits() -> None:
    scheduler = Scheduler(random.Random(1))
    loop = loop_on(scheduler)
    seen: list[tuple[str, int]] = []

    def note(what: str) -> None:
        seen.append((what, scheduler.now_us // SECOND_US))

    for what in "abc":
        loop.call_soon(note, what)
    loop.call_later(2.0, note, "timer")
    scheduler.at(SECOND_US, loop.freeze)
    scheduler.at(5 * SECOND_US, lambda: loop.post(note, "posted"))
    scheduler.at(9 * SECOND_US, loop.thaw)
    scheduler.run(20 * SECOND_US, lambda: False)
    assert seen == [("a", 0), ("b", 0), ("c", 0), ("posted", 9), ("timer", 9)]


def test_nothing_of_a_killed_process_runs_again() -> None:
    scheduler = Scheduler(random.Random(1))
    loop = loop_on(scheduler)
    seen: list[str] = []

    async def work() -> None:
        try:
            seen.append("begins")
            await asyncio.sleep(1.0)
            seen.append("goes on")
        finally:
            seen.append("is unwound")

    loop.create_task(work())
    scheduler.at(SECOND_US // 2, loop.kill)
    scheduler.run(5 * SECOND_US, lambda: False)
    assert seen == ["begins"]
    loop.post(seen.append, "posted")
    loop.tear_down()
    scheduler.run(9 * SECOND_US, lambda: False)
    assert seen == ["begins", "is unwound"]


@pytest.mark.slow
def test_everything_that_can_go_wrong_does_and_nothing_breaks() -> None:
    summary = Summary()
    for outcome in run_seeds(range(100_000, 100_600)):
        summary.add(outcome)
    assert [(each.seed, each.violation) for each in summary.failures] == []
    assert summary.never_happened() == []
