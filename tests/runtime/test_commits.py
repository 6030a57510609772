"""Commits that fail, are slow, or of which nobody knows: no run is lost, stranded or done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from world import (
    HOSTED,
    client_with_faults,
    executed,
    membership_of,
    names,
    nap,
    nothing_is_left,
    two_steps,
    until,
)

from outlast import Busy, CommitUnknown, StoreUnavailable
from outlast.runtime.handover import abandon
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual

TWO_STEPS = [
    "WorkflowExecutionStarted",
    "ActivityScheduled",
    "ActivityCompleted",
    "ActivityScheduled",
    "ActivityCompleted",
    "WorkflowExecutionCompleted",
]


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 3_600))


@pytest.mark.parametrize("error", [Busy("full"), StoreUnavailable("away")], ids=["busy", "unavailable"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_commit_that_is_refused_for_a_while_is_made_later(error: Exception, at: int) -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store), client.worker(*HOSTED):
            store.skip("commit", at)
            store.fail("commit", error, times=5)
            handle = await client.start(two_steps, 1)
            assert await handle.result() == 3
            assert store.used_up()
            assert await names(handle) == TWO_STEPS
            assert set(executed.values()) == {1}
            assert len(executed) == 2
            await until(lambda: not membership_of(client).node.hosted)
            await nothing_is_left(client)

    virtually(scenario())


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written"])
@pytest.mark.parametrize("at", [0, 1, 2], ids=["start", "middle", "close"])
def test_a_commit_of_which_nobody_knows_counts_exactly_once(at: int, written: bool) -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store), client.worker(*HOSTED):
            store.skip("commit", at)
            store.fail("commit", CommitUnknown("the line was cut"), written=written)
            handle = await client.start(two_steps, 1, id="x")
            before = asyncio.get_running_loop().time()
            assert await handle.result() == 3
            assert asyncio.get_running_loop().time() - before < 2, "who waits is told at once"
            assert store.used_up()
            assert await names(handle) == TWO_STEPS
            assert set(executed.values()) == {1}
            assert len(executed) == 2
            await until(lambda: not membership_of(client).node.hosted)
            await nothing_is_left(client)

    virtually(scenario())


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written"])
def test_a_start_of_which_nobody_knows_is_looked_up_even_while_the_store_is_away(written: bool) -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store), client.worker(*HOSTED):
            store.fail("commit", CommitUnknown("the line was cut"), written=written)
            store.fail("run", StoreUnavailable("away"), times=3)
            handle = await client.start(two_steps, 1, id="x")
            assert await handle.result() == 3
            assert await names(handle) == TWO_STEPS
            assert set(executed.values()) == {1}
            await until(lambda: not membership_of(client).node.hosted)

    virtually(scenario())


@pytest.mark.parametrize("answer", ["id in use", "unknown"])
def test_a_starter_that_stops_waiting_leaves_nothing_behind(answer: str) -> None:
    """The caller's timeout runs out while its start is on the way; then the start is refused."""

    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store):
            async with client.worker(*HOSTED):
                node = membership_of(client).node
                if answer == "id in use":
                    await client.start(nap, 60, id="x")
                gate = store.gate("commit")
                starting = asyncio.ensure_future(client.execute(nap, 60, id="x"))
                await gate.reached.wait()
                if answer == "unknown":
                    store.fail("commit", CommitUnknown("cut"))
                starting.cancel()
                gate.open()
                await until(lambda: all(each.stage.value in ("idle", "gone") for each in node.hosted.values()))
            assert store.calls["declare_dead"] == 1, "the worker has left in an orderly way"

    virtually(scenario())


