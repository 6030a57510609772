"""The program that is given ten times more than it can do.

python overload_app.py URL      host until stdin closes: 10 attempts of 50 ms at a time, thus 200 runs per second
"""

from __future__ import annotations

import asyncio
import sys

import outlast
from outlast import Limits, activity, workflow

LIMITS = Limits(runs=500, attempts=10)


@activity
async def work(seconds: float) -> None:
    await asyncio.sleep(seconds)


@workflow
async def job(number: int) -> int:
    await work(0.05)
    return number


@workflow
async def sleeper() -> None:
    await workflow.sleep("1 day")


async def main(url: str) -> None:
    async with outlast.connect(url) as client, client.worker(job, sleeper, work, limits=LIMITS):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
