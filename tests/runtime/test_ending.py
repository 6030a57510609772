"""A run is terminated whether or not anybody hosts its workflow, and by exactly one owner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from world import HOSTED, add_one, client_with_faults, executed, long_step, membership_of, names, nap, two_steps, until

from outlast import CommitUnknown, RunClosed, StoreUnavailable, WorkflowTerminated, workflow
from outlast.model.ids import RunId
from outlast.sdk.client import Client, Connecting
from outlast.sdk.handle import Handle
from outlast.store.api import RunStatus
from outlast.store.memory import MemoryStore
from outlast.store.sqlite import SqliteStore
from virtual import client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 3_600))


async def is_terminated(client: Client, handle: Handle[Any]) -> None:
    here = await client.handle(handle.id)
    with pytest.raises(WorkflowTerminated, match="enough"):
        await asyncio.wait_for(here.result(), 1)
    history = await names(here)
    assert history[-1] == "WorkflowExecutionTerminated"
    assert history.count("WorkflowExecutionTerminated") == 1
    assert all(not node.alive for node in await client.service.store.nodes() if node.name == "terminate")


def test_a_run_that_nobody_ever_hosted_can_be_terminated() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client:
            handle = await client.start(nap, 60)
            await handle.terminate("enough")
            await is_terminated(client, handle)
            with pytest.raises(RunClosed):
                await handle.terminate("again")

    virtually(scenario())


def test_a_worker_of_other_workflows_does_not_keep_a_run_from_being_terminated() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as other:
            async with client.worker(two_steps, add_one), other.worker(two_steps, add_one):
                handle = await client.start(nap, 60)
                await handle.terminate("enough")
                await is_terminated(client, handle)
                assert await client.execute(two_steps, 1) == 3

    virtually(scenario())


@workflow(name="breakable")
async def breakable() -> str:
    await workflow.sleep(1)
    return "done"


@workflow(name="breakable")
async def changed() -> int:
    return await add_one(1)


def test_a_parked_run_is_terminated_when_its_worker_has_gone() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client:
            async with client.worker(breakable):
                handle = await client.start(breakable)
            async with client.worker(changed, add_one):
                await asyncio.sleep(20)
                assert (await handle.describe()).row.error is not None
            await handle.terminate("enough")
            await is_terminated(client, handle)

    virtually(scenario())


def test_a_run_whose_owner_has_just_died_is_terminated() -> None:
    """Nobody has declared it dead yet, and nobody is there to do so."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client:
            async with client_on(data.connect()) as dead:
                await dead.worker(*HOSTED).__aenter__()
                handle = await dead.start(long_step, 600.0)
                await until(lambda: executed)
                membership_of(dead).abandon()
            owner = (await client.service.find_run(RunId(handle.run_id))).owner
            assert owner is not None
            await (await client.handle(handle.id)).terminate("enough")
            await is_terminated(client, handle)

    virtually(scenario())


def test_a_run_with_a_live_owner_is_left_to_it() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as worker:
            async with worker.worker(*HOSTED):
                handle = await worker.start(long_step, 600.0)
                await until(lambda: executed)
                await (await client.handle(handle.id)).terminate("enough")
                await is_terminated(client, handle)
                assert store.calls["join"] == store.calls["take"] == 0

    virtually(scenario())


def test_terminating_while_workers_claim_the_run_ends_it_once() -> None:
    """Whoever is faster. Every run has one end, and nobody is blamed for it."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as worker:
            async with worker.worker(*HOSTED):
                for n in range(50):
                    handle = await client.start(nap, 60, id=f"x{n}")
                    await asyncio.sleep(n / 10_000)
                    await handle.terminate("enough")
                    await is_terminated(client, handle)

    virtually(scenario())


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written"])
@pytest.mark.parametrize("method", ["join", "take", "commit", "declare_dead"])
def test_a_database_that_fails_leaves_the_run_to_be_terminated_later(method: str, written: bool) -> None:
    """The wish is on disk, and whatever the terminator began stands in nobody's way."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as other:
            handle = await other.start(nap, 60)
            here = await client.handle(handle.id)
            store.fail(method, CommitUnknown("cut") if written else StoreUnavailable("away"), written=written)
            await here.terminate("enough")
            assert store.used_up()
            if (await handle.describe()).row.status is RunStatus.OPEN:
                for node in await other.service.store.nodes():  # it is silent, and will be declared dead for that
                    await other.service.store.declare_dead(node.node_id)
                await handle.terminate("enough")
            history = await names(handle)
            assert history[-1] == "WorkflowExecutionTerminated"
            assert history.count("WorkflowExecutionTerminated") == 1

    virtually(scenario())


def test_a_database_that_hangs_keeps_nobody_from_going_on() -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store):
            handle = await client.start(nap, 60)
            gate = store.gate("take")
            begun = asyncio.get_running_loop().time()
            await handle.terminate("enough")
            assert asyncio.get_running_loop().time() - begun < 6
            assert gate.reached.is_set()
            await handle.terminate("enough")
            with pytest.raises(WorkflowTerminated):
                await handle.result()

    virtually(scenario())


async def test_a_run_of_a_killed_worker_is_terminated_on_sqlite(tmp_path: Path) -> None:
    """As after `kill -9` of the only worker: its lock is free, and its row says that it lives."""
    path = str(tmp_path / "x.db")
    async with Connecting(SqliteStore(path, synchronous="OFF")) as client:
        dead = SqliteStore(path, synchronous="OFF")
        async with Connecting(dead) as killed:
            await killed.worker(*HOSTED).__aenter__()
            handle = await killed.start(nap, 600)
            membership_of(killed).abandon()
        begun = time.monotonic()
        await (await client.handle(handle.id)).terminate("enough")
        await is_terminated(client, handle)
        assert time.monotonic() - begun < 5
