"""The workflows and activities with which the limits are measured, and a worker process that hosts them.

What an activity does is told by a line in a file that only grows (`O_APPEND`): so it can be seen from outside, and
after `kill -9`, what really ran, and when.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import outlast
from bench.outlast_driver import chain, step
from bench.processes import child, module, read_line
from outlast import activity, workflow
from outlast.model.ids import DEFAULT_QUEUE

EFFECTS = "OUTLAST_BENCH_EFFECTS"
"""Environment variable that names the file."""


READY_TIMEOUT_S = 60.0
"""A worker that takes longer does not start at all."""


class Effect(NamedTuple):
    """One line of the file: an attempt of an activity began."""

    idempotency_key: str
    at_us: int
    due_us: int
    """When it should have begun; 0 if that does not matter."""


_descriptors: dict[str, int] = {}


def append_effect(key: str, due_us: int) -> None:
    path = os.environ[EFFECTS]
    if path not in _descriptors:
        _descriptors[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    # One write, so that lines never mix, and that a kill leaves the whole line or none of it.
    os.write(_descriptors[path], f"{key} {time.time_ns() // 1000} {due_us}\n".encode())


def read_effects(path: Path) -> list[Effect]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [Effect(key, int(at_us), int(due_us)) for key, at_us, due_us in (line.split() for line in lines)]


@activity
async def labour(seconds: float) -> str:
    append_effect(activity.info().idempotency_key, 0)
    await asyncio.sleep(seconds)
    return "done"


@activity
async def ring(due_us: int) -> None:
    append_effect(activity.info().idempotency_key, due_us)


@activity
async def stamp() -> int:
    """When it ran, by a clock that all processes of a machine share."""
    return time.perf_counter_ns()


@workflow
async def stamped() -> int:
    return await stamp()


@workflow
async def fan_out(activities: int) -> int:
    """All at once."""
    return len(await asyncio.gather(*(step(index) for index in range(activities))))


@workflow
async def toil(steps: int, step_s: float) -> int:
    """One after another, each telling that it ran."""
    done = 0
    for _ in range(steps):
        await labour(step_s)
        done += 1
    return done


@workflow
async def sleeper(seconds: float, due_us: int) -> None:
    await workflow.sleep(seconds)
    await ring(due_us)


HOSTED = (chain, fan_out, toil, sleeper, stamped, step, labour, ring, stamp)


@contextmanager
def worker_process(
    url: str, effects: Path, folder: Path, *queues: str
) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A worker in a process of its own, and the seconds from its start until it hosted."""
    with open(folder / "worker.log", "a+b") as log:
        began = time.perf_counter()
        with child(module("bench.limits.app", url, *queues), log, {EFFECTS: str(effects)}) as process:
            read_line(process, "ready", log, timeout_s=READY_TIMEOUT_S)
            yield process, time.perf_counter() - began


async def host(url: str, queues: list[str]) -> None:
    """Be a worker until SIGTERM. Says `ready` once it hosts."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with outlast.connect(url) as client:
        async with client.worker(*HOSTED, queue=queues):
            print("ready", flush=True)
            await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A worker of the benchmark; started by `python -m bench`.")
    parser.add_argument("url")
    parser.add_argument("queues", nargs="*", default=[DEFAULT_QUEUE])
    given = parser.parse_args()
    asyncio.run(host(given.url, given.queues))
