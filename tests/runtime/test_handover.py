"""What a node gives back: runs that only wait, and everything when it stops, in bounded time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from world import (
    HOSTED,
    client_with_faults,
    executed,
    long_step,
    membership_of,
    names,
    nap,
    note,
    nothing_is_left,
    two_steps,
    until,
)

from outlast import Retry, StoreUnavailable, WorkflowFailed, activity, workflow
from outlast.model.ids import RunId
from outlast.sdk.client import Client
from outlast.sdk.handle import Handle
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 20_000))


def now() -> float:
    return asyncio.get_running_loop().time()


def is_hosted(client: Client, handle: Handle[Any]) -> bool:
    return RunId(handle.run_id) in membership_of(client).node.hosted


# --- waiting for other nodes ------------------------------------------------------------------------------------------


@activity
async def far_away() -> str:
    note()
    return "there"


@workflow
async def call_far() -> str:
    return await far_away.options(queue="far")()


@workflow
async def call_far_in_time() -> str:
    return await far_away.options(queue="far", schedule_to_close="100s")()


def test_a_run_that_waits_for_another_nodes_activity_leaves_memory_until_that_has_ended() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client.worker(call_far):
            handle = await client.start(call_far)
            await until(lambda: not is_hosted(client, handle))
            await asyncio.sleep(600)
            assert store.calls["histories"] == 0, "it was not claimed again for nothing"
            async with client_on(data.connect()) as far, far.worker(far_away, queue="far"):
                begun = now()
                assert await handle.result() == "there"
                assert now() - begun < 2
            assert sum(executed.values()) == 1
            await nothing_is_left(client)

    virtually(scenario())


def test_a_run_that_waits_for_another_nodes_activity_wakes_up_for_its_deadline() -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store), client.worker(call_far_in_time):
            begun = now()
            handle = await client.start(call_far_in_time)
            await until(lambda: not is_hosted(client, handle))
            with pytest.raises(WorkflowFailed, match="schedule-to-close"):
                await handle.result()
            assert 99.999 < now() - begun < 101
            assert store.calls["histories"] == 1
            assert not executed

    virtually(scenario())


# --- stopping while the database is away ------------------------------------------------------------------------------


def test_a_worker_stops_in_bounded_time_while_the_database_is_away_and_its_runs_are_taken_over() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as other:
            worker = await client.worker(*HOSTED).__aenter__()
            node = membership_of(client).node
            await client.start(nap, 100, id="sleeper")
            busy = await client.start(long_step, 60.0, id="busy")
            await until(lambda: executed)
            store.down = StoreUnavailable("away")
            begun = now()
            await worker.__aexit__(None, None, None)
            assert now() - begun < 30
            await asyncio.sleep(1)
            assert not node.hosted
            assert not node.looks
            assert not node.committer._in_flight
            async with other.worker(*HOSTED):
                far = await other.handle("busy", long_step)
                assert await far.result() == "done"
                assert await (await other.handle("sleeper", nap)).result() == "rested"
            store.down = None
            assert (await names(busy)).count("ActivityAttemptLost") == 1
            assert sum(executed.values()) == 2

    virtually(scenario())


def test_a_starter_is_told_when_its_worker_stops_before_the_database_answers() -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store):
            worker = await client.worker(*HOSTED).__aenter__()
            store.down = StoreUnavailable("away")
            starting = asyncio.ensure_future(client.start(two_steps, 1))
            await asyncio.sleep(1)
            await worker.__aexit__(None, None, None)
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(starting, 5)

    virtually(scenario())


def test_a_worker_that_cannot_leave_lets_go_of_its_threads() -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store):
            worker = await client.worker(interrupted, calls_interrupted).__aenter__()
            with pytest.raises(WorkflowFailed):
                await client.execute(calls_interrupted)
            store.fail("declare_dead", ZeroDivisionError("planted"))
            before = activity_threads()
            assert before
            with pytest.raises(ZeroDivisionError):
                await worker.__aexit__(None, None, None)
            for thread in before:
                thread.join(10)
                assert not thread.is_alive()

    run_virtual(asyncio.wait_for(scenario(), 20_000))


def activity_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("outlast-activity") and each.is_alive()]


# --- Ctrl-C that nobody pressed ---------------------------------------------------------------------------------------


@activity(retry=Retry(max_attempts=1))
def interrupted() -> None:
    raise KeyboardInterrupt("out of a library")


@workflow
async def calls_interrupted() -> None:
    await asyncio.to_thread(interrupted)


async def test_a_thread_that_raises_keyboard_interrupt_has_failed_and_its_worker_goes_on() -> None:
    async with client_on(MemoryStore()) as client, client.worker(interrupted, calls_interrupted, *HOSTED):
        with pytest.raises(WorkflowFailed, match="out of a library"):
            await client.execute(calls_interrupted)
        assert await client.execute(two_steps, 1) == 3
