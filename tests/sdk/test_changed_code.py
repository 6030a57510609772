"""Code that is changed while runs are open: what goes on, what waits, and how it goes on again."""

from __future__ import annotations

import asyncio

import pytest

import outlast
from outlast import activity, workflow
from outlast.sdk.decorators import Durable
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


def old() -> Durable[[], object]:
    @activity(name="charge")
    async def charge() -> str:
        return "charged"

    @workflow(name="order")
    async def order() -> str:
        first = await charge()
        await workflow.sleep("1 hour")
        return f"{first}, {await charge()}"

    order.hosted = (order, charge)  # type: ignore[attr-defined]
    return order


def renamed() -> Durable[[], object]:
    @activity(name="charge_card", aliases=["charge"])
    async def charge_card() -> str:
        return "charged by card"

    @workflow(name="order")
    async def order() -> str:
        first = await charge_card()
        await workflow.sleep("1 hour")
        return f"{first}, {await charge_card()}"

    order.hosted = (order, charge_card)  # type: ignore[attr-defined]
    return order


def wrong() -> Durable[[], object]:
    @activity(name="refund")
    async def refund() -> str:
        return "refunded"

    @workflow(name="order")
    async def order() -> str:
        return await refund()

    order.hosted = (order, refund)  # type: ignore[attr-defined]
    return order


def deploy(*versions: Durable[[], object]) -> list[object]:
    """Start a run with the first version; each later one takes over. What waiting for it gives, with each."""

    async def work() -> list[object]:
        store = MemoryStore()
        seen: list[object] = []
        for version in versions:
            async with client_on(store.connect()) as client, client.worker(*version.hosted):  # type: ignore[attr-defined]
                if version is versions[0]:
                    handle = await client.start(version, id="o")
                    await asyncio.sleep(1)
                    continue
                handle = await client.handle("o", version)
                try:
                    outcome = await client.service.outcome(handle.run_id, raise_parked=True)  # type: ignore[arg-type]
                    seen.append(handle.value(outcome))
                except outlast.NondeterminismError as error:
                    seen.append(str(error))
        return seen

    return run_virtual(work())


def test_a_run_goes_on_when_the_code_is_put_right() -> None:
    diverged, result = deploy(old(), wrong(), old())
    assert "recorded:  ActivityScheduled charge #1" in str(diverged)
    assert "attempted: ActivityScheduled refund #1" in str(diverged)
    assert "test_changed_code.py" in str(diverged)
    assert result == "charged, charged"


def test_an_activity_may_be_renamed_with_an_alias() -> None:
    assert deploy(old(), renamed()) == ["charged, charged by card"]


@pytest.mark.parametrize("times", [2, 3])
def test_wrong_code_says_so_every_time(times: int) -> None:
    seen = deploy(old(), *(wrong() for _ in range(times)))
    assert len(seen) == times
    assert all("cannot be replayed" in str(each) for each in seen)
