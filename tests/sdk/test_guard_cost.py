"""What the guard costs, as ratios to something that the same machine does at the same time; generous, for busy ones."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from outlast.sdk import guard
from sdk.guard_world import module

pytestmark = pytest.mark.slow

ROUNDS = 30
"""The best of so many is what the code costs, and not what else the machine does."""


def best(function: Callable[[], Any]) -> float:
    times: list[float] = []
    for _ in range(ROUNDS):
        started = perf_counter()
        function()
        times.append(perf_counter() - started)
    return min(times)


def ratio(measured: Callable[[], Any], reference: Callable[[], Any]) -> float:
    return best(measured) / best(reference)


def test_a_turn_costs_little_more_than_a_few_calls() -> None:
    guard.install()

    def turns() -> None:
        for _ in range(1_000):
            guard.begin_turn(True, False)
            guard.end_turn()

    def nothing(live: bool, closely: bool) -> None:
        pass

    def calls() -> None:
        for _ in range(1_000):
            nothing(True, False)
            nothing(True, False)

    assert ratio(turns, calls) < 15  # about 5 when the machine is quiet: 0.2-0.3 us


CLEAN = """
def helper(x):
    return x
def flow():
    total = 0
    for number in range(1_000):
        total += len(str(number)) + helper(number)
    return total
"""


def test_clean_workflow_code_is_slowed_down_by_little_and_on_311_not_at_all(tmp_path: Path) -> None:
    guard.install()
    bare, guarded = module(tmp_path, CLEAN).flow, module(tmp_path, CLEAN).flow
    closely = guard.prepare(guarded, "flow")

    def live() -> None:
        guard.begin_turn(True, closely)
        guarded()
        assert guard.end_turn() is None

    # The loop does nothing but calls, which no workflow does; an activity that it awaits costs a hundred of them.
    assert ratio(live, bare) < (40 if sys.version_info >= (3, 12) else 1.5)


def test_patched_functions_cost_little_outside_of_turns() -> None:
    guard.install()
    own = random.Random(1)
    assert (
        ratio(lambda: [random.randint(1, 10) for _ in range(1_000)], lambda: [own.randint(1, 10) for _ in range(1_000)])
        < 2.5
    )


def test_a_workflow_is_prepared_in_no_time(tmp_path: Path) -> None:
    guard.install()
    lines = "".join(f"    x{number} = helper(order.field{number}); str(x{number})\n" for number in range(50))
    made = module(tmp_path, f"import os, datetime\ndef helper(x):\n    return x\ndef flow(order):\n{lines}")
    assert best(lambda: guard.prepare(made.flow, "flow")) < 0.02  # about 0.1 ms; 0.02 s on the busiest machine
