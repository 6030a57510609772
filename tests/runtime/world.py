"""Workflows, activities and looks inside that the tests of the runtime share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from faults import FaultyStore
from outlast import activity, workflow
from outlast.engine.invariants import check_history
from outlast.runtime.membership import Membership
from outlast.sdk.client import Client
from outlast.sdk.handle import Handle
from outlast.store.memory import MemoryStore
from virtual import VirtualClock, client_on

executed: Counter[tuple[str, int]] = Counter()
"""Attempts whose code was entered, by (idempotency key, attempt)."""


def note() -> None:
    info = activity.info()
    executed[info.idempotency_key, info.attempt] += 1


@activity
async def add_one(n: int) -> int:
    note()
    return n + 1


@activity
async def take_time(seconds: float) -> str:
    note()
    await asyncio.sleep(seconds)
    return "done"


@workflow
async def two_steps(n: int) -> int:
    return await add_one(await add_one(n))


@workflow
async def long_step(seconds: float) -> str:
    return await take_time(seconds)


@workflow
async def nap(seconds: float) -> str:
    await workflow.sleep(seconds)
    return "rested"


@workflow
async def nap_then_step(seconds: float) -> int:
    await workflow.sleep(seconds)
    return await add_one(1)


@workflow
async def stubborn() -> str:
    """Goes on when it is asked to cancel."""
    try:
        await workflow.sleep(3600)
    except asyncio.CancelledError:
        return "not cancelled"
    return "slept"


HOSTED = (add_one, take_time, two_steps, long_step, nap, nap_then_step, stubborn)


@asynccontextmanager
async def client_with_faults(
    data: MemoryStore, clock: VirtualClock | None = None
) -> AsyncIterator[tuple[Client, FaultyStore]]:
    store = FaultyStore(data.connect())
    async with client_on(store, clock) as client:  # type: ignore[arg-type]
        yield client, store


def membership_of(client: Client) -> Membership:
    membership = client.service.membership
    assert membership is not None
    return membership


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Virtual seconds: this costs no time, and says what never became true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, "the condition did not become true"
        await asyncio.sleep(0.01)


async def names(handle: Handle[Any]) -> list[str]:
    """The events of a run, after a check that they are a history."""
    history = await handle.history()
    check_history(history)
    return [type(each.event).__name__ for each in history]


async def nothing_is_left(client: Client) -> None:
    """Neither the service nor the node keeps anything for runs that have ended, a moment later."""
    await asyncio.sleep(1)
    service = client.service
    assert not service._watched
    assert not service._raise_parked
    if service.membership is not None:
        node = service.membership.node
        assert not node.hosted
        assert not node.looks
        assert not node.attempts._running
        assert not node.committer._waiting
        assert not node.committer._in_flight
