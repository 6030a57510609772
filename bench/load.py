"""The load that every system is put under, and how it is measured. Standard library only: the peers import it too.

Theory of operation
===================
A *subject* is a system that can do one run: start a workflow, which awaits N activities one after another, and wait
for its result. So many *lanes* each do one run after another (a closed loop). Lanes start no new run when the time
is up, but finish the one they are in; the clock stops when the last of them has. So every run that was started
counts, none is cut off, and a system so slow that all its lanes move in step is measured as fairly as a fast one,
for which the last runs are a small share.

Latency is that of a whole run, from before its start is asked for until its result is here. CPU is what the process
itself used, plus what the subject says its servers used.

At the end the subject *checks* its own database: a system that answered without having done the work fails its cell.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.processes import GO, READY, server_cpu_seconds

WARMUP_LANES = 16
"""Enough to load code, fill caches and grow files; few enough that the warm-up of a slow peer ends."""


RunOnce = Callable[[str, int], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A system under load."""

    run_once: RunOnce
    """Do one run: its id, and how many activities. Returns the result of the run."""
    check: Callable[[int, int], Awaitable[None]]
    """Given how many runs were done, and of how many activities: raise unless the database holds them all, ended."""
    servers_cpu_s: Callable[[], float] = lambda: 0.0
    """CPU time of the processes, other than this one, that do the work."""
    notes: dict[str, str | float] = field(default_factory=dict)
    """What a reader of the figures should know. `check` may add to them."""
    commits: list[float] = field(default_factory=list)
    """Seconds that each commit has taken, if the driver times them; emptied when the clock is started."""
    tune: Callable[[int, int], Awaitable[int]] | None = None
    """Find its best setting for so many lanes of so many activities, before the warm-up; says how many runs it did."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a driver is given."""

    folder: Path
    """For its files, on a disk."""
    runs: int
    """At a time."""
    url: str | None = None
    """Of a fresh database on a PostgreSQL server; None where the system brings its own database."""
    server_pid: int | None = None
    """Of that server, where its CPU time can be seen from here."""

    def server_cpu_s(self) -> float:
        return 0.0 if self.server_pid is None else server_cpu_seconds(self.server_pid)


class OpenSubject(Protocol):
    """How a driver sets its system up, in this process."""

    def __call__(self, setting: Setting, /) -> AbstractAsyncContextManager[Subject]: ...


@dataclass(frozen=True, slots=True)
class Costs:
    """What a PostgreSQL server says that work has cost it."""

    transactions: int
    wal_bytes: int
    inserted: int
    updated: int
    hot_updated: int
    """Of those updated: without a new entry in any index."""
    deleted: int
    statements: int | None = None
    """None: not counted by this server."""

    def since(self, before: Costs) -> Costs:
        counted = self.statements is not None and before.statements is not None
        return Costs(
            self.transactions - before.transactions,
            self.wal_bytes - before.wal_bytes,
            self.inserted - before.inserted,
            self.updated - before.updated,
            self.hot_updated - before.hot_updated,
            self.deleted - before.deleted,
            (self.statements or 0) - (before.statements or 0) if counted else None,
        )


