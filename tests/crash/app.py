"""The program that the kill tests kill: workflows whose activities leave a mark outside of the database.

python app.py DB MARKS             host everything, say "ready", and go on until killed or until stdin closes
"""

from __future__ import annotations

import asyncio
import os
import sys

import outlast
from outlast import ActivityLost, Retry, activity, workflow

SOON = Retry(initial_interval=0.01, max_interval=0.1)
"""An attempt that is lost again and again is retried with backoff; here that would only be waiting."""

marks = -1


def mark(text: str) -> None:
    """One write with O_APPEND: on disk whole, or not at all, whatever kills us."""
    os.write(marks, f"{text}\n".encode())


@activity(retry=SOON)
async def step(n: int) -> int:
    info = activity.info()
    mark(f"{info.idempotency_key} {info.attempt}")
    await asyncio.sleep(0.001)
    return n + 1


@activity(retry=SOON)
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


@activity(retry=Retry(max_attempts=3, initial_interval="100ms"))
async def die() -> None:
    info = activity.info()
    mark(f"{info.idempotency_key} {info.attempt}")
    os._exit(9)


@workflow
async def doomed() -> str:
    try:
        await die()
    except ActivityLost:
        return "lost"
    return "survived"


@workflow
async def deadly() -> None:
    os._exit(9)


@activity
async def linger(seconds: float) -> str:
    info = activity.info()
    mark(f"{info.idempotency_key} {info.attempt}")
    if info.attempt == 1:
        await asyncio.sleep(seconds)
    return "done"


@workflow
async def lingering(seconds: float) -> str:
    return await linger(seconds)


HOSTED = (chain, step, threaded, doomed, die, deadly, lingering, linger)


async def main(url: str) -> None:
    async with outlast.connect(url) as client, client.worker(*HOSTED):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    marks = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    asyncio.run(main(sys.argv[1]))
