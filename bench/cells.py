"""The table's cells: one system under one shape of load, measured in a fresh process on a fresh file, in rounds.

Within a round the systems take turns, shape by shape, and every other round in the opposite order: so whatever else
the machine does at the time hits all alike, and none always comes after the same neighbour. A cell's figure is the
median of its rounds; the spread says how far apart they were. The peers are slow and far away from the others: one
short round is enough to tell.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.envs import NoEnvironment, python_of
from bench.load import Measured
from bench.processes import ChildFailed, module, result_of

DRIVERS = {
    "floor": "bench.floor",
    "outlast": "bench.outlast_driver",
    "dbos": "bench.peers.dbos_app",
    "temporal": "bench.peers.temporal_app",
}
"""System to the module that drives it, in the order in which they are shown."""

PEERS = ("dbos", "temporal")

PEER_SECONDS = 3.0
"""At most, per cell of a peer; its last runs take as long as they take."""

CELL_TIMEOUT_S = 240.0
"""Beyond the seconds asked for. The slowest peer needs about a minute for 256 runs of 10 activities."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    activities: int
    """Of each run, one after another."""
    runs: int
    """At a time."""

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From `64x10`: 64 runs at a time, of 10 activities each. Raises ValueError."""
        runs, times, activities = text.strip().partition("x")
        if not (times and runs.isdecimal() and activities.isdecimal() and int(runs) > 0 and int(activities) > 0):
            raise ValueError(f"{text!r} is not a shape; write for example 64x10, for 64 runs of 10 activities each")
        return cls(int(activities), int(runs))

    def __str__(self) -> str:
        return f"{self.runs}x{self.activities}"


SHAPES = tuple(Shape(activities, runs) for activities in (1, 10) for runs in (1, 16, 64, 256))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long."""

    systems: tuple[str, ...]
    shapes: tuple[Shape, ...]
    seconds: float
    warmup_s: float
    rounds: int
    folder: Path
    """On a disk. Every cell gets a folder of its own in it, which is removed afterwards."""


@dataclass(frozen=True, slots=True)
class Cell:
    """All rounds of one system under one shape, and their median."""

    system: str
    shape: Shape
    rounds: tuple[Measured, ...]
    error: str | None
    """Why a round failed; then the cell has no figures."""

    @property
    def runs_per_s(self) -> float:
        return statistics.median(each.runs_per_s for each in self.rounds)

    @property
    def activities_per_s(self) -> float:
        return statistics.median(each.activities_per_s for each in self.rounds)

    @property
    def p50_ms(self) -> float:
        return statistics.median(each.p50_ms for each in self.rounds)

    @property
    def p99_ms(self) -> float:
        return statistics.median(each.p99_ms for each in self.rounds)

    @property
    def cpu_us_per_activity(self) -> float:
        return statistics.median(each.cpu_us_per_activity for each in self.rounds)

    @property
    def spread(self) -> float:
        """How far the rounds' runs/s lie apart, as a share of their median."""
        rates = [each.runs_per_s for each in self.rounds]
        return (max(rates) - min(rates)) / self.runs_per_s


Key = tuple[str, Shape]


def measure_all(plan: Plan, tell: Callable[[str], None]) -> dict[Key, Cell]:
    """Every system under every shape. A cell that fails once is not tried again, and stops no other."""
    measured: dict[Key, list[Measured]] = {(system, shape): [] for shape in plan.shapes for system in plan.systems}
    errors: dict[Key, str] = {}
    for number in range(plan.rounds):
        for shape in plan.shapes:
            for system in _in_turn(plan.systems, number):
                key = (system, shape)
                if key in errors or (system in PEERS and number > 0):
                    continue
                tell(f"round {number + 1} of {plan.rounds}, {shape} runs x activities: {system}")
                try:
                    measured[key].append(_measure_one(plan, system, shape))
                except (ChildFailed, NoEnvironment) as error:
                    errors[key] = str(error)
    return {key: Cell(*key, tuple(rounds), errors.get(key)) for key, rounds in measured.items()}


def _in_turn(systems: Sequence[str], number: int) -> Sequence[str]:
    return systems if number % 2 == 0 else systems[::-1]


def _measure_one(plan: Plan, system: str, shape: Shape) -> Measured:
    is_peer = system in PEERS
    seconds = min(plan.seconds, PEER_SECONDS) if is_peer else plan.seconds
    folder = Path(tempfile.mkdtemp(prefix=f"{system}-{shape}-", dir=plan.folder))
    argv = module(
        DRIVERS[system],
        *("--runs", shape.runs, "--activities", shape.activities, "--folder", folder),
        *("--seconds", seconds, "--warmup", plan.warmup_s),
        python=python_of(system) if is_peer else sys.executable,
    )
    try:
        return Measured(**result_of(argv, timeout_s=seconds + plan.warmup_s + CELL_TIMEOUT_S))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
