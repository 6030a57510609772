"""What the workers of the cluster tests host, and what the driver starts.

Every attempt of an activity leaves marks outside of the database: one line when it begins, one when it ends, with the
idempotency key, the attempt, the process, what happened, and the machine's monotonic clock, which all processes of a
machine read alike. A line is one write with O_APPEND: it is in the file whole, or not at all, whatever kills us; and
the file says in which order things happened.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outlast import ActivityError, Retry, activity, workflow

SOON = Retry(initial_interval=0.01, max_interval=0.1)
"""An attempt that is lost again and again is retried with backoff; here that would only be waiting."""

WORK_S = 0.08
"""How long an attempt works: long enough to be hit in the middle."""

AWAY = "away"
"""The queue of `away`: not every worker hosts it."""

_marks = -1


def leave_marks_in(path: Path) -> None:
    global _marks
    _marks = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


def _mark(phase: str) -> None:
    info = activity.info()
    line = f"{info.idempotency_key} {info.attempt} {os.getpid()} {phase} {time.monotonic_ns()}\n"
    os.write(_marks, line.encode())


@contextmanager
def marked() -> Iterator[int]:
    """Yields the number of the attempt. One that is cancelled leaves no mark of its end: it is lost."""
    _mark("begin")
    try:
        yield activity.info().attempt
    except Exception:
        _mark("fail")
        raise
    _mark("end")


# --- orders: a bit of everything ------------------------------------------------------------------------------------


@activity(retry=SOON)
async def step(n: int) -> int:
    with marked():
        await asyncio.sleep(WORK_S)
        return n + 1


@activity(retry=SOON)
def threaded(n: int) -> int:
    with marked():
        time.sleep(WORK_S)
        return n + 1


class Flaw(Exception):
    pass


@activity(retry=SOON)
async def flaky(n: int) -> int:
    with marked() as attempt:
        if attempt == 1:
            raise Flaw("the first attempt never works")
        return n + 1


@activity(retry=SOON, queue=AWAY)
async def away(n: int) -> int:
    with marked():
        await asyncio.sleep(WORK_S)
        return n + 1


@workflow
async def order(n: int, pause_s: float) -> int:
    n = await step(n)
    a, b, c = await asyncio.gather(step(n), flaky(n), away(n))
    await workflow.sleep(pause_s)
    async with asyncio.timeout(3_600):
        d = await asyncio.to_thread(threaded, a)
    return await step(b + c + d)


@workflow
def plain_order(n: int, pause_s: float) -> int:
    n = threaded(n)
    workflow.sleep(pause_s)
    return threaded(threaded(n))


def result_of_order(n: int) -> int:
    return 3 * n + 8


def result_of_plain_order(n: int) -> int:
    return n + 3


# --- runs that wait for something to happen to their node -----------------------------------------------------------


@activity(retry=SOON)
async def linger(seconds: float) -> str:
    """Only the first attempt takes its time."""
    with marked() as attempt:
        if attempt == 1:
            await asyncio.sleep(seconds)
        return f"attempt {attempt}"


@workflow
async def lingering(seconds: float) -> str:
    return await linger(seconds)


@activity(retry=SOON)
async def hold(gate: str, name: str) -> str:
    """Until there is a file of this name."""
    with marked() as attempt:
        while not os.path.exists(os.path.join(gate, f"{name}-{attempt}")):  # noqa: ASYNC240
            await asyncio.sleep(0.01)
        return f"attempt {attempt}"


@workflow
async def held(gate: str) -> tuple[str, str]:
    return await hold(gate, "first"), await hold(gate, "second")


@workflow
async def napping(seconds: float) -> str:
    await workflow.sleep(seconds)
    await step(1)
    return "slept"


@activity(retry=SOON)
async def nap() -> None:
    with marked():
        await asyncio.sleep(0.1)


@workflow
async def short(n: int) -> int:
    await nap()
    await nap()
    return n


@workflow
async def one_away(n: int) -> int:
    return await away(n)


# --- runs that are spoken to -----------------------------------------------------------------------------------------


@workflow
class Ledger:
    def __init__(self) -> None:
        self.entries: list[str] = []
        self.closed = False

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait(lambda: self.closed)
        await workflow.wait(workflow.all_handlers_finished)
        return self.entries

    @workflow.signal
    def enter(self, entry: str) -> None:
        self.entries.append(entry)

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.query
    def count(self) -> int:
        return len(self.entries)

    @workflow.update
    async def book(self, entry: str) -> int:
        self.entries.append(entry)
        return await step(len(self.entries))

    @book.validator
    def check_book(self, entry: str) -> None:
        if not entry:
            raise ValueError("nothing to book")

    @workflow.update
    async def book_when_open(self, gate: str) -> str:
        """The first attempt waits for a file; whoever kills it makes the second one answer."""
        self.entries.append("gate")
        return await hold(gate, "book")


# --- runs that harm their node --------------------------------------------------------------------------------------


@activity(retry=Retry(max_attempts=3, initial_interval="100ms"))
async def die() -> None:
    with marked():
        os._exit(9)


@activity(retry=Retry(max_attempts=2, initial_interval="100ms"))
async def spin() -> None:
    """Blocks the event loop for ever, in a way that can be interrupted."""
    with marked():
        while True:
            pass


@activity(retry=Retry(max_attempts=2, initial_interval="100ms"))
async def swallow() -> None:
    """Blocks the event loop for ever, in a way that cannot."""
    with marked():
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass


@workflow
async def harmful(how: str) -> str:
    try:
        await {"die": die, "spin": spin, "swallow": swallow}[how]()
    except ActivityError as error:
        return type(error).__name__
    return "survived"


HOSTED = (
    order, plain_order, Ledger, lingering, held, napping, short, one_away, harmful,
    step, threaded, flaky, away, linger, hold, nap, die, spin, swallow,
)  # fmt: skip
