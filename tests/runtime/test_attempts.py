"""Attempts: slots, timeouts, cancels, losses; here and on other nodes. Each counts once, and no slot is lost."""

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
    membership_of,
    names,
    note,
    nothing_is_left,
    take_time,
    until,
)

from outlast import ActivityLost, ActivityTimeout, Busy, CommitUnknown, Retry, WorkflowFailed, activity, workflow
from outlast.runtime.limits import Limits
from outlast.runtime.parking import submit_park
from outlast.sdk.client import Client
from outlast.sdk.threads import Threads
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 20_000))


def now() -> float:
    return asyncio.get_running_loop().time()


async def cause_of(client: Client, wf: Any, *args: Any) -> BaseException | None:
    with pytest.raises(WorkflowFailed) as caught:
        await client.execute(wf, *args)
    return caught.value.__cause__


@workflow
async def fan_out(width: int, seconds: float) -> int:
    return len(await asyncio.gather(*(take_time(seconds) for _ in range(width))))


def test_no_more_attempts_run_at_a_time_than_there_are_slots() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(fan_out, *HOSTED, limits=Limits(attempts=3)):
            begun = now()
            assert await client.execute(fan_out, 10, 1.0) == 10
            assert 4 <= now() - begun < 4.5, "ten of one second each, three at a time"
            await nothing_is_left(client)

    virtually(scenario())


