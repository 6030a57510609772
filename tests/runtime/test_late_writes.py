"""Writes that come through after their caller was told that nobody knows: a database server goes on with what it was
asked, though the line to whoever asked was cut. Whenever it lands, nothing is stranded, and nothing is done twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from world import HOSTED, executed, membership_of, names, nap, nothing_is_left, two_steps, until

from faults import Call, FaultyStore
from outlast import CommitUnknown, workflow
from outlast.sdk.client import Client
from outlast.sdk.handle import Handle
from outlast.store.api import RunStatus
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 3_600))


class LateStore(FaultyStore):
    """Its next call of a method fails, and its write lands when the test says so."""

    landed: list[Any]

    def cut(self, method: str) -> Callable[[], Coroutine[Any, Any, None]]:
        asked: list[Call] = []
        self.landed = []

        async def fault(call: Call) -> Any:
            asked.append(call)
            raise CommitUnknown("the line was cut")

        async def land() -> None:
            self.landed.append(await asked.pop()())

        self._faults[method].append(fault)
        return land


@asynccontextmanager
async def a_client(data: MemoryStore) -> AsyncIterator[tuple[Client, LateStore]]:
    store = LateStore(data.connect())
    async with client_on(store) as client:  # type: ignore[arg-type]
        yield client, store


async def nobody_is_stranded(client: Client) -> None:
    """Every open run that the node owns is in its memory."""
    node = membership_of(client).node
    for row in await client.runs():
        assert row.status is not RunStatus.OPEN or row.owner != node.node_id or row.run_id in node.hosted


WHEN = pytest.mark.parametrize("when", ["before the second try", "after it", "much later"])


async def land_at(when: str, store: LateStore, land: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The second try is the next call of `commit`, which a gate has been ordered for."""
    gate = store.gate("commit", written=when == "after it")
    await gate.reached.wait()
    if when != "much later":
        await land()
    gate.open()
    if when == "much later":
        await asyncio.sleep(5)
        await land()


@WHEN
def test_a_start_that_lands_late_is_hosted_and_runs_once(when: str) -> None:
    async def scenario() -> None:
        async with a_client(MemoryStore()) as (client, store), client.worker(*HOSTED):
            land = store.cut("commit")
            landing = asyncio.ensure_future(land_at(when, store, land))
            handle = await client.start(nap, 3)
            await nobody_is_stranded(client)
            assert await handle.result() == "rested"
            await landing
            assert store.used_up()
            assert [answer.name for (answer,) in store.landed] == [
                "COMMITTED" if when == "before the second try" else "ID_IN_USE"
            ]
            assert await names(handle) == [
                "WorkflowExecutionStarted", "TimerStarted", "TimerFired", "WorkflowExecutionCompleted"
            ]  # fmt: skip
            await nothing_is_left(client)

    virtually(scenario())


def test_a_start_that_lands_late_while_its_id_is_taken_is_told_so() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with a_client(data) as (client, store), client_on(data.connect()) as other:
            async with client.worker(*HOSTED):
                land = store.cut("commit")
                gate = store.gate("commit")
                starting = asyncio.ensure_future(client.execute(two_steps, 1, id="x"))
                await gate.reached.wait()
                first = await other.start(two_steps, 5, id="x")
                gate.open()
                assert await starting == 7, "the result of the run that has the id"
                await land()
                assert [row.run_id for row in await client.runs()] == [first.run_id]
                await nothing_is_left(client)

    virtually(scenario())


def test_a_start_that_lands_when_the_run_that_had_its_id_has_ended_is_not_denied_and_not_stranded() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with a_client(data) as (client, store), client_on(data.connect()) as other:
            async with client.worker(*HOSTED):
                land = store.cut("commit")
                gate = store.gate("commit")
                starting = asyncio.ensure_future(client.start(two_steps, 1, id="x"))
                await gate.reached.wait()
                first = await other.start(two_steps, 5, id="x")
                gate.open()
                with pytest.raises(CommitUnknown):
                    await starting
                assert await first.result() == 7
                await land()
                await until(lambda: len(executed) == 4)
                assert set(executed.values()) == {1}
                await nothing_is_left(client)
                rows = await client.runs()
                assert len(rows) == 2
                assert {row.status for row in rows} == {RunStatus.COMPLETED}

    virtually(scenario())


