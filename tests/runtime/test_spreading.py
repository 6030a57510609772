"""Work spreads by free capacity: nobody swallows what others could begin now, and nobody alone is slowed by that."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from world import HOSTED, executed, long_step, membership_of, names, nap, nothing_is_left, until

from faults import FaultyStore
from outlast import CommitUnknown, Retry, activity, workflow
from outlast.model.ids import RunId
from outlast.runtime import claims
from outlast.runtime.attempts import Attempts
from outlast.runtime.limits import Limits
from outlast.sdk.client import Client
from outlast.store.api import RunStatus
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 20_000))


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def nodes(data: MemoryStore, count: int, *hosted: object, attempts: int) -> AsyncIterator[list[Client]]:
    """So many workers in clients of their own, which all know of each other."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_on(data.connect())) for _ in range(count)]
        for client in clients:
            await stack.enter_async_context(client.worker(*hosted, limits=Limits(attempts=attempts)))
        await until(lambda: all(membership_of(each)._others == count - 1 for each in clients))
        yield clients


def test_a_burst_is_not_swallowed_by_whoever_looks_first() -> None:
    """500 runs of a second each, 4 nodes with 10 slots: 40 at a time take 12.5 s. One node alone would take 50 s."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as starter, nodes(data, 4, *HOSTED, attempts=10) as clients:
            begun = now()
            handles = [await starter.start(long_step, 1.0) for _ in range(500)]
            peak: Counter[int] = Counter()

            def watch() -> bool:
                for index, client in enumerate(clients):
                    peak[index] = max(peak[index], len(membership_of(client).node.hosted))
                return len(executed) == 500

            await until(watch)
            assert [await each.result() for each in handles] == ["done"] * 500
            assert now() - begun < 20
            assert max(peak.values()) < 250, "nobody had half of them"
            assert set(executed.values()) == {1}

    virtually(scenario())


def test_whoever_looks_first_leaves_to_others_what_it_cannot_begin() -> None:
    """Only one of two nodes hears of a burst. A second later the other one looks by itself, and finds most of it."""

    async def scenario() -> None:
        data = Deaf()
        async with client_on(data.connect()) as starter, nodes(data, 2, *HOSTED, attempts=10) as (first, second):
            handles = [await starter.start(long_step, 20.0) for _ in range(200)]
            for _ in range(100):
                membership_of(first).hint()
                await asyncio.sleep(0.001)
            assert 10 <= len(membership_of(first).node.hosted) <= 40
            await until(lambda: running(second) == 10)
            assert len(membership_of(first).node.hosted) <= 100
            for handle in handles:
                await handle.terminate()

    virtually(scenario())


def running(client: Client) -> int:
    attempts = membership_of(client).node.attempts
    return len(attempts._running) - attempts.waiting


class Deaf(MemoryStore):
    """Hints come only when the test gives one."""

    poll_s = 1.0

    def connect(self) -> MemoryStore:
        return Deaf(self._data)

    def on_change(self, callback: Callable[[], None]) -> None:
        pass


def test_a_line_that_cannot_be_offered_does_not_keep_a_node_from_its_runs() -> None:
    """Slots are taken while tasks are being claimed, so that these stand in line, for hours. They are rows already:
    nobody can be offered them. Sleepers wake all the same."""

    async def scenario() -> None:
        data = MemoryStore()
        store = FaultyStore(data.connect())
        async with (
            client_on(store) as client,  # type: ignore[arg-type]
            client_on(data.connect()) as other,
            other.worker(nap_far, call_far),
            client.worker(*HOSTED, far, queue=["default", "far"], limits=Limits(attempts=1)),
        ):
            await until(lambda: membership_of(client)._others == 1)
            gate = store.gate("claim_tasks")
            await gate.reached.wait()
            await other.start(call_far)
            await client.start(long_step, 36_000.0)
            await until(lambda: executed)
            gate.open()
            await until(lambda: membership_of(client).node.attempts.waiting)
            await asyncio.sleep(60)
            assert membership_of(client).node.attempts.waiting == 1
            begun = now()
            assert await (await other.start(nap, 30)).result() == "rested"
            assert now() - begun < 32

    virtually(scenario())


@activity(queue="far")
async def far() -> None:
    pass


@workflow
async def call_far() -> None:
    await far()


@workflow
async def nap_far() -> None:
    await workflow.sleep(1)


def test_a_node_that_is_alone_takes_everything_at_once() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as starter, nodes(data, 1, *HOSTED, attempts=10) as (client,):
            handles = [await starter.start(nap, 3) for _ in range(2_000)]
            begun = now()
            await until(lambda: len(membership_of(client).node.hosted) == 2_000)
            assert now() - begun < 0.5
            assert [await each.result() for each in handles] == ["rested"] * 2_000

    virtually(scenario())


def test_a_full_node_still_serves_runs_that_need_no_slot() -> None:
    """All nodes are full for an hour. A sleeper wakes on time all the same, and a cancel is heard."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as starter, nodes(data, 2, *HOSTED, attempts=2):
            for _ in range(40):
                await starter.start(long_step, 3_600.0)
            sleeper = await starter.start(nap, 60)
            other = await starter.start(nap, 3_600)
            await asyncio.sleep(30)
            begun = now()
            await other.cancel()
            with pytest.raises(Exception, match="cancelled"):
                await other.result()
            assert now() - begun < 5
            assert await sleeper.result() == "rested"
            assert now() - begun < 30 + 5

    virtually(scenario())


