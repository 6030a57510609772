"""The simulator: `python -m sim` from the root of the repository.

    python -m sim                          300 seeds on all cores
    python -m sim --seeds 5000 --from 100  those seeds
    python -m sim --seconds 30             as many as fit, from a random one on unless --from is given
    python -m sim --seed 42                one seed; add -v for the trace of all that happens in it
    python -m sim --seed 42 --without run:r1 --without rate:busy   the same with parts left out

A seed that fails is shrunk, and its trace printed with the command that shows it again. Exit code 1 then; 2 if what
should have happened somewhere (every kind of fault among it) never did.
"""

from __future__ import annotations

import itertools
import os
import secrets
import sys
from collections.abc import Iterable
from contextlib import ExitStack

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sim.bugs import BUGS, planted
from sim.campaign import Summary, run_campaign
from sim.plan import draw_plan, options_of
from sim.shrink import apply, shrink
from sim.world import Outcome, simulate

TRACE_LINES = 60
"""The end of the trace that is printed for a failure; `-v` prints all of it."""

console = Console(soft_wrap=True, highlight=False)


@click.command(context_settings={"max_content_width": 120})
@click.option("--seeds", type=click.IntRange(min=1), default=None, help="How many.  [default: 300]")
@click.option("--from", "first", type=click.IntRange(min=0), default=None, help="The first of them.  [default: 0]")
@click.option("--seconds", type=click.FloatRange(min=0.1), help="As many as fit into this time.")
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, help="Processes.  [default: cores]")
@click.option("--seed", type=click.IntRange(min=0), help="Only this one, in this process.")
@click.option("--without", "left_out", multiple=True, metavar="PART", help="With --seed: leave out a part of its plan.")
@click.option("--bug", type=click.Choice(sorted(BUGS)), help="Plant a bug, to see it found.")
@click.option("--failures", type=click.IntRange(min=1), default=1, show_default=True, help="Stop after so many.")
@click.option("-v", "--verbose", is_flag=True, help="With --seed: print all that happens.")
def main(
    seeds: int | None,
    first: int | None,
    seconds: float | None,
    jobs: int,
    seed: int | None,
    left_out: tuple[str, ...],
    bug: str | None,
    failures: int,
    verbose: bool,
) -> None:
    with ExitStack() as stack:
        if bug is not None:
            stack.enter_context(planted(bug))
            jobs = 1
        if seed is not None:
            sys.exit(show_seed(seed, list(left_out), verbose=verbose))
        if first is None:
            first = secrets.randbelow(10**9) if seconds is not None else 0
        many = itertools.count(first) if seconds is not None and seeds is None else range(first, first + (seeds or 300))
        summary = campaign(
            many, jobs, seconds, failures, None if seconds is not None and seeds is None else seeds or 300
        )
        console.print(table_of(summary))
        for failure in summary.failures:
            show_failure(failure, bug)
        sys.exit(verdict(summary))


def campaign(seeds: Iterable[int], jobs: int, seconds: float | None, failures: int, total: int | None) -> Summary:
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=total, rate="")

        def progress(summary: Summary) -> None:
            bar.update(task, completed=summary.worlds, rate=f"{summary.worlds / max(summary.seconds, 0.1):.0f} seeds/s")

        return run_campaign(seeds, jobs=jobs, seconds=seconds, failures=failures, progress=progress)


def verdict(summary: Summary) -> int:
    rate = summary.worlds / max(summary.seconds, 0.001)
    console.print(
        f"{summary.worlds} worlds, {summary.virtual_s / 3600:.1f} h of virtual time in {summary.seconds:.1f} s "
        f"({rate:.1f} seeds/s); {len(summary.failures)} failed"
    )
    if summary.failures:
        return 1
    missing = summary.never_happened()
    if missing and summary.worlds >= 300:
        console.print(f"never happened, so nothing is proved about it: {', '.join(missing)}")
        return 2
    return 0


def table_of(summary: Summary) -> Table:
    table = Table(title="what happened", box=None, show_header=False)
    items = sorted(summary.covered.items())
    third = -(-len(items) // 3)
    for at in range(third):
        cells: list[str] = []
        for name, count in (items[each] for each in range(at, len(items), third)):
            cells += [name, str(count)]
        table.add_row(*cells)
    return table


def show_seed(seed: int, left_out: list[str], *, verbose: bool) -> int:
    plan = apply(draw_plan(seed), left_out)
    outcome = simulate(plan, verbose=verbose)
    if verbose:
        for what in (options_of(plan), *plan.nodes, *plan.runs, *plan.faults, *outcome.log):
            console.print(str(what), markup=False)
    console.print(f"seed {seed}: {outcome.violation or 'all is well'}; trace {outcome.trace}", markup=False)
    return 0 if outcome.violation is None else 1


def show_failure(failure: Outcome, bug: str | None) -> None:
    console.print(f"\nseed {failure.seed}: {failure.violation}\n", style="bold red", markup=False)
    assert failure.violation is not None
    left_out, _ = shrink(failure.seed, failure.violation)
    plan = apply(draw_plan(failure.seed), left_out)
    smallest = simulate(plan, verbose=True)
    for what in (options_of(plan), *plan.nodes, *plan.runs, *plan.faults, "...", *smallest.log[-TRACE_LINES:]):
        console.print(str(what), markup=False)
    words = [
        f"--seed {failure.seed}",
        *(f"--without {part}" for part in left_out),
        *([f"--bug '{bug}'"] if bug else []),
    ]
    console.print(f"\nTo see it again: python -m sim {' '.join(words)} -v", style="bold", markup=False)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of strings are iterated over in the runtime: their order must be the same in every process.
        os.execve(sys.executable, [sys.executable, "-m", "sim", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    main()
