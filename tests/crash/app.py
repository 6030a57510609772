"""The program that the kill tests kill: workflows whose activities leave a mark outside of the database.

    python app.py DB MARKS             host everything, say "ready", and go on until killed or until stdin closes
"""

from __future__ import annotations

import asyncio
import os
import sys

import outlast
from outlast import activity, workflow

marks = -1


def mark(text: str) -> None:
    """One write with O_APPEND: on disk whole, or not at all, whatever kills us."""
    os.write(marks, f"{text}\n".encode())


@activity
async def step(n: int) -> int:
    info = activity.info()
    mark(f"{info.idempotency_key} {info.attempt}")
    await asyncio.sleep(0.001)
    return n + 1


@activity
def threaded(n: int) -> int:
    info = activity.info()
    mark(f"{info.idempotency_key} {info.attempt}")
    return n + 1


@workflow
async def chain(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await step(n)
    await workflow.sleep(0.01)
    a, b = await asyncio.gather(step(n), step(n))
    return threaded(a + b - n - 1)


async def main(url: str) -> None:
    async with outlast.connect(url) as client, client.worker(chain, step, threaded):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    marks = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    asyncio.run(main(sys.argv[1]))
