"""A run that is started by a process that hosts nothing: how long until its first activity runs in another one.

Both clocks are the machine's monotonic one, so the two processes are comparable. One run after another, so that what
is measured is how fast the word gets around, not how much can be done.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import outlast
from bench.limits import Scale, place
from bench.limits.app import stamped, worker_process
from bench.load import percentile
from bench.postgres import Server
from bench.processes import module, result_of
from bench.verdicts import Verdict

TARGET_P50_MS = 5.0

WARM_UP = 5
"""Runs before those that count: code is loaded, plans are made."""


def measure(folder: Path, scale: Scale, server: Server | None) -> list[Verdict]:
    url = place(folder, "elsewhere", server)
    with worker_process(url, folder / "elsewhere.effects", folder):
        measured = result_of(module("bench.limits.elsewhere", url, scale.elsewhere), timeout_s=120)
    first, whole = (sorted(measured[each]) for each in ("first_ms", "whole_ms"))
    p50_ms = percentile(first, 50)
    return [
        Verdict(
            "a start by another process: until its first activity runs, p50",
            f"under {TARGET_P50_MS:.0f} ms",
            f"{p50_ms:.1f} ms (p99 {percentile(first, 99):.1f} ms; "
            f"until the result is back, p50 {percentile(whole, 50):.1f} ms)",
            p50_ms < TARGET_P50_MS,
        )
    ]


async def _start_elsewhere(url: str, runs: int) -> dict[str, list[float]]:
    first_ms: list[float] = []
    whole_ms: list[float] = []
    async with outlast.connect(url) as client:
        for number in range(WARM_UP + runs):
            began = time.perf_counter_ns()
            handle = await client.start(stamped, id=f"elsewhere-{number}")
            ran_at = await handle.result()
            ended = time.perf_counter_ns()
            if not began < ran_at < ended:
                raise AssertionError(f"run {number} says that it ran at {ran_at}, not between {began} and {ended}")
            first_ms.append((ran_at - began) / 1e6)
            whole_ms.append((ended - began) / 1e6)
    return {"first_ms": first_ms[WARM_UP:], "whole_ms": whole_ms[WARM_UP:]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_start_elsewhere(sys.argv[1], int(sys.argv[2])))))
