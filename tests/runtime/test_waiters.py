"""Who waits for the end of a run is told, wherever the run lives and moves; who stops waiting leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from world import HOSTED, client_with_faults, membership_of, nap, nothing_is_left, two_steps, until

from outlast import StoreUnavailable, workflow
from outlast.model.ids import RunId
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 20_000))


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("seconds", [0.5, 100.0], ids=["in memory", "evicted meanwhile"])
def test_waiters_here_and_elsewhere_are_told_within_a_moment(seconds: float) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as far, client.worker(*HOSTED):
            begun = now()
            handle = await client.start(nap, seconds, id="x")
            theirs = await far.handle("x", nap)
            assert await asyncio.gather(handle.result(), handle.result(), theirs.result()) == ["rested"] * 3
            assert now() - begun < seconds + 1
            assert await asyncio.gather(handle.result(), theirs.result()) == ["rested"] * 2, "and again, when closed"
            await nothing_is_left(client)
            await nothing_is_left(far)

    virtually(scenario())


def test_a_waiter_is_told_although_its_run_was_taken_over_meanwhile() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as one, client_on(data.connect()) as two:
            async with one.worker(*HOSTED), two.worker(*HOSTED):
                handle = await one.start(nap, 8)
                waiting = asyncio.ensure_future(handle.result())
                await asyncio.sleep(1)
                await two.service.store.declare_dead(membership_of(one).node.node_id)
                await until(lambda: RunId(handle.run_id) in membership_of(two).node.hosted, within_s=2)
                assert await waiting == "rested"
                await nothing_is_left(one)

    virtually(scenario())


def test_a_hint_that_comes_while_a_waiter_looks_is_not_lost() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (far, store), client_on(data.connect()) as client:
            async with client.worker(*HOSTED):
                handle = await client.start(nap, 0.5)
                looking = store.gate("closed_of", written=True)  # it has seen that the run is open
                waiting = asyncio.ensure_future((await far.handle(handle.id, nap)).result())
                await looking.reached.wait()
                assert await handle.result() == "rested"
                await asyncio.sleep(0.01)
                looking.open()
                begun = now()
                assert await waiting == "rested"
                assert now() - begun < 0.1

    virtually(scenario())


def test_waiters_that_are_cancelled_leave_nothing_behind() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as far, client.worker(*HOSTED):
            handle = await client.start(nap, 100, id="x")
            theirs = await far.handle("x")
            waiting = [asyncio.ensure_future(each.result()) for each in (handle, theirs) * 50]
            await asyncio.sleep(1)
            for each in waiting:
                each.cancel()
            await asyncio.wait(waiting)
            for service in (client.service, far.service):
                assert not service._watched
            await asyncio.sleep(1)
            assert far.service._watching is None or far.service._watching.done()
            assert await handle.result() == "rested"

    virtually(scenario())


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ZeroDivisionError("a bug of the store")])
@pytest.mark.parametrize("method", ["closed_of", "history"])
def test_looking_for_the_end_fails_for_a_while_and_the_waiter_is_told_later(method: str, error: Exception) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_with_faults(data) as (far, store):
            async with client.worker(*HOSTED):
                await client.start(nap, 5, id="x")
                theirs = await far.handle("x", nap)
                waiting = asyncio.ensure_future(theirs.result())
                await asyncio.sleep(1)
                store.fail(method, error, times=4)
                assert await asyncio.wait_for(waiting, 20) == "rested"
                assert store.used_up()

    virtually(scenario())


@workflow
async def forgets_to_wait() -> None:
    workflow.sleep(1)


def test_who_asked_for_it_is_told_the_error_of_a_parked_run() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(forgets_to_wait, two_steps, *HOSTED[:1]):
            handle = await client.start(forgets_to_wait)
            with pytest.raises(Exception, match="nobody waits for it"):
                await client.service.outcome(RunId(handle.run_id), raise_parked=True)
            assert await client.execute(two_steps, 1) == 3, "the others of the node go on"
            assert not client.service._raise_parked

    virtually(scenario())


def test_runs_that_ended_before_their_timeouts_leave_no_alarms_behind() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(well_in_time, *HOSTED):
            for _ in range(2_000):
                await client.execute(well_in_time)
            assert len(membership_of(client).node.alarms) < 1_500

    virtually(scenario())


@workflow
async def well_in_time() -> int:
    return await asyncio.wait_for(two_steps_inside(), timeout=86_400)


async def two_steps_inside() -> int:
    from world import add_one

    return await add_one(1)