def test_a_commit_that_the_store_cannot_make_parks_its_run_and_no_other() -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store), client.worker(*HOSTED):
            gate = store.gate("commit")
            ill = asyncio.ensure_future(client.start(nap, 5, id="ill"))
            await gate.reached.wait()
            gate.open()
            handle = await ill
            await asyncio.sleep(4.9)
            others = [await client.start(nap, 0.1, id=f"well-{n}") for n in range(8)]
            store.poisoned.add(handle.run_id)
            assert await asyncio.gather(*(each.result() for each in others)) == ["rested"] * 8
            await asyncio.sleep(60)
            row = await client.service.store.run(handle.run_id)
            assert row is not None
            assert row.status == "open"
            refused = store.calls["commit"]
            await asyncio.sleep(60)
            assert store.calls["commit"] - refused < 100, "a run that cannot be released is tried with growing pauses"
            store.poisoned.clear()
            assert await handle.result() == "rested"
            check = await names(handle)
            assert check.count("TimerFired") == 1

    virtually(scenario())


def test_what_another_node_has_taken_is_dropped_without_a_trace() -> None:
    """Node 1 stands still while its commit is on the way; node 2 takes the run; node 1's commit is fenced."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (first, store), client_on(data.connect()) as second:
            async with first.worker(*HOSTED):
                handle = await first.start(two_steps, 1, id="x")
                gate = store.gate("commit")
                await gate.reached.wait()
                zombie = membership_of(first).node
                async with second.worker(*HOSTED):
                    await second.service.store.declare_dead(zombie.node_id)
                    assert await (await second.handle("x", two_steps)).result() == 3
                    gate.open()
                    assert await handle.result() == 3
                    await until(lambda: not zombie.hosted)
                    assert await names(handle) == [
                        *TWO_STEPS[:2],
                        "ActivityAttemptLost",
                        *TWO_STEPS[2:],
                    ]
                    await nothing_is_left(first)
                    await nothing_is_left(second)

    virtually(scenario())


def test_a_store_set_back_to_an_older_state_is_followed() -> None:
    """After a failover to a standby that lags, the row says less than the node has in memory: it loads it anew."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client.worker(*HOSTED):
            handle = await client.start(two_steps, 1, id="x")
            tables = data._data
            kept, journal = tables.runs[handle.run_id], list(tables.journal[handle.run_id])
            gate = store.gate("commit")
            await gate.reached.wait()
            gate.open()
            gate = store.gate("commit")
            await gate.reached.wait()
            tables.runs[handle.run_id], tables.journal[handle.run_id] = kept, journal
            gate.open()
            assert await handle.result() == 3
            assert await names(handle) == [*TWO_STEPS[:2], "ActivityAttemptLost", *TWO_STEPS[2:]]
            assert store.calls["run"] < 20

    virtually(scenario())


def test_a_node_declared_dead_while_its_commits_wait_for_the_store_tells_every_starter() -> None:
    """Abandoning the node gives up commits that are between two tries, in the second half of a batch, or in line."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client.worker(*HOSTED):
            node = membership_of(client).node
            store.fail("commit", Busy("full"), times=2)
            starts = [asyncio.ensure_future(client.execute(two_steps, n, id=f"x{n}")) for n in range(20)]
            await until(lambda: store.calls["commit"] >= 2)
            await client.service.store.declare_dead(node.node_id)
            abandon(node)
            assert await asyncio.gather(*starts) == [n + 2 for n in range(20)]

    virtually(scenario())


def test_an_effect_that_raises_takes_no_other_run_of_the_batch_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with client_with_faults(MemoryStore()) as (client, store), client.worker(*HOSTED):
            node = membership_of(client).node
            start, broken = node.attempts.start, []

            def start_or_raise(attempt: Any, report: Any) -> None:
                if attempt.workflow_id == "x3":
                    broken.append(attempt)
                    raise AssertionError("planted")
                start(attempt, report)

            monkeypatch.setattr(node.attempts, "start", start_or_raise)
            gate = store.gate("commit")
            others = [asyncio.ensure_future(client.execute(two_steps, n, id=f"x{n}")) for n in range(8)]
            await gate.reached.wait()
            gate.open()
            await asyncio.gather(*(each for n, each in enumerate(others) if n != 3))
            assert broken
            others[3].cancel()
            membership_of(client).abandon()
            client.service.membership = None

    virtually(scenario())
