"""Many activities in one gather of one run: how long, and how memory grows with their number."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import outlast
from bench.limits import Scale, place
from bench.limits.app import HOSTED, fan_out
from bench.postgres import Server
from bench.processes import memory_mb, module, result_of
from bench.verdicts import Verdict

TARGET_S = 3.0
"""For 10,000 activities."""

LINEAR = 1.25
"""From half to twice the number, memory may grow by a quarter more than the number does: up to that it is noise."""


def measure(folder: Path, scale: Scale, server: Server | None) -> list[Verdict]:
    half, whole, twice = (
        _measured(place(folder, f"gather_{number}", server), number)
        for number in (scale.gather // 2, scale.gather, scale.gather * 2)
    )
    growth = (twice["grew_mb"] - half["grew_mb"]) / (3 * max(whole["grew_mb"] - half["grew_mb"], 0.1))
    seconds = whole["seconds"]
    return [
        Verdict(
            f"{scale.gather:,} activities in one gather",
            f"under {TARGET_S:.0f} s",
            f"{seconds:.2f} s",
            seconds < TARGET_S,
        ),
        Verdict(
            f"memory of {scale.gather // 2:,} / {scale.gather:,} / {scale.gather * 2:,} activities in one gather",
            "grows no faster than their number",
            " / ".join(f"{each['grew_mb']:.1f} MB" for each in (half, whole, twice)),
            growth <= LINEAR,
        ),
    ]


def _measured(url: str, number: int) -> dict[str, float]:
    measured: dict[str, float] = result_of(module("bench.limits.gather", url, number), timeout_s=300)
    return measured


async def _gather(url: str, number: int) -> dict[str, float]:
    async with outlast.connect(url) as client:
        async with client.worker(*HOSTED):
            # Whatever is loaded at the first use is not memory of the run.
            await client.execute(fan_out, 10, id="warm")
            before_mb = memory_mb(os.getpid(), "VmRSS")
            began = time.perf_counter()
            gathered = await client.execute(fan_out, number, id="gather")
            seconds = time.perf_counter() - began
    if gathered != number:
        raise AssertionError(f"{gathered} activities were gathered, expected {number}")
    return {"seconds": seconds, "grew_mb": memory_mb(os.getpid(), "VmHWM") - before_mb}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_gather(sys.argv[1], int(sys.argv[2])))))