@dataclass(frozen=True, slots=True)
class Share:
    """What one process measured: the whole of a cell, or its part of one that is spread over several."""

    warmed_up: int
    """Runs before the clock was started."""
    began: float
    ended: float
    """By a clock that all processes of a machine share."""
    latencies: list[float]
    """Seconds, of each run."""
    commits: list[float]
    """Seconds, of each commit, where the driver can tell."""
    cpu_s: float
    notes: dict[str, str | float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one cell gave."""

    runs_done: int
    seconds: float
    runs_per_s: float
    activities_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_activity: float
    notes: dict[str, str | float]
    commit_p50_ms: float | None
    commit_p99_ms: float | None
    """From handing a commit to the store until it is known to be on disk; None where the driver cannot tell."""
    runs_in_all: int
    """With those of the warm-up: what the database holds."""
    costs: Costs | None = None
    """What all of them cost the server, filled in by whoever has started this process."""


def step_result(index: int) -> str:
    """What the activity returns: a short string, as most activities do."""
    return f"step {index} done"


def percentile(ordered: list[float], percent: float) -> float:
    """Nearest rank: a value that was really measured."""
    assert ordered
    assert 0 < percent <= 100
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


async def measure(
    subject: Subject,
    *,
    runs: int,
    activities: int,
    seconds: float,
    warmup_s: float,
    name: str = "run",
    gate: Callable[[], Awaitable[None]] | None = None,
) -> Share:
    """Warm up, pass the gate, and put the subject under load. `name` begins the ids of all runs."""
    tuned = 0 if subject.tune is None else await subject.tune(runs, activities)
    warmed_up = await lanes(subject.run_once, f"warm-{name}", min(runs, WARMUP_LANES), activities, warmup_s)
    if gate is not None:
        await gate()
    subject.commits.clear()
    cpu_before = time.process_time() + subject.servers_cpu_s()
    began = time.perf_counter()
    latencies = await lanes(subject.run_once, name, runs, activities, seconds)
    ended = time.perf_counter()
    cpu_s = time.process_time() + subject.servers_cpu_s() - cpu_before
    return Share(tuned + len(warmed_up), began, ended, latencies, list(subject.commits), cpu_s, subject.notes)


def measured(shares: Sequence[Share], activities: int, server_cpu_s: float = 0.0) -> Measured:
    """The cell that these shares are the parts of."""
    latencies = sorted(each for share in shares for each in share.latencies)
    commits = sorted(each for share in shares for each in share.commits)
    elapsed = max(share.ended for share in shares) - min(share.began for share in shares)
    done = len(latencies)
    cpu_s = sum(share.cpu_s for share in shares) + server_cpu_s
    return Measured(
        runs_done=done,
        seconds=elapsed,
        runs_per_s=done / elapsed,
        activities_per_s=done * activities / elapsed,
        p50_ms=percentile(latencies, 50) * 1e3,
        p99_ms=percentile(latencies, 99) * 1e3,
        cpu_us_per_activity=cpu_s / (done * activities) * 1e6,
        notes=shares[0].notes,
        commit_p50_ms=percentile(commits, 50) * 1e3 if commits else None,
        commit_p99_ms=percentile(commits, 99) * 1e3 if commits else None,
        runs_in_all=done + sum(share.warmed_up for share in shares),
    )


async def lanes(run_once: RunOnce, name: str, runs: int, activities: int, seconds: float) -> list[float]:
    """Latencies in seconds of all runs, by so many lanes until the time is up; each does at least one."""
    latencies: list[float] = []
    clock = time.perf_counter
    until = clock() + seconds
    expected = step_result(activities - 1)

    async def lane(number: int) -> None:
        count = 0
        while True:
            began = clock()
            result = await run_once(f"{name}-{number}-{count}", activities)
            now = clock()
            if result != expected:
                raise AssertionError(f"run {name}-{number}-{count} returned {result!r}, expected {expected!r}")
            latencies.append(now - began)
            count += 1
            if now >= until:
                return

    async with asyncio.TaskGroup() as group:
        for number in range(runs):
            group.create_task(lane(number))
    return latencies


def main(open_subject: OpenSubject) -> None:
    """Be the process of one cell, or of a share of one: measure, and print the result as the last line, in JSON."""
    parser = argparse.ArgumentParser(description="One cell of the benchmark; started by `python -m bench`.")
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--activities", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warmup", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--url")
    parser.add_argument("--server-pid", type=int)
    parser.add_argument("--prepare", action="store_true", help="Only make the schema.")
    parser.add_argument("--share", metavar="NAME", help="Be one of several processes; see `bench.spread`.")
    given = parser.parse_args()
    print(json.dumps(asyncio.run(_cell(open_subject, given))), flush=True)


async def _cell(open_subject: OpenSubject, given: argparse.Namespace) -> dict[str, Any]:
    # Ctrl-C reaches all processes of the terminal, and then our parent asks us to end as well: both only cancel,
    # so that nothing keeps a driver from ending the servers that it has started.
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    load = {"runs": given.runs, "activities": given.activities, "seconds": given.seconds, "warmup_s": given.warmup}
    async with open_subject(Setting(given.folder, given.runs, given.url, given.server_pid)) as subject:
        if given.prepare:
            return {}
        if given.share is not None:
            return asdict(await measure(subject, **load, name=f"run-{given.share}", gate=_gate))
        share = await measure(subject, **load)
        await subject.check(share.warmed_up + len(share.latencies), given.activities)
        return asdict(measured([share], given.activities))


async def _gate() -> None:
    """Wait until all shares are ready, so that they are measured at the same time."""
    print(READY, flush=True)
    # In a thread: the worker in this process must go on telling that it is alive.
    if (await asyncio.to_thread(sys.stdin.readline)).strip() != GO:
        raise AssertionError("the process that started this one has ended")
