"""The limits: one module per question that the tables do not answer, each with `measure(folder, scale, server)`.

What is measured runs in processes of its own; `measure` starts them, looks at them from outside, and gives verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.postgres import PREFIX, Server, fresh_database


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything. The targets are meant for `FULL`; `SMOKE` shows in seconds that all of it works."""

    gather: int
    """Activities in one gather; half and twice as many are measured too."""
    sleepers: int
    due: int
    """Of the sleepers, how many wake up while they are watched."""
    lead_s: float
    """From the start of the sleepers that will be due until the first of them is: time for a change of worker."""
    spread_s: float
    """Over which the second half of the due wake."""
    killed: int
    """Runs in flight at `kill -9`."""
    steps: int
    """Activities of each of those."""
    step_s: float
    """How long each of those activities takes."""
    replayed: int
    listed: int
    repeats: int
    """Measurements of which the median is taken, where one is cheap."""
    elsewhere: int
    """Runs that are started by one process and hosted by another."""
    idle_s: float
    """How long a node that has nothing to do is watched."""


def place(folder: Path, name: str, server: Server | None) -> str:
    """URL of a new database: a file in the folder, or on the server if there is one."""
    return f"sqlite:///{folder / name}.db" if server is None else fresh_database(server, PREFIX + name)


FULL = Scale(
    gather=10_000,
    sleepers=100_000,
    due=400,
    lead_s=20.0,
    spread_s=5.0,
    killed=1_000,
    steps=20,
    step_s=0.2,
    replayed=10_000,
    listed=1_000,
    repeats=11,
    elsewhere=300,
    idle_s=20.0,
)
SMOKE = Scale(
    gather=200,
    sleepers=300,
    due=20,
    lead_s=4.0,
    spread_s=1.0,
    killed=40,
    steps=8,
    step_s=0.05,
    replayed=300,
    listed=20,
    repeats=1,
    elsewhere=10,
    idle_s=2.0,
)
