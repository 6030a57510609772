"""Many seeds: one after the other, or spread over worker processes; what happened in them is added up.

A worker process is started anew with its environment set, rather than forked: `PYTHONHASHSEED` orders the sets of
strings that the runtime iterates over, and must be the same everywhere for a seed to mean the same.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from sim.plan import HINT_FAULTS, STORE_FAULTS, draw_plan
from sim.workloads import KINDS
from sim.world import Outcome, simulate

COLLECT_EVERY = 20
"""Worlds between two garbage collections: in between, cycles of dead worlds cost memory and no time."""

BATCH = 32
"""Seeds per worker process that are handed out at a time: at the end of each, one of them waits for the other."""

MUST_HAPPEN = (
    *STORE_FAULTS,
    *HINT_FAULTS,
    "crash",
    "pause",
    "zombie",
    "left gracefully",
    "clock jump",
    "killed by an activity",
    "poisoned",
    "late write arrives",
    "write of a killed process arrives",
    "commit fenced",
    "commit mail waiting",
    "commit id in use",
    "send full",
    "send closed",
    "send accepted",
    "claimed lost run",
    "claimed lost task",
    "task delivered",
    "saw a result",
    "saw a failure",
    "run completed",
    "run failed",
    "run cancelled",
    "run terminated",
    "signal acknowledged",
    "signal sent twice",
    "signal to a closed run",
    "signal with a start",
    "signal with no start",
    "update accepted",
    "update answered",
    "update failed",
    "update refused",
    "update to a closed run",
    "update and the run had ended",
    "update with a start",
    "update with no start",
    "update asked twice",
    "update answered TurnFailed",
    "query of a run here",
    "query of a run elsewhere",
    "query of a run that has ended",
    "query without the code",
    *(f"step {kind}" for kind in (*KINDS, "listen")),
    *(
        f"event {name}"
        for name in (
            "ActivityAttemptFailed",
            "ActivityAttemptLost",
            "ActivityCancelled",
            "ActivityCompleted",
            "ActivityFailed",
            "MessageUnhandled",
            "TimerCancelled",
            "TimerFired",
            "WorkflowExecutionCancelRequested",
            "WorkflowExecutionSignaled",
            "WorkflowExecutionUpdateAccepted",
            "WorkflowExecutionUpdateCompleted",
        )
    ),
)
"""A campaign in which one of these never happened has proved nothing about it."""


def run_seed(seed: int) -> Outcome:
    if seed % COLLECT_EVERY == 0:
        gc.collect()
    return simulate(draw_plan(seed))


@contextmanager
def _collector_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_seeds(seeds: Iterable[int], jobs: int = 1) -> Iterator[Outcome]:
    """In no particular order if there are several jobs."""
    if jobs == 1:
        with _collector_off():
            yield from map(run_seed, seeds)
        return
    waiting = iter(seeds)
    with multiprocessing.get_context("spawn").Pool(jobs, gc.disable) as pool:
        while batch := list(islice(waiting, jobs * BATCH)):  # the seeds may have no end
            yield from pool.imap_unordered(run_seed, batch, chunksize=2)


class Summary:
    """What happened in a campaign."""

    def __init__(self) -> None:
        self.covered: Counter[str] = Counter()
        self.worlds = 0
        self.virtual_s = 0.0
        self.failures: list[Outcome] = []
        self._began = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        self.worlds += 1
        self.virtual_s += outcome.virtual_s
        self.covered.update(outcome.covered)
        if outcome.violation is not None:
            self.failures.append(outcome)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def never_happened(self) -> list[str]:
        return [each for each in MUST_HAPPEN if not self.covered[each]]


def run_campaign(
    seeds: Iterable[int],
    *,
    jobs: int = 1,
    seconds: float | None = None,
    failures: int = 1,
    progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Until the seeds are used up, the time is over, or so many of them have failed."""
    summary = Summary()
    outcomes = run_seeds(seeds, jobs)
    for outcome in outcomes:
        summary.add(outcome)
        progress(summary)
        if len(summary.failures) >= failures or (seconds is not None and summary.seconds >= seconds):
            break
    outcomes.close()  # type: ignore[attr-defined]
    return summary
