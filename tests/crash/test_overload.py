"""A real worker process that is given ten times more than it can do, for a minute: it stays responsive and small."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

import overload_app as app
import psutil
import pytest

import outlast
import postgres
from outlast import Busy, Client, Handle
from processes import WorkerProcess, results_of

APP = Path(__file__).with_name("overload_app.py")
MAX_BACKLOG = 5_000
RATE = 2_000
LOAD_S = 60.0
SOON_S = 1.0
GROWTH_MB = 30.0
"""In 50 s of overload, while 10,000 runs pass through the worker."""


class Probe:
    """Asks what users ask while the load is on, and keeps the longest that each took."""

    def __init__(self, client: Client, worker: WorkerProcess, sleepers: list[Handle[None]]) -> None:
        self.worst: dict[str, float] = {}
        self.rss_mb: list[float] = []
        self.beats: set[int] = set()
        self._client = client
        self._process = psutil.Process(worker.pid)
        self._sleepers = sleepers

    async def ask(self) -> None:
        while True:
            sleeper = self._sleepers.pop()
            await self._timed("describe", sleeper.describe())
            await self._timed("list", self._client.runs(limit=20))
            await self._timed("start", self._start())
            await self._timed("terminate", self._end(sleeper))
            (node,) = [each for each in await self._client.service.store.nodes() if each.alive]
            self.beats.add(node.counter)
            self.rss_mb.append(self._process.memory_info().rss / 1e6)
            await asyncio.sleep(1.0)

    async def _timed(self, what: str, work: Awaitable[object]) -> None:
        began = time.monotonic()
        await work
        self.worst[what] = max(self.worst.get(what, 0.0), time.monotonic() - began)

    async def _start(self) -> None:
        with contextlib.suppress(Busy):
            await self._client.start(app.job, -1)

    async def _end(self, sleeper: Handle[None]) -> None:
        await sleeper.terminate()
        with pytest.raises(outlast.WorkflowTerminated):
            await sleeper.result()


async def overload(client: Client) -> tuple[list[Handle[int]], int]:
    """Start `RATE` runs per second. What was accepted, and how many were refused."""
    accepted: list[Handle[int]] = []
    refused, offered, began = 0, 0, time.monotonic()

    async def start(number: int) -> None:
        nonlocal refused
        try:
            accepted.append(await client.start(app.job, number))
        except Busy:
            refused += 1

    while (elapsed := time.monotonic() - began) < LOAD_S:
        due = int(elapsed * RATE)
        await asyncio.gather(*(start(number) for number in range(offered, due)))
        offered = due
        await asyncio.sleep(0.05)
    return accepted, refused


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/o.db"
        return
    database = postgres.require(postgres.fresh_database)
    yield database
    postgres.drop_database(database)


@pytest.mark.slow
async def test_a_worker_that_is_given_ten_times_too_much_stays_small_and_responsive_and_recovers(url: str) -> None:
    async with outlast.connect(url, max_backlog=MAX_BACKLOG) as client, outlast.connect(url) as asking:
        worker = WorkerProcess(APP, url)
        sleepers = [await asking.start(app.sleeper) for _ in range(200)]
        probe = Probe(asking, worker, sleepers)
        probing = asyncio.ensure_future(probe.ask())
        accepted, refused = await overload(client)
        probing.cancel()
        await asyncio.wait([probing])
        assert probing.cancelled(), probing.exception()
        print(probe.worst, "RSS in MB", probe.rss_mb, "beats", len(probe.beats), len(accepted), "accepted", refused)
        assert refused > len(accepted), "it was overload"
        assert len(accepted) > MAX_BACKLOG
        assert max(probe.worst.values()) < SOON_S
        assert len(probe.beats) > len(probe.rss_mb) / 3, "its heart beat all the time, every two seconds or so"
        assert probe.rss_mb[-1] - probe.rss_mb[10] < GROWTH_MB

        await results_of(accepted, patience_s=120)
        began = time.monotonic()
        assert await asking.execute(app.job, 7) == 7
        assert time.monotonic() - began < SOON_S, "as soon as ever"
        for sleeper in sleepers:
            await sleeper.terminate()
        assert worker.end() == 0
