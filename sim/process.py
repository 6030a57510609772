"""A simulated process: an event loop, a clock, entropy, a store object, the real service, and perhaps a worker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from outlast import Limits
from outlast.model.errors import Busy, CommitUnknown, StoreUnavailable
from outlast.model.ids import DEFAULT_NAMESPACE, NodeId, RunId
from outlast.runtime.ports import SystemEntropy
from outlast.runtime.service import Service
from outlast.sdk.client import Client
from outlast.sdk.worker import Worker
from sim.loop import SECOND_US, ProcessLoop
from sim.plan import NodePlan
from sim.seam import SeamStore
from sim.told import COMMON, EVERYTHING

if TYPE_CHECKING:
    from sim.world import World

EPOCH_US = 1_780_000_000_000_000
"""2026-05-28T20:26:40Z"""


class SimEntropy(SystemEntropy):
    """The real one's ids, from a stream that is drawn again."""

    def __init__(self, stream: str) -> None:
        self._random = random.Random(stream)


class SimClock:
    """What the node takes for the database's clock: that of the world, and a skew of its own."""

    def __init__(self, world: World, skew_us: int) -> None:
        self._world = world
        self._skew_us = skew_us

    def now_us(self) -> int:
        return self._world.wall_us() + self._skew_us

    def monotonic(self) -> float:
        return self._world.scheduler.now_us / SECOND_US


class Process:
    """One life of a process; a restart makes another one of the same name."""

    def __init__(self, world: World, name: str, life: int, node: NodePlan | None) -> None:
        self.world = world
        self.name = f"{name}.{life}"
        self.node = node
        self.node_ids: list[NodeId] = []
        """All ids under which it has joined."""
        self.gone_from_us: int | None = None
        """From when on the kernel tells the others that it has ended."""
        stream = f"{world.plan.seed}/{self.name}"
        self.loop = ProcessLoop(  # type: ignore[abstract]
            world.scheduler, random.Random(f"loop/{stream}"), self._entered, self._broken
        )
        self.entropy = SimEntropy(f"entropy/{stream}")
        self.store = SeamStore(world, self, random.Random(f"store/{stream}"))
        clock = SimClock(world, 0 if node is None else node.skew_us)
        self.client = self._on_loop(lambda: Client(Service(self.store, clock, self.entropy, DEFAULT_NAMESPACE)))  # type: ignore[arg-type]
        self.worker: Worker | None = None
        self._leave = self.loop.create_future()
        self.hosts = False
        """It has joined, and has not begun to leave."""
        self.ended = False

    @property
    def alive(self) -> bool:
        return not self.loop.dead and not self.ended

    @property
    def stays(self) -> bool:
        """It lives, and is not about to leave."""
        return self.alive and not self._leave.done()

    def _entered(self) -> None:
        self.world.running = self

    def _broken(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "never retrieved" not in context.get("message", ""):
            self.world.broken(f"{self.name}: {context.get('message')}: {error!r}", error)

    def _on_loop(self, make: Any) -> Any:
        asyncio._set_running_loop(self.loop)
        try:
            return make()
        finally:
            asyncio._set_running_loop(None)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(work)

    # --- a worker's life ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        if self.node is not None:
            self.spawn(self._host(self.node)).add_done_callback(self._hosted)

    def _hosted(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.broken(f"{self.name} could not host: {error!r}", error)

    async def _host(self, plan: NodePlan) -> None:
        limits = Limits(runs=plan.room, attempts=plan.slots)
        hosted = EVERYTHING if plan.everything else COMMON
        worker = self.client.worker(*hosted, queue=plan.queues, name=self.name, limits=limits)
        while True:
            try:
                await worker.__aenter__()
                break
            except (Busy, StoreUnavailable, CommitUnknown):
                await asyncio.sleep(0.3)
        self.worker, self.hosts = worker, True
        await self._leave
        self.hosts = False
        await worker.__aexit__()
        self.world.covered["left gracefully"] += 1
        await self.client.service.close()
        self.ended = True
        self.loop.kill()
        self.gone_from_us = self.world.scheduler.now_us

    def leave(self) -> None:
        if not self._leave.done():
            self.loop.post(lambda: None if self._leave.done() else self._leave.set_result(None))

    def crash(self, known_gone_s: float | None) -> None:
        """kill -9: nothing of it runs any more. What it has sent to the database may still arrive."""
        if self.loop.dead:
            return
        self.world.note(self.name, "is killed")
        self.world.covered["crash"] += 1
        self.loop.kill()
        if known_gone_s is not None:
            self.gone_from_us = self.world.scheduler.now_us + int(known_gone_s * SECOND_US)

    # --- looks inside, for the checks only ----------------------------------------------------------------------------

    def is_member(self) -> bool:
        """Its present node is alive by the database."""
        membership = self.client.service.membership
        return membership is not None and self.world.database.is_alive(membership.node.node_id)

    def hosted(self) -> dict[RunId, Any]:
        membership = self.client.service.membership
        return {} if membership is None else membership.node.hosted

    def tear_down(self) -> None:
        for hosted in list(self.hosted().values()):
            hosted.program.close()
        self.loop.tear_down()
