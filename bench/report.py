"""What a reader gets to see: the tables on the terminal, and everything as JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.cells import DRIVERS, Cell, Key, Plan, Shape
from bench.machine import Machine
from bench.verdicts import Verdict

RATIOS = ("of floor", "p50 to floor's", "Outlast's runs/s")
"""Columns: throughput and latency compared with the floor's; and how many times Outlast does what this peer does."""

WIDTH = 132
"""Of what is written to a file or a pipe, where no terminal says how wide it is."""


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def show_machine(console: Console, machine: Machine) -> None:
    console.print(
        f"[bold]{machine.cpu}[/], {machine.cores} cores, {machine.memory_gb:.0f} GB, {machine.system}, "
        f"Python {machine.python}, SQLite {machine.sqlite}, {machine.file_system}, "
        f"fsync {machine.fsync_ms:.2f} ms, load before {machine.load:.2f}",
        highlight=False,
    )


def show_cells(console: Console, plan: Plan, cells: Mapping[Key, Cell]) -> None:
    for activities in sorted({shape.activities for shape in plan.shapes}):
        plural = "activity" if activities == 1 else "activities, one after another"
        table = Table(title=f"Runs of {activities} {plural}; synchronous=FULL", title_justify="left")
        for name in ("at a time", "system"):
            table.add_column(name)
        for name in ("runs/s", "spread", "activities/s", "p50 ms", "p99 ms", "CPU us each", *RATIOS):
            table.add_column(name, justify="right")
        for shape in sorted(each for each in plan.shapes if each.activities == activities):
            _add_rows(table, plan, cells, shape)
        console.print(table)
    _show_notes(console, cells)


def _add_rows(table: Table, plan: Plan, cells: Mapping[Key, Cell], shape: Shape) -> None:
    systems = [each for each in DRIVERS if each in plan.systems]
    floor, outlast = (cells.get((each, shape)) for each in ("floor", "outlast"))
    for system in systems:
        cell = cells[system, shape]
        name = str(shape.runs) if system == systems[0] else ""
        last = system == systems[-1]
        if not cell.rounds or cell.error is not None:
            table.add_row(name, system, "failed", end_section=last)
            continue
        table.add_row(
            name,
            f"[bold]{system}[/]" if system == "outlast" else system,
            number(cell.runs_per_s),
            f"{cell.spread:.0%}" if len(cell.rounds) > 1 else "",
            number(cell.activities_per_s),
            number(cell.p50_ms),
            number(cell.p99_ms),
            number(cell.cpu_us_per_activity),
            f"{cell.runs_per_s / floor.runs_per_s:.1%}" if floor and floor.rounds and system != "floor" else "",
            f"{cell.p50_ms / floor.p50_ms:.2f}" if floor and floor.rounds and system != "floor" else "",
            _times(outlast, cell) if system not in ("floor", "outlast") else "",
            end_section=last,
        )


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
    plan: Plan, machine: Machine, cells: Mapping[Key, Cell], verdicts: Sequence[Verdict], when: str
) -> dict[str, Any]:
    return {
        "when": when,
        "machine": asdict(machine),
        "seconds_per_cell": plan.seconds,
        "rounds": plan.rounds,
        "cells": [_cell_as_json(cell) for cell in cells.values()],
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
            "cpu_us_per_activity": cell.cpu_us_per_activity,
            "spread": cell.spread,
        }
    return record
