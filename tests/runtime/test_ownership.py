"""Who owns a run: claims, eviction, takeover, stopping. Every open run is always somebody's, or waits for something."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from world import (
    HOSTED,
    add_one,
    client_with_faults,
    executed,
    long_step,
    membership_of,
    names,
    nap,
    nap_then_step,
    nothing_is_left,
    stubborn,
    take_time,
    two_steps,
    until,
)

from outlast import Busy, CommitUnknown, StoreUnavailable, activity, workflow
from outlast.model.ids import RunId
from outlast.runtime import loading, membership
from outlast.runtime.limits import Limits
from outlast.runtime.loading import BUSY_S
from outlast.sdk.client import Client
from outlast.sdk.handle import Handle
from outlast.store.api import JournalRow
from outlast.store.memory import MemoryStore
from virtual import VirtualClock, client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 20_000))


def now() -> float:
    return asyncio.get_running_loop().time()


def is_hosted(client: Client, handle: Handle[Any]) -> bool:
    return RunId(handle.run_id) in membership_of(client).node.hosted


# --- eviction ---------------------------------------------------------------------------------------------------------


def test_a_run_that_sleeps_leaves_memory_and_wakes_on_time() -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, _), client.worker(*HOSTED):
            handle = await client.start(nap, 3600)
            begun = now()
            await until(lambda: not is_hosted(client, handle))
            assert now() - begun < 15
            assert await handle.result() == "rested"
            assert 3600 <= now() - begun < 3600.6
            await nothing_is_left(client)

    virtually(scenario())


@pytest.mark.parametrize("evicted", [False, True], ids=["hosted", "evicted"])
def test_a_clock_that_jumps_forward_wakes_a_sleeper_soon(evicted: bool) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        async with client_with_faults(MemoryStore(), clock) as (client, _), client.worker(*HOSTED):
            handle = await client.start(nap, 3600)
            await asyncio.sleep(60 if evicted else 5)
            assert is_hosted(client, handle) is not evicted
            clock.jump_us = 3_600_000_000
            jumped = now()
            assert await handle.result() == "rested"
            assert now() - jumped < 1.5

    virtually(scenario())


@pytest.mark.parametrize("evicted", [False, True], ids=["hosted", "evicted"])
def test_a_clock_that_is_set_back_wakes_nobody_early(evicted: bool) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        async with client_with_faults(MemoryStore(), clock) as (client, _), client.worker(*HOSTED):
            handle = await client.start(nap, 100)
            begun = now()
            await asyncio.sleep(60 if evicted else 5)
            clock.jump_us = -30_000_000
            assert await handle.result() == "rested"
            assert 130 <= now() - begun < 131.5
            await names(handle)  # checks that no timer fired early by its own history

    virtually(scenario())


def test_a_release_whose_answer_is_late_does_not_lose_the_run_that_was_claimed_again() -> None:
    """The eviction is on disk, its answer is still on the way; a message comes, and this very node claims the run."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as other:
            async with client.worker(*HOSTED):
                handle = await client.start(nap, 3600, id="x")
                gate = store.gate("commit", written=True)
                await gate.reached.wait()  # the eviction
                await (await other.handle("x")).cancel()
                row = await other.service.find_run(RunId(handle.run_id))
                assert row.owner is None
                await asyncio.sleep(5)
                gate.open()
                with pytest.raises(Exception, match="cancelled"):
                    await asyncio.wait_for(handle.result(), 10)

    virtually(scenario())


def test_an_eviction_of_which_nobody_knows_strands_nothing() -> None:
    async def scenario() -> None:
        for written in (False, True):
            async with client_with_faults(MemoryStore()) as (client, store), client.worker(*HOSTED):
                handle = await client.start(nap, 100, id="x")
                store.fail("commit", CommitUnknown("cut"), written=written)
                store.fail("commit", StoreUnavailable("away"), times=2)
                assert await handle.result() == "rested"
                assert store.used_up()

    virtually(scenario())


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_of_which_nobody_knows_strands_nothing() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as starter:
            async with client.worker(*HOSTED):
                await asyncio.sleep(1)
                store.fail("claim", CommitUnknown("cut"), written=True)
                handle = await starter.start(two_steps, 1)
                assert await asyncio.wait_for(handle.result(), 5) == 3
                assert store.used_up()

    virtually(scenario())