def test_a_start_whose_second_try_fails_for_good_keeps_nobody_waiting() -> None:
    async def scenario() -> None:
        async with a_client(MemoryStore()) as (client, store), client.worker(*HOSTED):
            land = store.cut("commit")
            store.fail("commit", ZeroDivisionError("a bug in the store"))
            handle = await client.start(two_steps, 1)
            await land()
            assert await handle.result() == 3
            assert set(executed.values()) == {1}
            await nothing_is_left(client)

    virtually(scenario())


@WHEN
@pytest.mark.parametrize("at", [1, 2], ids=["middle", "close"])
def test_a_turn_that_lands_late_counts_once(at: int, when: str) -> None:
    async def scenario() -> None:
        async with a_client(MemoryStore()) as (client, store), client.worker(*HOSTED):
            store.skip("commit", at)
            land = store.cut("commit")
            landing = asyncio.ensure_future(land_at(when, store, land))
            handle = await client.start(two_steps, 1)
            assert await handle.result() == 3
            await landing
            assert store.used_up()
            assert [answer.name for (answer,) in store.landed] == [
                "COMMITTED" if when == "before the second try" else "FENCED"
            ]
            assert len(await names(handle)) == 6
            assert set(executed.values()) == {1}
            assert len(executed) == 2
            await nothing_is_left(client)

    virtually(scenario())


@WHEN
def test_an_eviction_that_lands_late_strands_nothing(when: str) -> None:
    async def scenario() -> None:
        async with a_client(MemoryStore()) as (client, store), client.worker(*HOSTED):
            handle = await client.start(nap, 30)
            land = store.cut("commit")
            await land_at(when, store, land)
            await nobody_is_stranded(client)
            begun = asyncio.get_running_loop().time()
            assert await handle.result() == "rested"
            assert asyncio.get_running_loop().time() - begun < 31
            await names(handle)

    virtually(scenario())


def test_an_eviction_that_lands_when_its_node_has_the_run_again_strands_nothing() -> None:
    """Same owner, same next event: only the number of its turn says that it is a copy."""

    async def scenario() -> None:
        data = MemoryStore()
        async with a_client(data) as (client, store), client_on(data.connect()) as other:
            async with client.worker(*HOSTED, two_naps):
                handle = await client.start(two_naps, 20, 60)
                land = store.cut("commit")
                row = await until_evicted(other, handle)
                assert row.owner is None
                node = membership_of(client).node
                gate = store.gate("commit")  # the first thing that is written when the first nap is over
                await gate.reached.wait()
                assert node.hosted
                await land()
                gate.open()
                assert store.landed[0][0].name == "FENCED"
                begun = asyncio.get_running_loop().time()
                assert await handle.result() == "rested twice"
                assert asyncio.get_running_loop().time() - begun < 61
                await names(handle)

    virtually(scenario())


@workflow
async def two_naps(first: float, second: float) -> str:
    await workflow.sleep(first)
    await workflow.sleep(second)
    return "rested twice"


async def until_evicted(client: Client, handle: Handle[Any]) -> Any:
    while True:
        row = (await (await client.handle(handle.id)).describe()).row
        if row.owner is None:
            return row
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("landing_s", [0.0, 0.1, 30.0])
def test_a_claim_that_lands_late_strands_nothing(landing_s: float) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with a_client(data) as (client, store), client_on(data.connect()) as starter:
            async with client.worker(*HOSTED):
                await asyncio.sleep(1)
                before = membership_of(client).node
                land = store.cut("claim")
                handles = [await starter.start(two_steps, n) for n in range(3)]
                await until(lambda: store.used_up())
                await asyncio.sleep(landing_s)
                await land()
                results = [await asyncio.wait_for(each.result(), 5) for each in handles]
                assert results == [2, 3, 4]
                assert membership_of(client).node is before
                assert set(executed.values()) == {1}

    virtually(scenario())
