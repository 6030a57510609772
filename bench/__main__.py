"""The benchmark: `python -m bench` from the root of the repository prints a table and writes JSON.

    python -m bench                        Outlast and the floor, three rounds (some minutes)
    python -m bench --peers --limits       all of it: also DBOS and Temporal, and the limits
    python -m bench --only outlast,kill    named parts only
    python -m bench --smoke                a little of everything but the peers, in seconds: does it all work?

It ends with an error if a part fails or a promise is broken (see `verdicts.py`); a missed target is only shown.
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from bench import envs, machine, report
from bench.cells import DRIVERS, PEERS, SHAPES, Plan, Shape, measure_all
from bench.limits import FULL, SMOKE, Scale
from bench.processes import ROOT
from bench.verdicts import Verdict, against_floor

SYSTEMS = ("floor", "outlast")
LIMITS = ("gather", "sleepers", "kill", "replay", "startup")
"""Modules of `bench.limits`, in the order in which they run."""

ROUNDS = 3
WARMUP_S = 0.5

SMOKE_PLAN = Plan(SYSTEMS, (Shape(1, 1), Shape(3, 4)), seconds=0.3, warmup_s=0.1, rounds=1, folder=Path())
"""Too short for figures to mean anything: targets are not judged by it."""


def parse_shapes(context: click.Context, parameter: click.Parameter, text: str) -> tuple[Shape, ...]:
    try:
        return tuple(Shape.parse(each) for each in text.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def parse_parts(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    known = (*DRIVERS, *LIMITS)
    parts = tuple(each.strip() for each in text.split(",")) if text else ()
    if unknown := [each for each in parts if each not in known]:
        raise click.BadParameter(f"{', '.join(unknown)}; known are: {', '.join(known)}")
    return parts


@click.command(context_settings={"max_content_width": 120})
@click.option("--peers", is_flag=True, help="Also DBOS and Temporal; their environments are made under .venvs/ (PyPI).")
@click.option("--limits", is_flag=True, help=f"Also the limits: {', '.join(LIMITS)}.")
@click.option("--only", "parts", callback=parse_parts, metavar="PARTS", help="These systems and limits, no others.")
@click.option(
    "--shapes",
    callback=parse_shapes,
    default=",".join(map(str, SHAPES)),
    show_default=True,
    help="Runs at a time x activities of each.",
)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="Per cell and round.")
@click.option("--smoke", is_flag=True, help="Tiny, under 20 s, no peers: for CI.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="[default: bench/results/<date>.json]")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(tempfile.gettempdir()),
    show_default=True,
    help="Where the databases are; must be on a disk.",
)
def main(
    peers: bool,
    limits: bool,
    parts: tuple[str, ...],
    shapes: tuple[Shape, ...],
    seconds: float,
    smoke: bool,
    target: Path | None,
    folder: Path,
) -> None:
    """Measure Outlast: beside the floor that SQLite sets, beside its peers, and at its limits."""
    if smoke and peers:
        raise click.UsageError("--smoke measures no peers")
    if not parts:
        parts = SYSTEMS + (PEERS if peers else ()) + (LIMITS if limits or smoke else ())
    try:
        machine.check_is_disk(folder)
    except machine.NoDisk as error:
        raise click.UsageError(str(error)) from None
    if peers:
        _make_environments()
    # SIGTERM unwinds like Ctrl-C, so that no child is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work = Path(tempfile.mkdtemp(prefix="outlast-bench-", dir=folder))
    systems = tuple(each for each in DRIVERS if each in parts)
    plan = Plan(systems, shapes, seconds, WARMUP_S, ROUNDS, work)
    if smoke:
        plan = replace(SMOKE_PLAN, systems=systems, folder=work)
    try:
        passed = _measure(plan, [each for each in LIMITS if each in parts], smoke, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(0 if passed else 1)


def _make_environments() -> None:
    for peer in PEERS:
        try:
            envs.make(peer)
        except (subprocess.CalledProcessError, OSError) as error:
            raise click.ClickException(f"the environment for {peer} could not be made: {error}") from None


def _measure(plan: Plan, limits: list[str], smoke: bool, target: Path | None) -> bool:
    """Measure, show, write. False if anything failed or a promise was broken."""
    console = report.console()
    progress = Console(stderr=True)
    described = machine.describe(plan.folder)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    report.show_machine(console, described)
    cells = {}
    verdicts: list[Verdict] = []
    if plan.systems:
        cells = measure_all(plan, lambda text: progress.print(text, style="dim", highlight=False))
        report.show_cells(console, plan, cells)
        verdicts += against_floor(cells)
    for name in limits:
        progress.print(f"limit: {name}", style="dim", highlight=False)
        verdicts += _limit(name, plan.folder, SMOKE if smoke else FULL)
    if verdicts:
        report.show_verdicts(console, verdicts, judge_targets=not smoke)
    target = target or ROOT / "bench" / "results" / f"{when.replace(':', '')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report.as_json(plan, described, cells, verdicts, when), indent=1) + "\n")
    console.print(f"written to {target}", highlight=False)
    return all(cell.error is None for cell in cells.values()) and all(
        each.holds for each in verdicts if each.is_promise
    )


def _limit(name: str, folder: Path, scale: Scale) -> list[Verdict]:
    """One limit. If it cannot be measured, that is a broken promise too: something does not work."""
    own = folder / name
    own.mkdir()
    try:
        verdicts: list[Verdict] = importlib.import_module(f"bench.limits.{name}").measure(own, scale)
        return verdicts
    except Exception as error:
        return [Verdict(name, "can be measured", f"{type(error).__name__}: {error}", holds=False, is_promise=True)]
    finally:
        shutil.rmtree(own, ignore_errors=True)


if __name__ == "__main__":
    main()
