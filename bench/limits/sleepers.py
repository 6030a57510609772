"""Very many sleeping runs in one file: what a worker process that hosts them costs, and whether it wakes them in time.

One process starts those that sleep on, and ends; a second one, which therefore has little in memory and ends at once,
those that will be due: half of them at one moment, half spread over the seconds after it. Then a fresh worker takes
over, and is watched from outside: how long until it hosts, the most memory that it ever had, and when the first
activity of each sleeper after its sleep began.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import outlast
from bench.journals import ask
from bench.limits import Scale, idle, place
from bench.limits.app import HOSTED, Effect, read_effects, sleeper, worker_process
from bench.postgres import Server
from bench.processes import memory_mb, module, result_of
from bench.verdicts import Verdict

NIGHT_S = 30 * 86_400.0
"""The others do not wake while we look."""

LANES = 256
"""Starts on their way at a time."""

PATIENCE_S = 900.0
"""For starting them all: beyond 10,000 a worker must also give back as many as it takes."""

EARLY_S = 0.01
"""The clock of the database and that of this process may be apart by this much, while the system corrects its own."""

LATE_S = 10.0
"""A sleeper that is later than this is taken for lost."""

TARGET_MB = 200.0
TARGET_READY_S = 2.0
TARGET_LATE_S = 1.0


def measure(folder: Path, scale: Scale, server: Server | None) -> list[Verdict]:
    url = place(folder, "sleepers", server)
    effects = folder / "sleepers.effects"
    asleep = scale.sleepers - scale.due
    result_of(module("bench.limits.sleepers", url, asleep, 0, 0.0, 0.0), timeout_s=PATIENCE_S)
    prepared = result_of(
        module("bench.limits.sleepers", url, 0, scale.due, scale.lead_s, scale.spread_s), timeout_s=PATIENCE_S
    )
    with worker_process(url, effects, folder) as (process, ready_s):
        ready_us = time.time_ns() // 1000
        if ready_us > prepared["first_due_us"]:
            raise AssertionError("the first sleepers were due before the worker was ready; give them a longer lead")
        _watch(process, effects, scale.due, prepared["first_due_us"] + int((scale.spread_s + LATE_S) * 1e6))
        most_mb = memory_mb(process.pid, "VmHWM")
        verdicts = _verdicts(read_effects(effects), scale, ready_s, most_mb)
        if server is not None:
            verdicts += idle.watch(server, url, process.pid, scale, f"a node with {scale.sleepers:,} sleeping runs")
    return verdicts


def _watch(process: subprocess.Popen[str], effects: Path, due: int, until_us: int) -> None:
    """Until all that are due have woken, or it is too late."""
    while len(read_effects(effects)) < due and time.time_ns() // 1000 < until_us and process.poll() is None:
        time.sleep(0.2)


def _verdicts(woken: list[Effect], scale: Scale, ready_s: float, most_mb: float) -> list[Verdict]:
    late_s = sorted((each.at_us - each.due_us) / 1e6 for each in woken)
    worst_s = late_s[-1] if late_s else float("inf")
    early = sum(each < -EARLY_S for each in late_s)
    many = f"{scale.sleepers:,} sleeping runs"
    return [
        Verdict(f"{many}: worker starts", f"under {TARGET_READY_S} s", f"{ready_s:.2f} s", ready_s < TARGET_READY_S),
        Verdict(f"{many}: worker's memory", f"under {TARGET_MB} MB", f"{most_mb:.0f} MB", most_mb < TARGET_MB),
        Verdict(
            f"{many}: the due wake",
            "each once, none early",
            f"{len(woken)} of {scale.due}, {early} early",
            len({each.idempotency_key for each in woken}) == len(woken) == scale.due and early == 0,
            is_promise=True,
        ),
        Verdict(
            f"{many}: the due wake in time",
            f"within {TARGET_LATE_S} s",
            f"at worst {worst_s:.3f} s late",
            worst_s < TARGET_LATE_S,
        ),
    ]


# --- the process that starts them -------------------------------------------------------------------------------


async def _start_all(url: str, asleep: int, due: int, lead_s: float, spread_s: float) -> dict[str, float]:
    async with outlast.connect(url) as client:
        async with client.worker(*HOSTED):

            async def lane(jobs: Iterator[tuple[str, int | None]]) -> None:
                for workflow_id, due_us in jobs:
                    if due_us is None:
                        await client.start(sleeper, NIGHT_S, 0, id=workflow_id)
                    else:
                        await client.start(sleeper, (due_us - time.time_ns() // 1000) / 1e6, due_us, id=workflow_id)

            async def lanes(jobs: Iterator[tuple[str, int | None]]) -> None:
                async with asyncio.TaskGroup() as group:
                    for _ in range(LANES):
                        group.create_task(lane(jobs))

            await lanes((f"asleep-{number}", None) for number in range(asleep))
            first_due_us = time.time_ns() // 1000 + int(lead_s * 1e6)
            await lanes((f"due-{number}", _due_us(first_due_us, number, due, spread_s)) for number in range(due))
            # A start that found the worker full has had no turn yet: it does not sleep before it has.
            while await not_asleep(url):
                await asyncio.sleep(0.2)
    return {"first_due_us": first_due_us}


async def not_asleep(url: str) -> int:
    """Runs that have not come to their sleep: its timer is the second event of their history."""
    (number,) = await ask(url, "SELECT count(*) FROM {runs} WHERE next_event < 3")
    return int(number)


def _due_us(first_due_us: int, number: int, due: int, spread_s: float) -> int:
    half = due // 2
    if number < half:
        return first_due_us
    return first_due_us + int(spread_s * 1e6 * (number - half) / (due - half))


if __name__ == "__main__":
    url, asleep, due, lead_s, spread_s = sys.argv[1:]
    print(json.dumps(asyncio.run(_start_all(url, int(asleep), int(due), float(lead_s), float(spread_s)))))
