"""What a reader gets to see: the tables on the terminal, and everything as JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.cells import Cell, Key, Plan, Shape
from bench.growth import Growth
from bench.load import Measured, percentile
from bench.machine import Machine
from bench.postgres import Server
from bench.systems import FLOOR_OF, OUTLAST_OF, SYSTEMS, TABLES
from bench.verdicts import Verdict

COLUMNS = (
    *("runs/s", "spread", "activities/s", "p50 ms", "p99 ms", "commit p99", "CPU us each"),
    *("of floor", "p50 to floor's", "Outlast's runs/s"),
)
"""The last three: throughput and latency compared with the floor's; and how many times Outlast in one process does
what this system does."""

WIDTH = 150
"""Of what is written to a file or a pipe, where no terminal says how wide it is."""


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def show_machine(console: Console, machine: Machine, server: Server | None) -> None:
    console.print(
        f"[bold]{machine.cpu}[/], {machine.cores} cores, {machine.memory_gb:.0f} GB, {machine.system}, "
        f"Python {machine.python}, SQLite {machine.sqlite}, {machine.file_system}, "
        f"fsync {machine.fsync_ms:.2f} ms, load before {machine.load:.2f}",
        highlight=False,
    )
    if server is not None:
        console.print(server.describe(), highlight=False)


def show_cells(console: Console, plan: Plan, cells: Mapping[Key, Cell]) -> None:
    for name in TABLES:
        systems = [each.name for each in SYSTEMS.values() if each.table == name and each.name in plan.systems]
        if systems:
            _show_table(console, name, systems, plan.shapes, cells)
            _show_costs(console, systems, plan.shapes, cells)
    _show_notes(console, cells)


def _show_table(
    console: Console, name: str, systems: Sequence[str], shapes: Sequence[Shape], cells: Mapping[Key, Cell]
) -> None:
    for activities in sorted({shape.activities for shape in shapes}):
        plural = "activity" if activities == 1 else "activities, one after another"
        table = Table(title=f"{name}: runs of {activities} {plural}; fsync at every commit", title_justify="left")
        for column in ("at a time", "system"):
            table.add_column(column, no_wrap=True)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for shape in sorted(each for each in shapes if each.activities == activities):
            floor, outlast = (cells.get((of[name], shape)) for of in (FLOOR_OF, OUTLAST_OF))
            for system in systems:
                first = str(shape.runs) if system == systems[0] else ""
                figures = _figures(cells[system, shape], floor, outlast)
                table.add_row(first, _bold(system), *figures, end_section=system == systems[-1])
        console.print(table)


def _figures(cell: Cell, floor: Cell | None, outlast: Cell | None) -> list[str]:
    if not cell.rounds or cell.error is not None:
        return ["failed"]
    compared = floor is not None and floor.rounds and cell is not floor
    return [
        number(cell.runs_per_s),
        f"{cell.spread:.0%}" if len(cell.rounds) > 1 else "",
        number(cell.activities_per_s),
        number(cell.p50_ms),
        number(cell.p99_ms),
        "" if cell.commit_p99_ms is None else number(cell.commit_p99_ms),
        number(cell.cpu_us_per_activity),
        f"{cell.runs_per_s / floor.runs_per_s:.1%}" if floor and compared else "",
        f"{cell.p50_ms / floor.p50_ms:.2f}" if floor and compared else "",
        _times(outlast, cell) if cell is not floor and cell is not outlast else "",
    ]


def _bold(system: str) -> str:
    return f"[bold]{system}[/]" if system in OUTLAST_OF.values() else system


def _show_costs(console: Console, systems: Sequence[str], shapes: Sequence[Shape], cells: Mapping[Key, Cell]) -> None:
    """What the server counted, per run and per activity; nothing where no server was there to count."""
    table = Table(title="What the server counted: per run / per activity", title_justify="left")
    for column in ("shape", "system"):
        table.add_column(column, no_wrap=True)
    for column in ("transactions", "statements", "WAL bytes", "rows in", "updated", "of them HOT", "deleted"):
        table.add_column(column, justify="right")
    for shape in sorted(shapes):
        for system in systems:
            cell = cells[system, shape]
            if cell.rounds and cell.rounds[0].costs is not None:
                table.add_row(str(shape), _bold(system), *_cost_figures(cell.rounds[0], shape.activities))
    if table.row_count:
        console.print(table)


def _cost_figures(measured: Measured, activities: int) -> list[str]:
    costs = measured.costs
    assert costs is not None
    runs = measured.runs_in_all

    def each(total: int | None) -> str:
        return "" if total is None else f"{number(total / runs)} / {number(total / runs / activities)}"

    hot = f"{costs.hot_updated / costs.updated:.0%}" if costs.updated else ""
    return [
        each(costs.transactions),
        each(costs.statements),
        each(costs.wal_bytes),
        each(costs.inserted),
        each(costs.updated),
        hot,
        each(costs.deleted),
    ]


def _times(outlast: Cell | None, peer: Cell) -> str:
    """How Outlast's throughput compares with a peer's."""
    if outlast is None or not outlast.rounds:
        return ""
    return f"{number(outlast.runs_per_s / peer.runs_per_s)} x"


def _show_notes(console: Console, cells: Mapping[Key, Cell]) -> None:
    told: set[str] = set()
    for (system, shape), cell in cells.items():
        if cell.error is not None:
            console.print(f"{system} at {shape} failed: {cell.error}", style="red", highlight=False, markup=False)
        if cell.rounds and system not in told:
            told.add(system)
            facts = (
                f"{key}: {number(value) if isinstance(value, float) else value}"
                for key, value in cell.rounds[0].notes.items()
            )
            console.print(f"{system}: {', '.join(facts)}", highlight=False, markup=False)


def show_growth(console: Console, growth: Growth) -> None:
    """The tables at the end, and how they came to that."""
    rate = growth.commits / growth.seconds
    console.print(
        f"{growth.runs:,} runs, {growth.commits:,} commits through the store in {growth.seconds:.0f} s "
        f"({number(rate)}/s), {growth.wal_bytes / 2**20:,.0f} MB of WAL",
        highlight=False,
    )
    table = Table(title=f"The tables after {growth.runs:,} runs", title_justify="left")
    table.add_column("table")
    for name in ("live", "dead", "most dead", "updated", "of them HOT", "deleted", "vacuums", "table MB", "indexes MB"):
        table.add_column(name, justify="right")
    for name, last in sorted(growth.looks[-1].tables.items(), key=lambda item: -item[1].table_bytes):
        table.add_row(
            name,
            f"{last.live:,}",
            f"{last.dead:,}",
            f"{max(each.tables[name].dead for each in growth.looks):,}",
            f"{last.updated:,}",
            f"{last.hot / last.updated:.0%}" if last.updated else "",
            f"{last.deleted:,}",
            str(last.vacuums),
            number(last.table_bytes / 2**20),
            number(last.index_bytes / 2**20),
        )
    console.print(table)
    sizes = (f"{name} {number(size / 2**20)} MB" for name, size in growth.indexes.items())
    console.print(f"indexes: {', '.join(sizes)}", highlight=False)
    slowest = growth.slowest
    timed = {
        "before": growth.claims_before_ms,
        f"at worst, after {slowest.runs:,}": slowest.claims_ms,
        "at the end": growth.looks[-1].claims_ms,
    }
    for when, claims_ms in timed.items():
        p50, p99 = (number(percentile(claims_ms, percent)) for percent in (50, 99))
        console.print(f"claims {when}: p50 {p50} ms, p99 {p99} ms", highlight=False)


def show_verdicts(console: Console, verdicts: Sequence[Verdict], *, judge_targets: bool) -> None:
    table = Table(title="Aims", title_justify="left")
    failures: list[Verdict] = []
    for name in ("what", "aim", "measured", ""):
        table.add_column(name)
    for each in verdicts:
        # A failure may be told by a whole traceback: its last line says what happened, the rest follows the table.
        *more, measured = each.measured.splitlines()
        table.add_row(each.name, each.aim, measured, _word(each, judge_targets))
        if more:
            failures.append(each)
    console.print(table)
    for each in failures:
        console.print(f"{each.name}: {each.measured}", style="red", highlight=False, markup=False)


def _word(verdict: Verdict, judge_targets: bool) -> str:
    if not (verdict.is_promise or judge_targets):
        return "not judged"
    if verdict.holds:
        return "[green]holds[/]"
    return "[red]BROKEN[/]" if verdict.is_promise else "[yellow]missed[/]"


def number(value: float) -> str:
    """Three digits that count; no more are true."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def as_json(
    plan: Plan,
    machine: Machine,
    cells: Mapping[Key, Cell],
    verdicts: Sequence[Verdict],
    growth: Growth | None,
    when: str,
) -> dict[str, Any]:
    return {
        "when": when,
        "machine": asdict(machine),
        "postgres": None if plan.server is None else {"version": plan.server.version, **plan.server.settings},
        "seconds_per_cell": plan.seconds,
        "rounds": plan.rounds,
        "cells": [_cell_as_json(cell) for cell in cells.values()],
        "growth": None if growth is None else growth.as_json(),
        "verdicts": [asdict(each) for each in verdicts],
    }


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    record: dict[str, Any] = {
        "system": cell.system,
        "runs": cell.shape.runs,
        "activities": cell.shape.activities,
        "error": cell.error,
        "rounds": [asdict(each) for each in cell.rounds],
    }
    if cell.rounds:
        record["median"] = {
            "runs_per_s": cell.runs_per_s,
            "activities_per_s": cell.activities_per_s,
            "p50_ms": cell.p50_ms,
            "p99_ms": cell.p99_ms,
            "commit_p50_ms": cell.commit_p50_ms,
            "commit_p99_ms": cell.commit_p99_ms,
            "cpu_us_per_activity": cell.cpu_us_per_activity,
            "spread": cell.spread,
        }
    return record
