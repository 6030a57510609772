"""The table's cells: one system under one shape of load, measured in a fresh process on a fresh database, in rounds.

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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.envs import NoEnvironment, python_of
from bench.load import Measured
from bench.postgres import PREFIX, NoServer, Server, account, database_exists, drop_database, fresh_database
from bench.processes import ChildFailed, module, result_of
from bench.systems import SYSTEMS, System

CELL_DATABASE = PREFIX + "cell"

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
    server: Server | None = None
    """For the systems that need one."""


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
    def commit_p99_ms(self) -> float | None:
        return _median(each.commit_p99_ms for each in self.rounds)

    @property
    def commit_p50_ms(self) -> float | None:
        return _median(each.commit_p50_ms for each in self.rounds)

    @property
    def spread(self) -> float:
        """How far the rounds' runs/s lie apart, as a share of their median."""
        rates = [each.runs_per_s for each in self.rounds]
        return (max(rates) - min(rates)) / self.runs_per_s


def _median(values: Iterable[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return statistics.median(known) if known else None


Key = tuple[str, Shape]


def measure_all(plan: Plan, tell: Callable[[str], None]) -> dict[Key, Cell]:
    """Every system under every shape. A cell that fails once is not tried again, and stops no other."""
    measured: dict[Key, list[Measured]] = {(system, shape): [] for shape in plan.shapes for system in plan.systems}
    errors: dict[Key, str] = {}
    for number in range(plan.rounds):
        for shape in plan.shapes:
            for system in _in_turn(plan.systems, number):
                key = (system, shape)
                if key in errors or (SYSTEMS[system].peer and number > 0):
                    continue
                tell(f"round {number + 1} of {plan.rounds}, {shape} runs x activities: {system}")
                try:
                    measured[key].append(_measure_one(plan, system, shape))
                except (ChildFailed, NoEnvironment, NoServer) as error:
                    errors[key] = str(error)
    return {key: Cell(*key, tuple(rounds), errors.get(key)) for key, rounds in measured.items()}


def _in_turn(systems: Sequence[str], number: int) -> Sequence[str]:
    return systems if number % 2 == 0 else systems[::-1]


def _measure_one(plan: Plan, name: str, shape: Shape) -> Measured:
    system = SYSTEMS[name]
    seconds = min(plan.seconds, PEER_SECONDS) if system.peer else plan.seconds
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-{shape}-", dir=plan.folder))
    arguments: list[object] = ["--runs", shape.runs, "--activities", shape.activities, "--folder", folder]
    arguments += ["--seconds", seconds, "--warmup", plan.warmup_s]
    timeout_s = seconds + plan.warmup_s + CELL_TIMEOUT_S
    try:
        if system.needs_server:
            assert plan.server is not None
            return _on_server(plan.server, system, arguments, timeout_s)
        return Measured(**result_of(_command(system, arguments), timeout_s=timeout_s))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(system: System, arguments: Sequence[object]) -> list[str]:
    if system.processes > 1:
        return module("bench.spread", *arguments, "--processes", system.processes)
    return module(system.module, *arguments, python=python_of(system.peer) if system.peer else sys.executable)


def _on_server(where: Server, system: System, arguments: Sequence[object], timeout_s: float) -> Measured:
    """In a fresh copy of a database in which the system has made its schema; with what the server says it cost."""
    template = _prepared(where, system, arguments, timeout_s)
    url = fresh_database(where, CELL_DATABASE, template)
    arguments = (*arguments, "--url", url, *(("--server-pid", where.pid) if where.pid else ()))
    try:
        before = account(where, CELL_DATABASE)
        result = Measured(**result_of(_command(system, arguments), timeout_s=timeout_s))
        return replace(result, costs=account(where, CELL_DATABASE).since(before))
    finally:
        drop_database(where, CELL_DATABASE)


def _prepared(where: Server, system: System, arguments: Sequence[object], timeout_s: float) -> str:
    """The database with the system's schema; made the first time, by a process of the system itself."""
    template = f"{PREFIX}{system.module.rpartition('.')[2]}"
    if not database_exists(where, template):
        url = fresh_database(where, template)
        try:
            alone = replace(system, processes=1)
            result_of(_command(alone, (*arguments, "--url", url, "--prepare")), timeout_s=timeout_s)
        except ChildFailed:
            drop_database(where, template)
            raise
    return template