@pytest.mark.parametrize("error", [Busy("full"), StoreUnavailable("away"), ZeroDivisionError("a bug of the store")])
@pytest.mark.parametrize("method", ["histories", "tasks_of", "mail_for"])
def test_reading_claimed_runs_fails_for_a_while_and_none_is_stranded(method: str, error: Exception) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as starter:
            async with starter.worker(*HOSTED):
                handles = [await starter.start(nap_then_step, 3.0) for _ in range(3)]
            store.fail(method, error, times=3)
            async with client.worker(*HOSTED):
                results = await asyncio.wait_for(asyncio.gather(*(each.result() for each in handles)), 30)
                assert results == [2, 2, 2]
                assert store.used_up()

    virtually(scenario())


def test_runs_are_shared_by_capacity() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as one, client_on(data.connect()) as two:
            limits = Limits(runs=10)
            handles = [await one.start(nap, 30) for _ in range(15)]
            async with one.worker(*HOSTED, limits=limits):
                await asyncio.sleep(2)
                assert len(membership_of(one).node.hosted) <= 10
                async with two.worker(*HOSTED, limits=limits):
                    results = await asyncio.gather(*(each.result() for each in handles))
            assert results == ["rested"] * 15

    virtually(scenario())


def test_more_parked_runs_than_a_batch_do_not_keep_a_new_worker_from_its_work() -> None:
    """A worker whose code is wrong takes the parked runs once, and goes on with the others."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client:
            parked = await park_many(client, 150)
            async with client.worker(broken_again, *HOSTED):
                assert await asyncio.wait_for(client.execute(two_steps, 1), 10) == 3
                await asyncio.sleep(30)
                (node,) = [each for each in await client.service.store.nodes() if each.alive]
                assert node.counter >= 30 / membership.HEARTBEAT_S - 2, "the heart beats"
            async with client.worker(mended, *HOSTED):
                begun = now()
                assert await asyncio.gather(*(each.result() for each in parked)) == ["mended"] * 150
                assert now() - begun < 1, "a new worker takes parked runs at once"

    virtually(scenario())


@workflow(name="breakable")
async def broken() -> str:
    await workflow.sleep(1)
    raise SystemError("not reached by the tests")


@workflow(name="breakable")
async def broken_again() -> str:
    await add_one(1)
    return "diverged"


@workflow(name="breakable")
async def mended() -> str:
    await workflow.sleep(1)
    return "mended"


async def park_many(client: Client, count: int) -> list[Handle[str]]:
    async with client.worker(broken, *HOSTED):
        handles = [await client.start(mended, id=f"parked-{n}") for n in range(count)]
    async with client.worker(broken_again, *HOSTED):
        await asyncio.sleep(20)
        row = await client.service.find_run(RunId(handles[0].run_id))
        assert row.error is not None
        assert "recorded" in row.error
        assert "TimerStarted" in row.error
        assert row.owner is None
    return handles


# --- life and death ---------------------------------------------------------------------------------------------------


def test_a_dead_node_s_attempts_are_lost_once_and_its_waiting_retries_are_not() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as one, client_on(data.connect()) as two:
            await one.worker(*HOSTED).__aenter__()
            long = await one.start(long_step, 60.0, id="long")
            sleeper = await one.start(nap, 60, id="nap")
            await asyncio.sleep(1)
            membership_of(one).abandon()
            begun = now()
            async with two.worker(*HOSTED):
                assert await (await two.handle("long", long_step)).result() == "done"
                assert now() - begun < 60 + 10 + 2, "the lease, and a round"
                assert await (await two.handle("nap", nap)).result() == "rested"
                assert (await names(long)).count("ActivityAttemptLost") == 1
                assert "ActivityAttemptLost" not in await names(sleeper)
                assert sorted(attempt for _, attempt in executed) == [1, 2]

    virtually(scenario())


def test_a_node_that_was_declared_dead_joins_again_and_finishes_its_runs() -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, _), client.worker(*HOSTED):
            handles = [await client.start(nap_then_step, 30.0) for _ in range(5)]
            dead = membership_of(client).node
            await client.service.store.declare_dead(dead.node_id)
            assert await asyncio.gather(*(each.result() for each in handles)) == [2] * 5
            assert membership_of(client).node is not dead
            assert not dead.hosted
            await nothing_is_left(client)

    virtually(scenario())


def test_joining_again_is_tried_until_the_database_lets_it() -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store), client.worker(*HOSTED):
            store.fail("join", StoreUnavailable("away"), times=8)
            handle = await client.start(nap_then_step, 5.0)
            await client.service.store.declare_dead(membership_of(client).node.node_id)
            assert await handle.result() == 2
            assert await client.execute(two_steps, 1) == 3
            assert store.used_up()

    virtually(scenario())


def test_a_database_that_was_away_makes_nobody_dead() -> None:
    """After the outage nobody's counter has moved for long; who looks first must not bury the others for that."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (one, first), client_with_faults(data) as (two, second):
            async with one.worker(*HOSTED), two.worker(*HOSTED):
                handle = await one.start(long_step, 100.0)
                await asyncio.sleep(3)
                nodes = {membership_of(each).node.node_id for each in (one, two)}
                first.down = second.down = StoreUnavailable("failover")
                await asyncio.sleep(40)
                second.down = None
                await asyncio.sleep(0.6)
                first.down = None
                assert await handle.result() == "done"
                assert {membership_of(each).node.node_id for each in (one, two)} == nodes
                assert "ActivityAttemptLost" not in await names(handle)

    virtually(scenario())


