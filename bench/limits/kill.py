"""`kill -9` of a worker with many runs in flight, and another one in its place.

Between the two, the histories are read: what they say was done must never be done again. What really ran is told by
the file of effects (see `app.py`). In the end every run must have its result, and every activity one completion.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import outlast
from bench.limits import Scale, place
from bench.limits.app import EFFECTS, HOSTED, Effect, read_effects, toil, worker_process
from bench.postgres import Server
from bench.processes import child, kill, module, read_line
from bench.verdicts import Verdict
from outlast.model.events import ActivityCompleted

TARGET_S = 1.0
POSTGRES_TARGET_S = 2.0
"""From the start of the new process until an activity runs in it. PostgreSQL looks twice before it believes a death."""

SHARE_BEFORE = 0.3
"""Of all activities: when so many have begun, the worker is killed."""

PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the database held at the moment between the two workers, or at the end."""

    completed: tuple[str, ...]
    """Idempotency keys of the activities that histories say were completed; twice if a history says it twice."""
    open_runs: int


def measure(folder: Path, scale: Scale, server: Server | None) -> list[Verdict]:
    url = place(folder, "kill", server)
    effects = folder / "kill.effects"
    _work_and_die(url, effects, folder, scale)
    at_kill = asyncio.run(_read(url, scale))
    all_keys = scale.killed * scale.steps
    if at_kill.open_runs != scale.killed or not 0 < len(at_kill.completed) < all_keys:
        raise AssertionError(f"the kill came at the wrong moment: {at_kill.open_runs} of {scale.killed} runs were open")
    before = len(read_effects(effects))
    restarted_us = time.time_ns() // 1000
    with worker_process(url, effects, folder):
        results = asyncio.run(_results(url, scale))
    at_end = asyncio.run(_read(url, scale))
    target_s = TARGET_S if server is None else POSTGRES_TARGET_S
    return _verdicts(scale, at_kill, at_end, results, read_effects(effects), before, restarted_us, target_s)


def _verdicts(
    scale: Scale,
    at_kill: Recorded,
    at_end: Recorded,
    results: list[int],
    effects: list[Effect],
    before: int,
    restarted_us: int,
    target_s: float,
) -> list[Verdict]:
    after = effects[before:]
    first_s = (after[0].at_us - restarted_us) / 1e6 if after else float("inf")
    began = {each.idempotency_key for each in effects}
    again = {each.idempotency_key for each in after}.intersection(at_kill.completed)
    unrecorded = len(effects) - len(began)
    all_keys = scale.killed * scale.steps
    once_each = len(at_end.completed) == len(set(at_end.completed)) == all_keys and began.issuperset(at_end.completed)
    name = f"kill -9 with {scale.killed:,} runs in flight"
    return [
        Verdict(f"{name}: first progress", f"within {target_s} s", f"{first_s:.2f} s", first_s < target_s),
        Verdict(
            f"{name}: nothing lost",
            "every run ends, every activity is recorded once",
            f"{results.count(scale.steps):,} runs, {len(at_end.completed):,} activities",
            results == [scale.steps] * scale.killed and once_each,
            is_promise=True,
        ),
        Verdict(
            f"{name}: no recorded activity runs twice",
            f"0 of {len(at_kill.completed):,}",
            f"{len(again)} (and {unrecorded:,} that had not reported ran again)",
            not again,
            is_promise=True,
        ),
    ]


# --- looking from outside ---------------------------------------------------------------------------------------


def _work_and_die(url: str, effects: Path, folder: Path, scale: Scale) -> None:
    argv = module("bench.limits.kill", url, scale.killed, scale.steps, scale.step_s)
    enough = int(SHARE_BEFORE * scale.killed * scale.steps)
    with open(folder / "kill.log", "w+b") as log, child(argv, log, {EFFECTS: str(effects)}) as process:
        read_line(process, "started", log, timeout_s=PATIENCE_S)
        _wait(lambda: len(read_effects(effects)) >= enough, "the worker to get some way")
        kill(process)


def _wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.02)


async def _read(url: str, scale: Scale) -> Recorded:
    """The histories, read by a process that is no worker."""
    completed: list[str] = []
    open_runs = 0
    async with outlast.connect(url) as client:
        for number in range(scale.killed):
            handle = await client.handle(_workflow_id(number), toil)
            open_runs += (await handle.describe()).row.status == "open"
            completed += [
                f"{handle.run_id}/{item.event.activity_id}"
                for item in await handle.history()
                if isinstance(item.event, ActivityCompleted)
            ]
    return Recorded(tuple(completed), open_runs)


async def _results(url: str, scale: Scale) -> list[int]:
    async with outlast.connect(url) as client:
        handles = [await client.handle(_workflow_id(number), toil) for number in range(scale.killed)]
        async with asyncio.timeout(PATIENCE_S):
            results: list[int] = await asyncio.gather(*(handle.result() for handle in handles))
            return results


def _workflow_id(number: int) -> str:
    return f"toil-{number}"


# --- the process that is killed ---------------------------------------------------------------------------------


async def _work(url: str, runs: int, steps: int, step_s: float) -> None:
    async with outlast.connect(url) as client:
        async with client.worker(*HOSTED):
            starts = (client.start(toil, steps, step_s, id=_workflow_id(number)) for number in range(runs))
            handles = await asyncio.gather(*starts)
            print("started", flush=True)
            await asyncio.gather(*(handle.result() for handle in handles))


if __name__ == "__main__":
    assert EFFECTS in os.environ
    asyncio.run(_work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
