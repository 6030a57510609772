"""Verdicts: what was aimed at, what was measured, and whether it holds.

Two kinds. A *promise* is about what is right: nothing lost, nothing done twice. If it is broken, the benchmark ends
with an error, whatever the machine. A *target* is about speed or size: it is shown, and fails nothing, since the
machine has a say in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.cells import Cell, Key, Shape

FLOOR_SHARE = 0.40
"""Of the floor's throughput at 64 runs: what a whole engine may cost on top of its commits."""

FLOOR_LATENCY = 2.5
"""Times the floor's median latency, with one run alone."""

SAME_SIZE = 0.10
"""How far the floor's rows may differ in size from Outlast's before the two can no longer be compared."""


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    aim: str
    measured: str
    holds: bool
    is_promise: bool = False


def against_floor(cells: Mapping[Key, Cell]) -> list[Verdict]:
    """What the table says about the targets, for the shapes that were measured."""
    verdicts: list[Verdict] = []
    for (system, shape), cell in cells.items():
        floor = cells.get(("floor", shape))
        if system != "outlast" or floor is None or not (cell.rounds and floor.rounds):
            continue
        if shape.runs == 64:
            verdicts.append(_throughput(shape, cell, floor))
        if shape.runs == 1:
            verdicts.append(_latency(shape, cell, floor))
        verdicts.append(_same_size(shape, cell, floor))
    return verdicts


def _throughput(shape: Shape, cell: Cell, floor: Cell) -> Verdict:
    share = cell.runs_per_s / floor.runs_per_s
    return Verdict(
        f"throughput at {shape}", f"at least {FLOOR_SHARE:.0%} of the floor", f"{share:.0%}", share >= FLOOR_SHARE
    )


def _latency(shape: Shape, cell: Cell, floor: Cell) -> Verdict:
    times = cell.p50_ms / floor.p50_ms
    return Verdict(
        f"p50 latency at {shape}",
        f"at most {FLOOR_LATENCY} times the floor's",
        f"{times:.2f} times",
        times <= FLOOR_LATENCY,
    )


def _same_size(shape: Shape, cell: Cell, floor: Cell) -> Verdict:
    """The floor is fair only while it writes what Outlast writes: this fails when the events change and it does not."""
    ours, theirs = (float(each.rounds[0].notes["bytes per commit"]) for each in (cell, floor))
    return Verdict(
        f"the floor writes as much as Outlast at {shape}",
        f"within {SAME_SIZE:.0%}",
        f"{theirs:.0f} and {ours:.0f} bytes per commit",
        abs(theirs - ours) <= SAME_SIZE * ours,
        is_promise=True,
    )