# --- attempts that stand in line --------------------------------------------------------------------------------------


def test_attempts_that_stand_in_line_go_to_who_has_a_free_slot() -> None:
    """One run fans out to 40 activities of a second: its own node has 4 slots, the others have them too."""

    async def scenario() -> None:
        data = MemoryStore()
        async with nodes(data, 4, *HOSTED, fan_out, attempts=4) as clients:
            begun = now()
            handle = await clients[0].start(fan_out, 40, 1.0)
            assert await handle.result() == 40
            assert now() - begun < 7, "alone it would take 10 s; all of them together 2.5, and one of waiting"
            assert set(executed.values()) == {1}
            assert len(executed) == 40
            assert "ActivityAttemptLost" not in await names(handle)
            assert not data._data.tasks
            for client in clients:
                await nothing_is_left(client)

    virtually(scenario())


@workflow
async def fan_out(count: int, seconds: float) -> int:
    results = await asyncio.gather(*(take_time_here(seconds) for _ in range(count)))
    return len(results)


@activity(retry=Retry(max_attempts=1))
async def take_time_here(seconds: float) -> str:
    executed[activity.info().idempotency_key, activity.info().attempt] += 1
    await asyncio.sleep(seconds)
    return "done"


HOSTED = (*HOSTED, take_time_here)


def test_a_node_that_is_alone_keeps_its_line_to_itself() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with nodes(data, 1, *HOSTED, fan_out, attempts=4) as (client,):
            handle = await client.start(fan_out, 40, 1.0)
            await asyncio.sleep(5)
            assert not data._data.tasks
            assert await handle.result() == 40

    virtually(scenario())


begun_far: Counter[float] = Counter()
"""How many began at which time."""


@activity(queue="far")
async def far_away(seconds: float) -> None:
    begun_far[now()] += 1
    await asyncio.sleep(seconds)


@activity(queue="far")
def far_in_a_thread() -> None:
    pass


@workflow
async def all_far(count: int, seconds: float) -> None:
    await asyncio.gather(*(far_away(seconds) for _ in range(count)))