def test_a_node_that_loads_for_long_keeps_its_heart_beating() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (one, store), client_on(data.connect()) as two:
            handles = [await two.start(nap, 1) for _ in range(5)]
            gate = store.gate("histories")
            async with one.worker(*HOSTED), two.worker(add_one, take_time):
                await gate.reached.wait()
                node = membership_of(one).node
                await asyncio.sleep(60)
                gate.open()
                assert await asyncio.gather(*(each.result() for each in handles)) == ["rested"] * 5
                assert membership_of(one).node is node

    virtually(scenario())


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_stops_hands_over_at_once_and_loses_only_what_had_begun() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as one, client_on(data.connect()) as two, two.worker(*HOSTED):
            async with one.worker(*HOSTED, limits=Limits(attempts=1)):
                begun, in_line = [await one.start(long_step, 50.0, id=f"long-{n}") for n in range(2)]
                sleeper = await one.start(nap, 50, id="nap")
                await asyncio.sleep(5)
                waiting = [asyncio.ensure_future(each.result()) for each in (begun, in_line, sleeper)]
                await asyncio.sleep(0)
            stopped = now()
            assert await asyncio.gather(*waiting) == ["done", "done", "rested"]
            assert now() - stopped < 52
            assert (await names(begun)).count("ActivityAttemptLost") == 1
            assert "ActivityAttemptLost" not in await names(in_line)
            assert "ActivityAttemptLost" not in await names(sleeper)
            await nothing_is_left(one)

    virtually(scenario())


