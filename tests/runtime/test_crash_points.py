"""The process dies at every commit of a scenario, right before the write and right after it: always the same end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashing import CrashingStore
from outlast import activity, workflow
from outlast.engine.invariants import check_history
from outlast.model.events import ActivityAttemptLost, ActivityCompleted
from outlast.model.ids import RunId
from outlast.sdk.client import Client
from outlast.store.api import Store
from outlast.store.memory import MemoryStore
from outlast.store.sqlite import SqliteStore
from virtual import client_on, run_virtual

executed: Counter[tuple[str, int]] = Counter()


def note() -> None:
    info = activity.info()
    executed[info.activity_id, info.attempt] += 1


@activity
async def charge_payment(order: str) -> str:
    note()
    return f"paid {order}"


@activity
async def ship(order: str) -> str:
    note()
    if activity.info().attempt == 1:
        raise ConnectionError("the warehouse does not answer")
    return f"shipped {order}"


@activity
async def confirm(order: str, to: str) -> str:
    note()
    return f"told {to} about {order}"


@workflow
async def fulfil(order: str) -> list[str]:
    paid = await charge_payment(order)
    await workflow.sleep("2 minutes", label="wait-for-warehouse")
    shipped = await ship(order)
    told = await asyncio.gather(confirm(order, "customer"), confirm(order, "accounting"))
    await asyncio.wait_for(asyncio.sleep(60), timeout=120)
    return [paid, shipped, *told]


EXPECTED = ["paid 7", "shipped 7", "told customer about 7", "told accounting about 7"]
HOSTED = (fulfil, charge_payment, ship, confirm)


dead: list[object] = []
"""What a process that was killed was waiting for must not be collected as garbage before its test is over."""


@pytest.fixture(autouse=True)
def _bury_the_dead() -> Iterator[None]:
    yield
    dead.clear()


async def until_crash(store: Store, at: int, *, written: bool) -> bool:
    """Run the scenario in a process that dies at commit `at`. False: it came to its end first."""
    crashing = CrashingStore(store, at, written=written)
    async with client_on(crashing) as client:  # type: ignore[arg-type]
        worker = client.worker(*HOSTED)
        await worker.__aenter__()
        membership = client.service.membership
        assert membership is not None
        dead.append((crashing, membership))
        begun = asyncio.ensure_future(client.execute(fulfil, "7", id="order-7"))
        crashed = asyncio.ensure_future(crashing.crashed.wait())
        await asyncio.wait([begun, crashed], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        crashed.cancel()
        membership.abandon()
    return crashing.crashed.is_set()


async def after_crash(store: Store) -> None:
    async with client_on(store) as client, client.worker(*HOSTED):
        assert await client.execute(fulfil, "7", id="order-7") == EXPECTED
        await check(client)


async def check(client: Client) -> None:
    rows = await client.runs()
    assert len(rows) == 1
    history = await client.service.history(RunId(rows[0].run_id))
    check_history(history)
    for each in history:
        match each.event:
            case ActivityCompleted(activity_id=activity_id, attempt=attempt):
                assert executed[activity_id, attempt] == 1
            case ActivityAttemptLost(activity_id=activity_id, attempt=attempt):
                assert executed[activity_id, attempt] <= 1
    assert max(executed.values()) == 1, "one attempt was executed twice"


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
def test_a_crash_at_every_commit_changes_nothing_but_attempts(written: bool) -> None:
    at = 0
    crashed = True
    while crashed:
        at += 1
        executed.clear()
        data = MemoryStore()

        async def scenario(data: MemoryStore = data, at: int = at) -> bool:
            crashed = await until_crash(data.connect(), at, written=written)
            await after_crash(data.connect())
            return crashed

        crashed = run_virtual(scenario())
    assert at >= 7, "the scenario has at least six commits, when as many as possible share one"


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
def test_two_crashes_in_a_row(written: bool) -> None:
    for first in range(1, 9):
        for second in range(1, 5):
            executed.clear()
            data = MemoryStore()

            async def scenario(data: MemoryStore = data, first: int = first, second: int = second) -> None:
                await until_crash(data.connect(), first, written=written)
                await until_crash(data.connect(), second, written=written)
                await after_crash(data.connect())

            run_virtual(scenario())


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
def test_a_crash_at_every_commit_on_sqlite(tmp_path: Path, written: bool) -> None:
    at = 0
    crashed = True
    while crashed:
        at += 1
        executed.clear()
        path = str(tmp_path / f"{at}.db")

        async def scenario(path: str = path, at: int = at) -> bool:
            crashed = await until_crash(SqliteStore(path), at, written=written)
            await after_crash(SqliteStore(path))
            return crashed

        crashed = run_virtual(scenario())
    assert at >= 7, "the scenario has at least six commits, when as many as possible share one"
