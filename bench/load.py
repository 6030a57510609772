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
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

WARMUP_LANES = 16
"""Enough to load code, fill caches and grow files; few enough that the warm-up of a slow peer ends."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A system under load."""

    run_once: Callable[[str, int], Awaitable[str]]
    """Do one run: its id, and how many activities. Returns the result of the run."""
    check: Callable[[int, int], Awaitable[None]]
    """Given how many runs were done, and of how many activities: raise unless the database holds them all, ended."""
    servers_cpu_s: Callable[[], float] = lambda: 0.0
    """CPU time of the processes, other than this one, that do the work."""
    notes: dict[str, str | float] = field(default_factory=dict)
    """What a reader of the figures should know. `check` may add to them."""


class OpenSubject(Protocol):
    """How a driver sets its system up, in this process, with its files in the folder, for so many runs at a time."""

    def __call__(self, folder: Path, runs: int, /) -> AbstractAsyncContextManager[Subject]: ...


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


def step_result(index: int) -> str:
    """What the activity returns: a short string, as most activities do."""
    return f"step {index} done"


def percentile(ordered: list[float], percent: float) -> float:
    """Nearest rank: a value that was really measured."""
    assert ordered
    assert 0 < percent <= 100
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


async def measure(subject: Subject, *, runs: int, activities: int, seconds: float, warmup_s: float) -> Measured:
    warmed_up = await _lanes(subject, "warm", min(runs, WARMUP_LANES), activities, warmup_s)
    cpu_before = time.process_time() + subject.servers_cpu_s()
    began = time.perf_counter()
    latencies = await _lanes(subject, "run", runs, activities, seconds)
    elapsed = time.perf_counter() - began
    cpu_s = time.process_time() + subject.servers_cpu_s() - cpu_before
    await subject.check(len(warmed_up) + len(latencies), activities)
    latencies.sort()
    done = len(latencies)
    return Measured(
        runs_done=done,
        seconds=elapsed,
        runs_per_s=done / elapsed,
        activities_per_s=done * activities / elapsed,
        p50_ms=percentile(latencies, 50) * 1e3,
        p99_ms=percentile(latencies, 99) * 1e3,
        cpu_us_per_activity=cpu_s / (done * activities) * 1e6,
        notes=subject.notes,
    )


async def _lanes(subject: Subject, name: str, lanes: int, activities: int, seconds: float) -> list[float]:
    """Latencies in seconds of all runs, by so many lanes until the time is up; each does at least one."""
    latencies: list[float] = []
    clock = time.perf_counter
    until = clock() + seconds
    expected = step_result(activities - 1)

    async def lane(number: int) -> None:
        count = 0
        while True:
            began = clock()
            result = await subject.run_once(f"{name}-{number}-{count}", activities)
            now = clock()
            if result != expected:
                raise AssertionError(f"run {name}-{number}-{count} returned {result!r}, expected {expected!r}")
            latencies.append(now - began)
            count += 1
            if now >= until:
                return

    async with asyncio.TaskGroup() as group:
        for number in range(lanes):
            group.create_task(lane(number))
    return latencies


def main(open_subject: OpenSubject) -> None:
    """Be the process of one cell: measure, and print the result as the last line, in JSON."""
    parser = argparse.ArgumentParser(description="One cell of the benchmark; started by `python -m bench`.")
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--activities", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warmup", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()

    async def cell() -> Measured:
        # Ctrl-C reaches all processes of the terminal, and then our parent asks us to end as well: both only cancel,
        # so that nothing keeps a driver from ending the servers that it has started.
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        async with open_subject(given.folder, given.runs) as subject:
            return await measure(
                subject,
                runs=given.runs,
                activities=given.activities,
                seconds=given.seconds,
                warmup_s=given.warmup,
            )

    print(json.dumps(asdict(asyncio.run(cell()))), flush=True)
