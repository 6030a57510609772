"""Chaos by plan: what is done to the workers and to the database while a load of runs goes through, from a seed.

The plan says after how many starts of runs each blow falls, so that it falls in the middle on every machine. How far
the processes are at that moment is up to the machine: a seed repeats the plan, not the outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, assert_never

from cluster import programs
from cluster.databases import Database, PostgresDatabase
from cluster.marks import read_marks
from cluster.nodes import Cluster, nodes_of, until_dead
from outlast import Client
from outlast.model.errors import Busy, CommitUnknown, StoreUnavailable
from processes import WorkerProcess, until_true

T = TypeVar("T")

PAUSE_S = 0.05

BUSY_WITHIN_S = 2.0


class Blow(Enum):
    KILL = "kill -9, start again"
    STOP = "SIGSTOP until its node was declared dead, SIGCONT"
    TERM = "SIGTERM, start again"
    CUT = "have the server end half of the connections"
    RESTART = "restart the server"
    CRASH = "kill the server, start it again"


TO_PROCESSES = (Blow.KILL, Blow.STOP, Blow.TERM)
TO_SERVER = (Blow.CUT, Blow.RESTART, Blow.CRASH)


def blows_for(database: Database) -> tuple[Blow, ...]:
    """What can be done here."""
    match database:
        case PostgresDatabase() if database.can_restart():
            return TO_PROCESSES + TO_SERVER
        case PostgresDatabase():
            return (*TO_PROCESSES, Blow.CUT)
        case _:
            return TO_PROCESSES


@dataclass(frozen=True, slots=True)
class Planned:
    after: int
    """Falls when so many runs were started."""
    blow: Blow
    slot: int
    """Which worker it hits, if it is one that hits a worker."""


@dataclass(frozen=True, slots=True)
class Order:
    workflow_id: str
    workflow: Any
    n: int
    pause_s: float
    result: int


def plan_blows(rng: random.Random, blows: Sequence[Blow], count: int, runs: int, slots: int) -> list[Planned]:
    """Each kind of blow in turn, at random moments, and to random workers."""
    kinds = [blows[number % len(blows)] for number in range(count)]
    rng.shuffle(kinds)
    moments = sorted(rng.randrange(runs // 10, runs) for _ in range(count))
    return [Planned(after, blow, rng.randrange(slots)) for after, blow in zip(moments, kinds, strict=True)]


def plan_orders(rng: random.Random, runs: int, max_pause_s: float) -> list[Order]:
    orders: list[Order] = []
    for n in range(runs):
        pause_s = round(rng.uniform(0, max_pause_s), 3)
        if rng.random() < 0.75:
            orders.append(Order(f"order-{n}", programs.order, n, pause_s, programs.result_of_order(n)))
        else:
            orders.append(Order(f"plain-{n}", programs.plain_order, n, pause_s, programs.result_of_plain_order(n)))
    return orders


class Storm:
    """Worker slots, and the blows that fall on them."""

    def __init__(
        self, cluster: Cluster, client: Client, blows: Sequence[Planned], rng: random.Random, lease_s: float
    ) -> None:
        self.stopped: set[int] = set()
        """Processes that were stopped for a while."""
        self._cluster = cluster
        self._client = client
        self._blows = list(blows)
        self._rng = rng
        self._lease_s = lease_s
        self._slots: list[WorkerProcess] = []
        self._locks: list[asyncio.Lock] = []
        self._restarting = asyncio.Lock()

    async def begin(self, slots: int) -> None:
        starts = (self._cluster.start_surely(*_queues(slot)) for slot in range(slots))
        self._slots = list(await asyncio.gather(*starts))
        self._locks = [asyncio.Lock() for _ in range(slots)]

    def started(self, runs: int, group: asyncio.TaskGroup) -> None:
        """So many runs were started: blows that are due fall, beside everything else."""
        while self._blows and self._blows[0].after <= runs:
            group.create_task(self._fall(self._blows.pop(0)))

    async def end(self) -> None:
        """Every blow has fallen, and what it hit is up again: ask all workers to end."""
        assert not self._blows
        await self._cluster.end(self._slots)

    async def _fall(self, planned: Planned) -> None:
        match planned.blow:
            case Blow.KILL | Blow.STOP | Blow.TERM:
                async with self._locks[planned.slot]:
                    await self._strike(planned.blow, planned.slot)
            case Blow.CUT:
                await self._server().cut(self._rng, share=0.5)
            case Blow.RESTART | Blow.CRASH:
                async with self._restarting:
                    await self._server().restart(crash=planned.blow is Blow.CRASH)
            case _:
                assert_never(planned.blow)

    def _server(self) -> PostgresDatabase:
        assert isinstance(self._cluster.database, PostgresDatabase)
        return self._cluster.database

    async def _strike(self, blow: Literal[Blow.KILL, Blow.STOP, Blow.TERM], slot: int) -> None:
        worker = self._slots[slot]
        with contextlib.suppress(TimeoutError):  # there may be nothing left to do
            await until_true(lambda: self._is_busy(worker), BUSY_WITHIN_S)
        if blow is Blow.STOP:
            await self._stop(worker)
            return
        if blow is Blow.KILL:
            assert worker.is_alive(), f"it ended by itself:\n{self._cluster.said_by(worker)}"
            worker.kill()
        else:
            await self._cluster.end([worker])
        self._slots[slot] = await self._cluster.start_surely(*_queues(slot))

    async def _is_busy(self, worker: WorkerProcess) -> bool:
        """Whether it is in the middle of an attempt: there a blow hurts."""
        marks = [mark for mark in read_marks(self._cluster.marks) if mark.pid == worker.pid]
        phases = {(mark.key, mark.attempt): mark.phase for mark in marks}
        return "begin" in phases.values()

    async def _stop(self, worker: WorkerProcess) -> None:
        """Wherever it stands. On SQLite, if that is within a transaction, nobody can write and declare it dead; then
        it goes on after a while, and so does everybody."""
        nodes = await surely(lambda: nodes_of(self._client, worker))
        self.stopped.add(worker.pid)
        worker.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._lease_s):
                for node in nodes:
                    await surely(lambda node=node: until_dead(self._client, node))
        worker.go_on()


def _queues(slot: int) -> tuple[str, ...]:
    """All host the workflows; the first and every second after it leave the activities of the queue "away" to others,
    so that these are dispatched by some and run in place by others."""
    return ("--queue", "default") if slot % 2 == 0 else ("--queue", "default", "--queue", programs.AWAY)


async def drive(client: Client, orders: Sequence[Order], in_flight: int, started: Callable[[int], None]) -> None:
    """Start the runs, so many at a time as are `in_flight`, and check each result.

    The timers within them set the pace: so it takes as long as it takes on any machine.
    """
    room = asyncio.Semaphore(in_flight)

    async def one(order: Order) -> None:
        result = await surely(
            lambda: client.options(id=order.workflow_id).execute(order.workflow, order.n, order.pause_s)
        )
        assert result == order.result, order
        room.release()

    async with asyncio.TaskGroup() as group:
        for number, order in enumerate(orders):
            await room.acquire()
            group.create_task(one(order))
            started(number + 1)


async def surely(work: Callable[[], Awaitable[T]]) -> T:
    """As a program does it that has to go on when the database is away for a while."""
    while True:
        try:
            return await work()
        except (Busy, StoreUnavailable, CommitUnknown):
            await asyncio.sleep(PAUSE_S)
