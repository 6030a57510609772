"""Virtual time: an event loop whose clock jumps to the next timer whenever nothing is left to do.

Hours of waiting take no time, and the order of things does not depend on the speed of the machine. For everything
that runs on the loop itself (the memory store, async activities); a thread at work does not stop the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from outlast.model.ids import DEFAULT_NAMESPACE
from outlast.runtime.ports import SystemEntropy
from outlast.runtime.service import Service
from outlast.sdk.client import Client
from outlast.store.api import Store

T = TypeVar("T")

START_US = 1_780_000_000_000_000
"""2026-05-28T20:26:40Z"""


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0]._when)
        super()._run_once()


class VirtualClock:
    """The database's clock on a virtual loop. `jump_us` sets it forward or back, as an administrator would."""

    def __init__(self) -> None:
        self.jump_us = 0

    def now_us(self) -> int:
        return START_US + self.jump_us + round(asyncio.get_running_loop().time() * 1e6)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


@asynccontextmanager
async def client_on(store: Store, clock: VirtualClock | None = None) -> AsyncIterator[Client]:
    await store.open()
    service = Service(store, clock or VirtualClock(), SystemEntropy(), DEFAULT_NAMESPACE)
    try:
        yield Client(service)
    finally:
        await service.close()
        await store.close()
