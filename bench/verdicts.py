"""Verdicts: what was aimed at, what was measured, and whether it holds.

Two kinds. A *promise* is about what is right: nothing lost, nothing done twice. If it is broken, the benchmark ends
with an error, whatever the machine. A *target* is about speed or size: it is shown, and fails nothing, since the
machine has a say in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.cells import Cell, Key, Shape
from bench.systems import FLOOR_OF, OUTLAST_OF, POSTGRES, SQLITE, TABLES

FLOOR_SHARE = 0.40
"""Of the floor's throughput at 64 runs: what a whole engine may cost on top of its commits."""

FLOOR_LATENCY = 2.5
"""Times the floor's median latency, with one run alone."""

SAME_SIZE = 0.10
"""How far the floor's rows may differ in size from Outlast's before the two can no longer be compared."""

TIMES_PEER = {"pg-dbos": 30.0, "restate": 10.0}
"""How many times a peer's throughput at 64 runs of 10 activities Outlast is to have, in one process."""

P99_MS = 50.0
"""At 64 runs, on PostgreSQL."""

MANY = Shape(activities=10, runs=64)
"""The load by which throughput is compared."""


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    aim: str
    measured: str
    holds: bool
    is_promise: bool = False


def of_cells(cells: Mapping[Key, Cell]) -> list[Verdict]:
    """What the tables say about the aims, for the shapes that were measured."""
    verdicts: list[Verdict] = []
    for table in TABLES:
        for cell, floor in _pairs(cells, table):
            if cell.shape.runs == 64:
                verdicts.append(_throughput(cell, floor))
            if cell.shape.runs == 1:
                verdicts.append(_latency(cell, floor))
            verdicts.append(_same_size(cell, floor))
    verdicts += _against_peers(cells)
    for (system, shape), cell in cells.items():
        if system == OUTLAST_OF[POSTGRES] and shape.runs == 64 and cell.rounds:
            verdicts += _tails(cell)
    return verdicts + _shared_file(cells)


def _pairs(cells: Mapping[Key, Cell], table: str) -> Iterator[tuple[Cell, Cell]]:
    """Outlast in one process, and the floor, under the same shape."""
    for (system, shape), cell in cells.items():
        floor = cells.get((FLOOR_OF[table], shape))
        if system == OUTLAST_OF[table] and floor is not None and cell.rounds and floor.rounds:
            yield cell, floor


def _throughput(cell: Cell, floor: Cell) -> Verdict:
    share = cell.runs_per_s / floor.runs_per_s
    return Verdict(
        f"{cell.system}: throughput at {cell.shape}",
        f"at least {FLOOR_SHARE:.0%} of the floor",
        f"{share:.0%}",
        share >= FLOOR_SHARE,
    )


def _latency(cell: Cell, floor: Cell) -> Verdict:
    times = cell.p50_ms / floor.p50_ms
    return Verdict(
        f"{cell.system}: p50 latency at {cell.shape}",
        f"at most {FLOOR_LATENCY} times the floor's",
        f"{times:.2f} times",
        times <= FLOOR_LATENCY,
    )


def _same_size(cell: Cell, floor: Cell) -> Verdict:
    """The floor is fair only while it writes what Outlast writes: this fails when the events change and it does not."""
    ours, theirs = (float(each.rounds[0].notes["bytes per commit"]) for each in (cell, floor))
    return Verdict(
        f"{cell.system}: the floor writes as much at {cell.shape}",
        f"within {SAME_SIZE:.0%}",
        f"{theirs:.0f} and {ours:.0f} bytes per commit",
        abs(theirs - ours) <= SAME_SIZE * ours,
        is_promise=True,
    )


def _against_peers(cells: Mapping[Key, Cell]) -> Iterator[Verdict]:
    ours = cells.get((OUTLAST_OF[POSTGRES], MANY))
    for peer, wanted in TIMES_PEER.items():
        theirs = cells.get((peer, MANY))
        if ours is None or theirs is None or not (ours.rounds and theirs.rounds):
            continue
        times = ours.runs_per_s / theirs.runs_per_s
        yield Verdict(
            f"{ours.system}: throughput at {MANY}, beside {peer}",
            f"at least {wanted:.0f} times",
            f"{times:.1f} times",
            times >= wanted,
        )


def _tails(cell: Cell) -> Iterator[Verdict]:
    tails = {"whole runs": cell.p99_ms, "commits": cell.commit_p99_ms}
    for what, p99_ms in tails.items():
        if p99_ms is not None:
            yield Verdict(
                f"{cell.system}: p99 of {what} at {cell.shape}",
                f"under {P99_MS:.0f} ms",
                f"{p99_ms:.1f} ms",
                p99_ms < P99_MS,
            )


def _shared_file(cells: Mapping[Key, Cell]) -> list[Verdict]:
    """Two processes on one SQLite file take turns in writing; together they must not be slower than one."""
    one, two = (cells.get((name, MANY)) for name in (OUTLAST_OF[SQLITE], "outlast-2"))
    if one is None or two is None or not (one.rounds and two.rounds):
        return []
    times = two.runs_per_s / one.runs_per_s
    return [Verdict(f"2 processes on one SQLite file at {MANY}", "as fast as one", f"{times:.2f} times", times >= 1)]
