"""A failing plan, made as small as it can be: parts are left out as long as the same kind of violation remains.

A part is a run, a message, a fault, a rate, a node (see `Plan.parts`). Runs that remain have their scripts shortened
too. What is left reproduces with `--seed N --without PART ...`, since all of it is a subset of what the seed drew.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from sim.plan import Plan, draw_plan
from sim.world import Outcome, simulate

TRIES = 400
"""Worlds that are tried for one seed: a few seconds to a minute."""


def kind_of(violation: str | None) -> str:
    """What remains of a violation when ids, names, numbers and quotes are left out."""
    if violation is None:
        return ""
    words = re.sub(r"[\"'\[{(].*", "", re.sub(r"\S*\d\S*", "", violation.split("; ")[0].split(": runs not")[0])).split()
    return " ".join(words)[:60]


def apply(plan: Plan, parts: list[str]) -> Plan:
    for part in parts:
        plan = plan.without(part)
    return plan


def shrink(seed: int, violation: str, said: Callable[[str], None] = lambda text: None) -> tuple[list[str], Outcome]:
    """Which parts can be left out, and what the smallest world shows."""
    wanted = kind_of(violation)
    plan = draw_plan(seed)
    left_out: list[str] = []
    best = simulate(plan)
    tries = 0
    going_on = True
    while going_on:
        going_on = False
        for part in apply(plan, left_out).parts():
            if part in left_out or tries >= TRIES:
                continue
            tries += 1
            tried = apply(plan, [*left_out, part])
            if not tried.runs:
                continue
            outcome = simulate(tried)
            if kind_of(outcome.violation) == wanted:
                left_out, best, going_on = [*left_out, part], outcome, True
                said(f"without {part}: still")
    return left_out, best