@pytest.mark.parametrize(
    ("threads", "within_s"), [(64, 1), (1, 6)], ids=["with free threads", "with hardly any free thread"]
)
def test_far_work_of_which_there_is_much_fills_a_node_that_has_room_for_it(threads: int, within_s: float) -> None:
    """Not at the pace of polling, and not at that of the threads, of which it needs none."""

    async def scenario() -> None:
        begun_far.clear()
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as other:
            async with client.worker(all_far), other.worker(far_away, far_in_a_thread, queue="far"):
                membership_of(other).node.attempts._free_threads = threads
                begun = now()
                handle = await client.start(all_far, 400, 3_600.0)
                await until(lambda: begun_far.total() == 400)
                assert now() - begun < within_s
                await handle.terminate()

    virtually(scenario())


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written"])
def test_an_offer_of_which_nobody_knows_loses_no_attempt(written: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        store = FaultyStore(data.connect())
        async with (
            client_on(store) as client,  # type: ignore[arg-type]
            client_on(data.connect()) as other,
            client.worker(*HOSTED, fan_out, limits=Limits(attempts=1)),
            other.worker(nap),
        ):
            await until(lambda: membership_of(client)._others == 1)
            handle = await client.start(fan_out, 3, 10.0)
            await until(lambda: executed)
            store.fail("commit", CommitUnknown("cut"), written=written)
            await until(lambda: len(data._data.tasks) == 2)
            assert store.used_up()
            assert membership_of(client).node.attempts.waiting == 0, "they are rows, and in no line any more"
            assert await handle.result() == 3
            assert set(executed.values()) == {1}
            assert len(executed) == 3

    virtually(scenario())


@pytest.mark.parametrize("written", [False, True], ids=["before the commit", "after it"])
def test_a_node_that_dies_with_an_offer_on_its_way_strands_no_attempt(written: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        store = FaultyStore(data.connect())
        async with client_on(data.connect()) as other:
            async with client_on(store) as client:  # type: ignore[arg-type]
                await client.worker(*HOSTED, fan_out_twice, limits=Limits(attempts=1)).__aenter__()
                async with other.worker(nap):
                    await until(lambda: membership_of(client)._others == 1)
                    handle = await client.start(fan_out_twice, 3, 10.0)
                    await until(lambda: executed)
                    gate = store.gate("commit", written=written)
                    await gate.reached.wait()
                    membership_of(client).abandon()
                    assert len(data._data.tasks) == (2 if written else 0)
            async with other.worker(*HOSTED, fan_out_twice, limits=Limits(attempts=5)):
                taken_over = await other.handle(handle.id)
                assert await taken_over.result() == 3
                lost = (await names(taken_over)).count("ActivityAttemptLost")
                assert lost == (1 if written else 3), "what is a row is nobody's loss"
                assert not data._data.tasks

    virtually(scenario())


@workflow
async def fan_out_twice(count: int, seconds: float) -> int:
    again = take_time_here.options(retry=Retry(max_attempts=2))
    return len(await asyncio.gather(*(again(seconds) for _ in range(count))))


def test_cancelling_what_was_offered_leaves_no_row_behind() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with nodes(data, 2, *HOSTED, fan_out, attempts=1) as (client, _):
            handle = await client.start(fan_out, 10, 600.0)
            await until(lambda: len(data._data.tasks) >= 8)
            await handle.cancel()
            with pytest.raises(Exception, match="cancelled"):
                await handle.result()
            assert not data._data.tasks
            row = await client.service.find_run(RunId(handle.run_id))
            assert row.status is RunStatus.CANCELLED

    virtually(scenario())


# --- lines ------------------------------------------------------------------------------------------------------------


@activity
def in_thread(n: int) -> str:
    begun.release()
    assert finish.acquire(timeout=30)
    return threading.current_thread().name


@activity
async def on_loop() -> str:
    return "quick"


@workflow
async def threads_and_loop(count: int) -> int:
    slow = [workflow.start(in_thread, n) for n in range(count)]
    await asyncio.gather(*(on_loop() for _ in range(count)))
    waiting = await released()
    return waiting + len([await each for each in slow])


@activity
async def released() -> int:
    for _ in range(64):
        assert await asyncio.to_thread(begun.acquire, timeout=30)
    waiting = 1_000 * in_line[-1]()
    for _ in range(100):
        finish.release()
    return waiting


in_line: list[Callable[[], int]] = []


begun = threading.Semaphore(0)
finish = threading.Semaphore(0)


async def test_what_waits_for_a_thread_is_not_in_the_way_of_what_needs_none() -> None:
    """100 functions hang in 64 threads. Who needs no thread goes on."""
    async with client_on(MemoryStore()) as client, client.worker(in_thread, on_loop, released, threads_and_loop):
        handle = await client.start(threads_and_loop, 100)
        attempts = membership_of(client).node.attempts
        in_line.append(lambda: attempts.waiting)
        assert await asyncio.wait_for(handle.result(), 30) == 36_000 + 100
        assert attempts.waiting == 0
        assert attempts.room(threaded=True) == 64


def test_lines_do_not_fill_the_memory_with_those_who_have_left() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED, fan_out, limits=Limits(attempts=1)):
            attempts: Attempts = membership_of(client).node.attempts
            await client.start(long_step, 3_600_000.0)
            await until(lambda: executed)
            for _ in range(20):
                handle = await client.start(fan_out, 200, 3_600.0)
                await until(lambda: attempts.waiting == 200)
                await handle.cancel()
                await until(lambda: attempts.waiting == 0)
                assert len(attempts._line) <= 300

    virtually(scenario())


def test_a_full_batch_is_followed_by_the_next_at_once_or_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among others, each batch is followed by a pause: whoever looks a moment later gets a share."""

    async def scenario() -> None:
        monkeypatch.setattr(claims, "SHARE_PAUSE_S", 1.0)
        data = MemoryStore()
        async with client_on(data.connect()) as starter, nodes(data, 2, *HOSTED, attempts=1_000) as clients:
            for _ in range(400):
                await starter.start(nap, 600)
            begun = now()
            await until(lambda: sum(len(membership_of(each).node.hosted) for each in clients) == 400)
            assert 2.5 < now() - begun < 4.5
            assert all(len(membership_of(each).node.hosted) == 200 for each in clients)

    virtually(scenario())
