"""More is given than can be done: what is refused is refused clearly, what is accepted is done, memory is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from world import HOSTED, long_step, membership_of, nap, nothing_is_left, two_steps, until

import outlast
from faults import FaultyStore
from outlast import Busy, InvalidArgument, Limits
from outlast.model.ids import DEFAULT_NAMESPACE
from outlast.runtime import admission
from outlast.runtime.ports import SystemEntropy
from outlast.runtime.service import Service
from outlast.sdk.client import Client
from outlast.store.api import RunFilter
from outlast.store.memory import MemoryStore
from virtual import VirtualClock, run_virtual


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 20_000))


@asynccontextmanager
async def client_with(
    max_backlog: int | None, data: MemoryStore | None = None
) -> AsyncIterator[tuple[Client, FaultyStore]]:
    store = FaultyStore((data or MemoryStore()).connect())
    await store.open()
    service = Service(store, VirtualClock(), SystemEntropy(), DEFAULT_NAMESPACE, max_backlog=max_backlog)  # type: ignore[arg-type]
    try:
        yield Client(service), store
    finally:
        await service.close()
        await store.close()


async def runs_in(client: Client) -> int:
    return len(await client.service.runs(RunFilter(DEFAULT_NAMESPACE, limit=100_000)))


# --- the backlog ------------------------------------------------------------------------------------------------------


def test_a_start_beyond_the_backlog_is_refused_and_nothing_is_written() -> None:
    async def scenario() -> None:
        async with client_with(5) as (client, _):
            for _ in range(5):
                await client.start(two_steps, 1)
            with pytest.raises(
                Busy, match=r"5 runs or more wait on queue 'default'.*limit is 5.*max_backlog"
            ) as caught:
                await client.start(two_steps, 1, id="refused")
            assert "nothing was written" in str(caught.value)
            assert await runs_in(client) == 5
            with pytest.raises(outlast.RunNotFound):
                await client.handle("refused")

    virtually(scenario())


def test_when_workers_have_taken_the_backlog_starts_are_accepted_again() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with(5, data) as (client, _), client_with(5, data) as (other, _):
            handles = [await client.start(two_steps, n) for n in range(5)]
            with pytest.raises(Busy):
                await client.start(two_steps, 5)
            async with other.worker(*HOSTED):
                assert [await each.result() for each in handles] == [2, 3, 4, 5, 6]
                await asyncio.sleep(admission.COUNT_S)
                assert await (await client.start(two_steps, 5)).result() == 7

    virtually(scenario())


def test_a_full_queue_is_not_in_the_way_of_another() -> None:
    async def scenario() -> None:
        async with client_with(1) as (client, _):
            await client.start(two_steps, 1)
            with pytest.raises(Busy):
                await client.start(two_steps, 1)
            await client.start(two_steps, 1, queue="another")
            assert await runs_in(client) == 2

    virtually(scenario())


def test_a_run_that_is_there_is_found_though_its_queue_is_full() -> None:
    async def scenario() -> None:
        async with client_with(1) as (client, _):
            first = await client.start(two_steps, 1, id="x")
            with pytest.raises(outlast.AlreadyStarted, match=first.run_id):
                await client.start(two_steps, 1, id="x")
            result = asyncio.ensure_future(client.execute(two_steps, 1, id="x"))
            await asyncio.sleep(1)
            assert not result.done(), "it waits for the run that is there"
            async with client.worker(*HOSTED):
                assert await result == 3
                handle = await client.start(long_step, 3600.0, id="y", queue="another")
            with pytest.raises(Busy):
                await client.execute(two_steps, 1, id="z", queue="another")
            await handle.terminate()

    virtually(scenario())


def test_the_backlog_is_counted_no_more_than_twice_a_second() -> None:
    async def scenario() -> None:
        async with client_with(10_000) as (client, store):
            await asyncio.gather(*(client.start(two_steps, n) for n in range(1_000)))
            assert store.calls["backlog"] == 1
            await asyncio.sleep(admission.COUNT_S)
            await asyncio.gather(*(client.start(two_steps, n) for n in range(1_000)))
            assert store.calls["backlog"] == 2
            assert await runs_in(client) == 2_000

    virtually(scenario())


def test_a_start_that_this_process_takes_at_once_is_neither_counted_nor_refused() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with(3, data) as (client, store), client_with(3, data) as (other, _):
            for _ in range(3):
                await other.start(nap, 1.0, queue="nobody")
            async with client.worker(*HOSTED):
                assert [await client.execute(two_steps, n) for n in range(20)] == [n + 2 for n in range(20)]
            assert store.calls["backlog"] == 0

    virtually(scenario())


def test_without_a_limit_nothing_is_counted() -> None:
    async def scenario() -> None:
        async with client_with(None) as (client, store):
            for n in range(10):
                await client.start(two_steps, n)
            assert store.calls["backlog"] == 0

    virtually(scenario())


async def test_a_limit_higher_than_a_database_can_count_is_no_mistake(tmp_path: Path) -> None:
    async with outlast.connect(f"sqlite:///{tmp_path}/x.db", max_backlog=1 << 70) as client:
        await client.start(two_steps, 1)
        assert len(await client.runs()) == 1


def test_a_limit_below_one_is_a_mistake() -> None:
    with pytest.raises(InvalidArgument, match="max_backlog"):
        outlast.connect("sqlite:///never.db", max_backlog=0)
    with pytest.raises(InvalidArgument, match="attempts"):
        Limits(attempts=0)
    with pytest.raises(InvalidArgument, match=r"interrupt_s.*5 seconds"):
        Limits(interrupt_s=6)
    assert Limits(interrupt_s=None).interrupt_s is None


# --- starts at a time -------------------------------------------------------------------------------------------------


def test_more_starts_than_the_store_can_take_stand_in_line_and_beyond_that_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(admission, "UNDER_WAY", 2)
        monkeypatch.setattr(admission, "IN_LINE", 3)
        async with client_with(None) as (client, store):
            gates = [store.gate("commit") for _ in range(2)]
            began: list[str] = []

            async def start(workflow_id: str) -> None:
                await client.start(nap, 1.0, id=workflow_id)
                began.append(workflow_id)

            starts = [asyncio.ensure_future(start(f"{n}")) for n in range(5)]
            await gates[1].reached.wait()
            assert store.calls["commit"] == 2
            with pytest.raises(Busy, match="3 starts wait in this process"):
                await client.start(nap, 1.0, id="refused")
            starts[3].cancel()
            await asyncio.sleep(0)
            starts.append(asyncio.ensure_future(start("5")))
            for gate in gates:
                gate.open()
            done = await asyncio.gather(*starts, return_exceptions=True)
            assert [isinstance(each, asyncio.CancelledError) for each in done] == [n == 3 for n in range(6)]
            assert began == ["0", "1", "2", "4", "5"], "in the order in which they came"
            assert await runs_in(client) == 5

    virtually(scenario())


def test_ten_times_more_than_a_node_can_do_is_done_in_bounded_memory() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with(300, data) as (client, _), client_with(300, data) as (starter, _):
            limits = Limits(runs=50, attempts=5)  # each attempt takes 1 s: 5 runs per second
            async with client.worker(*HOSTED, limits=limits):
                node, accepted, refused = membership_of(client).node, [], 0
                for _ in range(60):
                    for opened in (client, starter):
                        for _ in range(25):
                            try:
                                accepted.append(await opened.start(long_step, 1.0))
                            except Busy:
                                refused += 1
                    assert len(node.hosted) <= limits.runs
                    assert len(node.attempts._running) <= limits.runs
                    await asyncio.sleep(1)
                assert refused > 1_000
                assert 300 < len(accepted) < 800
                await asyncio.wait_for(asyncio.gather(*(each.result() for each in accepted)), 300)
                began = asyncio.get_running_loop().time()
                assert await starter.execute(two_steps, 1) == 3
                assert asyncio.get_running_loop().time() - began < 1, "as soon as ever"
                await until(lambda: not node.hosted)
                await nothing_is_left(client)

    virtually(scenario())