def test_mail_that_comes_while_a_worker_stops_does_not_make_its_attempts_lost() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as other:
            async with client.worker(*HOSTED, cancelled_then_step):
                handle = await client.start(cancelled_then_step, id="x")
                await asyncio.sleep(1)
                gate = store.gate("commit")  # the release
                leaving = asyncio.ensure_future(_leave_at(gate, other))
            await leaving
            async with client.worker(*HOSTED, cancelled_then_step):
                assert await handle.result() == 2
                assert "ActivityAttemptLost" not in await names(handle)

    async def _leave_at(gate: Any, other: Client) -> None:
        await gate.reached.wait()
        await (await other.handle("x")).cancel()
        gate.open()

    virtually(scenario())


@workflow
async def cancelled_then_step() -> int:
    try:
        await workflow.sleep(3600)
    except asyncio.CancelledError:
        return await add_one(1)
    return 0


def test_a_stop_while_starts_are_on_their_way_strands_nothing() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store):
            async with client.worker(*HOSTED):
                gate = store.gate("commit")
                starting = [asyncio.ensure_future(client.start(two_steps, n, id=f"x{n}")) for n in range(20)]
                await gate.reached.wait()
                asyncio.get_running_loop().call_later(0.5, gate.open)
            handles = await asyncio.gather(*starting)
            rows = await client.runs()
            assert len(rows) == 20
            assert all(row.owner is None for row in rows)
            async with client.worker(*HOSTED):
                assert await asyncio.gather(*(each.result() for each in handles)) == [n + 2 for n in range(20)]

    virtually(scenario())


# --- parked runs ------------------------------------------------------------------------------------------------------


@workflow(name="mistaken")
async def mistaken(n: int) -> int:
    slow = workflow.start(take_time, 60.0)
    one = await add_one(n)
    workflow.sleep(1)  # forgotten: the turn fails
    await slow
    return one


@workflow(name="mistaken")
async def put_right(n: int) -> int:
    slow = workflow.start(take_time, 60.0)
    one = await add_one(n)
    await slow
    return one


@workflow(name="mistaken")
async def diverging(n: int) -> int:
    await workflow.sleep(1)
    return n