@workflow
async def first_of_many(width: int) -> int:
    tasks = [asyncio.ensure_future(take_time(1.0 + n)) for n in range(width)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for each in tasks:
        each.cancel()
    return len(done)


def test_what_the_workflow_no_longer_waits_for_is_stopped_and_gives_its_slot_back() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client:
            async with client.worker(first_of_many, fan_out, *HOSTED, limits=Limits(attempts=4)):
                for _ in range(5):
                    begun = now()
                    assert await client.execute(first_of_many, 8) == 1
                    assert now() - begun < 1.5
                await until(lambda: membership_of(client).node.attempts._free == 4)
                begun = now()
                assert await client.execute(fan_out, 4, 1.0) == 4
                assert now() - begun < 1.5, "all four slots are there"

    virtually(scenario())


def test_an_attempt_stopped_before_its_first_step_gives_its_slot_back() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(fan_out, *HOSTED, limits=Limits(attempts=1)):
            node = membership_of(client).node
            handle = await client.start(fan_out, 1, 5.0)
            await until(lambda: node.attempts._running)
            ((run_id, activity_id), _) = next(iter(node.attempts._running.items()))
            attempt = node.hosted[run_id].attempt(activity_id, node.hosted[run_id].state.activities[activity_id])
            node.attempts.stop(run_id, activity_id)
            await until(lambda: node.attempts._free == 1)
            node.attempts.start(attempt, lambda end: None)
            node.attempts.stop(run_id, activity_id)  # in the same step of the loop
            await asyncio.sleep(1)
            assert node.attempts._free == 1
            await handle.terminate()

    virtually(scenario())


@activity(retry=Retry(max_attempts=2, initial_interval="1s"))
async def misbehave(kind: str) -> str:
    note()
    raise {"cancelled": asyncio.CancelledError, "exit": SystemExit, "base": BaseException}[kind]("on its own")


@workflow
async def provoke(kind: str) -> str:
    return await misbehave(kind)


@pytest.mark.parametrize("kind", ["cancelled", "exit", "base"])
def test_an_activity_that_raises_control_flow_has_failed_and_hurts_nobody(kind: str) -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(provoke, misbehave, *HOSTED):
            handle = await client.start(provoke, kind)
            with pytest.raises(WorkflowFailed):
                await handle.result()
            assert (await names(handle)).count("ActivityAttemptFailed") == 1
            assert len(executed) == 2
            await nothing_is_left(client)

    virtually(scenario())


@activity
async def refuse() -> None:
    note()
    raise ConnectionError("come back later")


@workflow
async def give_up_in_time() -> None:
    await refuse.options(schedule_to_close="10s", retry=Retry(initial_interval="4s", backoff=1.0, jitter=0.0))()


@workflow
async def too_long_in_line() -> str:
    blocker = workflow.start(take_time, 60.0)
    try:
        await take_time.options(schedule_to_close="10s")(1.0)
    except ActivityTimeout as error:
        await blocker
        return str(error)
    return "in time"


def test_the_time_for_all_attempts_ends_retries_and_waiting_in_line() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client:
            hosted = (give_up_in_time, too_long_in_line, refuse, *HOSTED)
            async with client.worker(*hosted, limits=Limits(attempts=1)):
                begun = now()
                assert isinstance(await cause_of(client, give_up_in_time), ConnectionError)
                assert now() - begun < 10.5
                assert len(executed) == 3
                assert "schedule-to-close" in await client.execute(too_long_in_line)
                assert len(executed) == 4, "what waited in line was never begun"
                await nothing_is_left(client)

    virtually(scenario())


def test_a_late_end_of_an_attempt_that_was_stopped_is_not_taken_for_that_of_its_successor() -> None:
    """The run is parked and loaded anew; its old attempt cleans up for long, while the new one runs."""

    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(slow_to_die_run, slow_to_die, *HOSTED):
            node = membership_of(client).node
            handle = await client.start(slow_to_die_run)
            await until(lambda: executed)
            (run_id,) = node.hosted
            hosted = node.hosted[run_id]
            submit_park(node, hosted, hosted.state.next_event, ZeroDivisionError("planted"))
            assert await asyncio.wait_for(handle.result(), 60) == "attempt 2"
            assert (await names(handle)).count("ActivityAttemptLost") == 1

    virtually(scenario())


@activity
async def slow_to_die() -> str:
    note()
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        await asyncio.sleep(10)
    return f"attempt {activity.info().attempt}"


@workflow
async def slow_to_die_run() -> str:
    return await slow_to_die()


# --- on other nodes ---------------------------------------------------------------------------------------------------


@activity(retry=Retry(max_attempts=3, initial_interval="1s", jitter=0.0))
async def far_away(fail_times: int) -> int:
    note()
    if activity.info().attempt <= fail_times:
        raise ConnectionError("not yet")
    return activity.info().attempt


@activity(retry=Retry(max_attempts=2))
async def far_and_long(seconds: float) -> int:
    note()
    await asyncio.sleep(seconds)
    return activity.info().attempt


@workflow
async def call_far(fail_times: int) -> int:
    return await far_away.options(queue="far")(fail_times)


@workflow
async def call_long(seconds: float) -> int:
    return await far_and_long.options(queue="far")(seconds)


@workflow
async def stop_waiting() -> str:
    try:
        await asyncio.wait_for(far_and_long.options(queue="far")(60.0), 20)
    except TimeoutError:
        await workflow.sleep(1)
        return "gave up"
    return "done"


def test_an_activity_hosted_elsewhere_runs_there_and_is_retried_there() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as far:
            async with client.worker(call_far), far.worker(far_away, queue="far"):
                assert await client.execute(call_far, 0) == 1
                assert await client.execute(call_far, 2) == 3
                assert isinstance(await cause_of(client, call_far, 3), ConnectionError)
                assert set(executed.values()) == {1}
                assert not data._data.tasks
                await nothing_is_left(client)
                await nothing_is_left(far)

    virtually(scenario())


@pytest.mark.parametrize("error", [Busy("full"), CommitUnknown("cut")])
@pytest.mark.parametrize("written", [False, True])
def test_an_outcome_that_cannot_be_delivered_at_once_is_delivered_later(error: Exception, written: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_with_faults(data) as (far, store):
            async with client.worker(call_far), far.worker(far_away, queue="far"):
                store.fail("deliver", error, times=3, written=written and isinstance(error, CommitUnknown))
                assert await asyncio.wait_for(client.execute(call_far, 0), 30) == 1
                assert await asyncio.wait_for(client.execute(call_far, 1), 30) == 2
                assert set(executed.values()) == {1}

    virtually(scenario())


def test_a_claim_of_tasks_of_which_nobody_knows_strands_none() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_with_faults(data) as (far, store):
            async with client.worker(call_far), far.worker(far_away, queue="far"):
                await asyncio.sleep(1)
                store.fail("claim_tasks", CommitUnknown("cut"), written=True)
                assert await asyncio.wait_for(client.execute(call_far, 0), 30) >= 1
                assert store.used_up()

    virtually(scenario())


def test_attempts_of_a_dead_node_are_lost_and_their_policy_decides() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client.worker(call_long):
            handle = await client.start(call_long, 30.0)
            for attempt in (1, 2):
                far = client_on(data.connect())
                async with far as dying:
                    await dying.worker(far_and_long, queue="far").__aenter__()
                    await until(lambda attempt=attempt: len(executed) == attempt)
                    membership_of(dying).abandon()
            async with client_on(data.connect()) as heir, heir.worker(far_and_long, queue="far"):
                with pytest.raises(WorkflowFailed) as caught:
                    await handle.result()
            assert isinstance(caught.value.__cause__, ActivityLost)
            assert sorted(attempt for _, attempt in executed.elements()) == [1, 2]
            assert (await names(handle)).count("ActivityAttemptLost") == 1

    virtually(scenario())


def test_a_far_activity_that_is_no_longer_wanted_reports_to_nobody_and_keeps_no_slot() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as far:
            async with client.worker(stop_waiting), far.worker(far_and_long, queue="far"):
                handle = await client.start(stop_waiting)
                assert await handle.result() == "gave up"
                assert "ActivityCancelled" in await names(handle)
                assert not data._data.tasks
                await asyncio.sleep(60)
                await nothing_is_left(far)

    virtually(scenario())


def test_tasks_stopped_by_their_own_run_on_the_same_node_give_their_slots_back() -> None:
    """The run moves to the node that runs its task, and gives the activity up there."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client:
            for _ in range(3):
                async with client.worker(stop_waiting):
                    handle = await client.start(stop_waiting)
                    await until(lambda: data._data.tasks)
                hosted = (stop_waiting, call_default, far_and_long)
                async with client.worker(*hosted, queue=["default", "far"], limits=Limits(attempts=1)):
                    attempts = membership_of(client).node.attempts
                    await until(lambda: executed)
                    assert await handle.result() == "gave up"
                    executed.clear()
                    assert await asyncio.wait_for(client.execute(call_default), 60) == 1
                    await until(lambda attempts=attempts: attempts.room(threaded=False) == 1, within_s=2)
                executed.clear()

    virtually(scenario())


@workflow
async def call_default() -> int:
    return 1


# --- threads ----------------------------------------------------------------------------------------------------------


async def test_a_thread_that_nobody_waits_for_keeps_its_slot_until_it_is_done() -> None:
    threads = Threads(1)
    begun, finish = threading.Event(), threading.Event()

    def hang() -> str:
        begun.set()
        assert finish.wait(30)
        return "late"

    await threads.slot()
    running = asyncio.ensure_future(threads.run(hang))
    await asyncio.to_thread(begun.wait, 30)
    running.cancel()
    waiting = asyncio.ensure_future(threads.slot())
    gives_up = asyncio.ensure_future(threads.slot())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert running.cancelled()
    assert not waiting.done(), "the thread is still at work"
    gives_up.cancel()
    finish.set()
    await asyncio.wait_for(waiting, 30)
    assert await threads.run(lambda: "next") == "next", "what the late thread returned went nowhere"
    assert threads._free == 1
    assert not [each for each in threads._line if not each.done()]
    threads.close()


async def test_whatever_a_thread_raises_comes_back_and_ends_no_thread() -> None:
    threads = Threads(1)
    for error in (ValueError("a"), SystemExit(3), KeyboardInterrupt(), StopIteration(1), asyncio.CancelledError()):

        def throw(error: BaseException = error) -> None:
            raise error

        await threads.slot()
        with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
            # KeyboardInterrupt must not be raised through the loop by a task: look at the future itself.
            await threads.run(throw)
    await threads.slot()
    assert await threads.run(threading.active_count) >= 1
    assert threads._free == 1
    assert threads._made == 1
    threads.close()
