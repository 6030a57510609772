"""The program whose event loop the tests of the watchdog block: every way to keep it from going on.

python blocked_app.py URL MARKS [interrupt_s]      as app.py; without interrupt_s, the limits that users have
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import threading
import time

import outlast
from outlast import ActivityTimeout, Limits, Retry, activity, workflow
from outlast.runtime import membership
from outlast.runtime.watchdog import Watchdog

TWICE = Retry(max_attempts=2, initial_interval="10ms")

marks = -1


def mark(text: str) -> None:
    os.write(marks, f"{text}\n".encode())


def note() -> None:
    mark(f"{activity.info().activity} {activity.info().attempt}")


@activity(retry=TWICE)
async def spin() -> None:
    note()
    while True:
        pass


@activity(retry=TWICE)
async def sleep_in_c() -> None:
    note()
    time.sleep(10**9)  # noqa: ASYNC251  the mistake that people make


@activity(retry=TWICE)
async def swallow() -> None:
    note()
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


@activity(retry=TWICE)
async def spin_beside_itself() -> None:
    note()

    async def beside() -> None:
        while True:
            pass

    await asyncio.gather(beside(), asyncio.sleep(3600))


@activity
async def step(n: int) -> int:
    await asyncio.sleep(0.01)
    return n + 1


@workflow
async def count(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await step(n)
    return n


@workflow
async def calls(name: str) -> str:
    """How the activity that blocks has ended."""
    try:
        await {each.name: each for each in (spin, sleep_in_c, swallow, spin_beside_itself)}[name]()
    except ActivityTimeout as error:
        return f"timeout: {error}"
    except outlast.ActivityLost as error:
        return f"lost: {error}"
    return "done"


@workflow
async def spins() -> str:
    await asyncio.sleep(0.01)
    while True:
        pass


@workflow
def spins_plainly() -> str:
    workflow.sleep(0.01)
    while True:
        pass


HOSTED = (spin, sleep_in_c, swallow, spin_beside_itself, step, count, calls, spins, spins_plainly)


async def main(url: str, limits: Limits) -> None:
    async with outlast.connect(url) as client, client.worker(*HOSTED, limits=limits):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


def run(url: str, limits: Limits) -> None:
    asyncio.run(main(url, limits))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    marks = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    given = Limits()
    if len(sys.argv) > 3:
        given = Limits(interrupt_s=float(sys.argv[3]))
        membership.Watchdog = functools.partial(Watchdog, give_up_s=1.0)  # type: ignore[assignment, misc]
    if os.environ.get("LOOP_THREAD"):  # where no signal can help
        thread = threading.Thread(target=run, args=(sys.argv[1], given))
        thread.start()
        thread.join()
    else:
        run(sys.argv[1], given)