@pytest.mark.parametrize("wrong", [mistaken, diverging])
def test_a_mistake_in_the_code_runs_no_activity_again(wrong: Any) -> None:
    """What ended while the code was wrong is kept for when it is right; what was running then is lost, once."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as other:
            async with client.worker(mistaken, *HOSTED):
                handle = await client.start(put_right, 1, id="x")
                assert await asyncio.wait_for(client.execute(two_steps, 1), 10) == 3
                await asyncio.sleep(300)
                row = await client.service.find_run(RunId(handle.run_id))
                assert row.error is not None
                assert "nobody waits for it" in row.error
                assert row.claims > 5
            async with other.worker(wrong, *HOSTED):
                await asyncio.sleep(100)
            async with client.worker(put_right, *HOSTED):
                assert await handle.result() == 2
            ours = sorted((key[-1], attempt) for key, attempt in executed.elements() if key.startswith(handle.run_id))
            assert ours == [("1", 1), ("1", 2), ("2", 1)]
            history = await names(handle)
            assert history.count("ActivityAttemptLost") == 1
            assert history.count("ActivityCompleted") == 2

    virtually(scenario())


def test_a_takeover_by_wrong_code_still_counts_the_lost_attempt() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as one, client_on(data.connect()) as two:
            await one.worker(put_right, *HOSTED).__aenter__()
            handle = await one.start(put_right, 1, id="x")
            await asyncio.sleep(1)
            membership_of(one).abandon()
            async with two.worker(diverging, *HOSTED):
                await asyncio.sleep(20)
            assert (await names(handle)).count("ActivityAttemptLost") == 0
            async with two.worker(put_right, *HOSTED):
                assert await (await two.handle("x")).result() == 2
            assert (await names(handle)).count("ActivityAttemptLost") == 1
            assert all(count == 1 for count in executed.values())

    virtually(scenario())


def test_a_sleeper_whose_nodes_die_for_other_reasons_is_not_put_into_quarantine() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as starter:
            handle = await starter.start(nap, 3600)
            for _ in range(5):
                async with client_on(data.connect()) as client:
                    await client.worker(*HOSTED).__aenter__()
                    await until(lambda client=client: is_hosted(client, handle))
                    await asyncio.sleep(5)
                    membership_of(client).abandon()
            async with starter.worker(*HOSTED):
                await asyncio.sleep(5)
                assert (await handle.describe()).row.error is None

    virtually(scenario())


begun: list[str] = []


@activity
async def first_step() -> None:
    begun.append("first")


@activity
async def second_step() -> str:
    begun.append("second")
    return "done"


@workflow
async def two_steps_apart(seconds: float) -> str:
    await first_step()
    await workflow.sleep(seconds)
    return await second_step()


def test_a_node_whose_heartbeats_do_not_arrive_begins_nothing_when_its_lease_is_nearly_over() -> None:
    async def scenario() -> None:
        begun.clear()
        async with client_with_faults(MemoryStore()) as (client, store):
            async with client.worker(two_steps_apart, first_step, second_step):
                store.fail("heartbeat", StoreUnavailable("no answer"), times=6)
                handle = await client.start(two_steps_apart, 9.5, id="w")
                await asyncio.sleep(11.5)
                assert begun == ["first"], "others may have taken the run by now"
                assert await handle.result() == "done"
                assert store.used_up()

    run_virtual(scenario())


@workflow
async def many_steps(count: int) -> int:
    for _ in range(count):
        await workflow.sleep(0)
    return count


def test_long_histories_are_not_all_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node claims runs by the hundred; what it reads for them at a time must have a bound of its own."""
    monkeypatch.setattr(loading, "EVENTS_AT_A_TIME", 500)

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as one, one.worker(many_steps_and_a_nap, *HOSTED):
            handles = [await one.start(many_steps_and_a_nap, 100) for _ in range(20)]
            await asyncio.sleep(60)
        async with client_with_faults(data) as (client, store):
            read: list[int] = []

            async def histories(run_ids: list[RunId]) -> dict[RunId, list[JournalRow]]:
                found = await store._store.histories(run_ids)
                read.append(sum(row.count for rows in found.values() for row in rows))
                return found

            store.histories = histories  # type: ignore[attr-defined]
            async with client.worker(many_steps_and_a_nap, *HOSTED):
                assert [await (await client.handle(each.id)).result() for each in handles] == [100] * 20
            assert sum(read) == 20 * 202, "each once"
            assert 400 < max(read) <= 500

    virtually(scenario())


@workflow
async def many_steps_and_a_nap(count: int) -> int:
    for _ in range(count):
        await workflow.sleep(0)
    await workflow.sleep(3_600)
    return count


def test_suspects_that_have_much_to_do_do_not_keep_a_node_from_its_mail() -> None:
    """They are loaded one by one, each for as long as it takes to see that it kills nobody."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (dying, claims), client_with_faults(data) as (client, store):
            handles = [await dying.start(many_steps, 1_000) for _ in range(20)]
            claimed = claims.gate("claim", written=True)
            await dying.worker(many_steps, *HOSTED).__aenter__()
            async with client.worker(many_steps, *HOSTED):
                other = await client.start(stubborn)
                await claimed.reached.wait()
                for _ in range(100_000):  # as long as a disk takes
                    store._faults["commit"].append(_slowly)
                membership_of(dying).abandon()
                assert await dying.service.store.declare_dead(membership_of(dying).node.node_id)
                node = membership_of(client).node
                await until(lambda: any(RunId(each.run_id) in node.hosted for each in handles))
                await other.cancel()
                assert await asyncio.wait_for(other.result(), 2 * BUSY_S) == "not cancelled"
                assert len(node.hosted) < len(handles), "suspects were still waiting"

    virtually(scenario())


async def _slowly(call: Callable[[], Awaitable[object]]) -> object:
    await asyncio.sleep(0.005)
    return await call()
