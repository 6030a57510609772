"""What users write, end to end: on the memory store, in virtual time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

import outlast
from outlast import Retry, activity, workflow
from outlast.model.events import ActivityAttemptFailed, ActivityCompleted, ActivityScheduled, TimerStarted
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual

calls: list[str] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    calls.clear()


def run(target: object, *args: object, hosted: tuple[object, ...] = ()) -> object:
    async def work() -> object:
        async with client_on(MemoryStore()) as client, client.worker(target, *hosted, *ACTIVITIES):
            handle = await client.start(target, *args, id="w")  # type: ignore[arg-type]
            return await handle.result()

    return run_virtual(work())


def run_with_history(target: object, *args: object) -> tuple[object, list[outlast.HistoryEvent]]:
    async def work() -> tuple[object, list[outlast.HistoryEvent]]:
        async with client_on(MemoryStore()) as client, client.worker(target, *ACTIVITIES):
            handle = await client.start(target, *args, id="w")  # type: ignore[arg-type]
            return await handle.result(), await handle.history()

    return run_virtual(work())


@activity
async def double(n: int) -> int:
    calls.append(f"double {n}")
    return n * 2


@activity
def double_in_thread(n: int) -> int:
    return n * 2


@activity
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return f"slept {seconds}"


class CardDeclined(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@activity(retry=Retry.never())
async def decline() -> str:
    raise CardDeclined(51, "no funds")


@activity(retry=Retry(initial_interval=1, backoff=2, jitter=0, max_attempts=3))
async def fail_twice() -> int:
    calls.append("fail_twice")
    if len(calls) < 3:
        raise ConnectionError("not yet")
    return activity.info().attempt


ACTIVITIES = (double, double_in_thread, slow, decline, fail_twice)


@workflow
async def sequence(n: int) -> list[int]:
    return [await double(i) for i in range(n)]


def test_activities_one_after_another() -> None:
    result, history = run_with_history(sequence, 3)
    assert result == [0, 2, 4]
    assert [type(each.event).__name__ for each in history] == [
        "WorkflowExecutionStarted",
        *["ActivityScheduled", "ActivityCompleted"] * 3,
        "WorkflowExecutionCompleted",
    ]


@workflow
def sync_sequence(n: int) -> list[int]:
    first = double_in_thread(n)
    workflow.sleep("2 hours")
    return [first, double_in_thread(first)]


def test_a_plain_function_is_a_workflow() -> None:
    result, history = run_with_history(sync_sequence, 5)
    assert result == [10, 20]
    (timer,) = [each.event for each in history if isinstance(each.event, TimerStarted)]
    assert timer.delay_us == 7_200_000_000


@workflow
async def mixed() -> list[object]:
    gathered = await asyncio.gather(double(1), double(2), workflow.start(double_in_thread, 3))
    in_thread = await asyncio.to_thread(double_in_thread, 4)
    direct = double_in_thread(5)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(double(6))
        second = group.create_task(double(7))
    return [*gathered, in_thread, direct, first.result(), second.result()]


def test_sync_activities_run_beside_async_ones() -> None:
    assert run(mixed) == [2, 4, 6, 8, 10, 12, 14]


@workflow
async def waits() -> list[str]:
    log: list[str] = []
    try:
        await asyncio.wait_for(slow(100), timeout=5)
    except TimeoutError:
        log.append("wait_for")
    try:
        async with asyncio.timeout(3):
            await workflow.sleep(timedelta(days=1))
    except TimeoutError:
        log.append("timeout")
    box: list[int] = []

    async def fill() -> None:
        await asyncio.sleep(10)
        box.append(1)

    task = asyncio.create_task(fill())
    log.append(f"too early: {await workflow.wait(lambda: box, timeout='5 seconds')}")
    in_time = await workflow.wait(lambda: box, timeout="1 minute", label="the box")
    log.append(f"in time: {in_time}")
    await task
    return log


def test_timeouts_and_conditions() -> None:
    assert run(waits) == ["wait_for", "timeout", "too early: False", "in time: True"]


@workflow
async def retried() -> int:
    return await fail_twice()


def test_an_activity_is_retried_with_backoff() -> None:
    result, history = run_with_history(retried)
    assert result == 3
    failed = [each for each in history if isinstance(each.event, ActivityAttemptFailed)]
    assert [each.event.retry_at_us - each.at_us for each in failed] == [1_000_000, 2_000_000]
    assert failed[0].event.failure.message == "not yet"


@workflow
async def catches() -> str:
    try:
        return await decline()
    except CardDeclined as error:
        return f"{error.code} {error}"


def test_an_activity_failure_is_raised_as_the_users_own_class() -> None:
    assert run(catches) == "51 no funds"


@workflow
async def fails() -> str:
    try:
        return await decline()
    except CardDeclined as error:
        raise RuntimeError("order failed") from error


def test_a_failed_workflow_tells_the_chain_of_causes() -> None:
    with pytest.raises(outlast.WorkflowFailed) as caught:
        run(fails)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert isinstance(caught.value.__cause__.__cause__, CardDeclined)


@activity(timeout=2, retry=Retry(max_attempts=2, initial_interval=1, jitter=0))
async def hangs() -> None:
    await asyncio.Event().wait()


@workflow
async def waits_for_hanging() -> str:
    try:
        await hangs()
    except outlast.ActivityTimeout as error:
        return str(error)
    return "?"


def test_an_attempt_that_takes_too_long_fails_and_is_retried() -> None:
    async def work() -> None:
        async with client_on(MemoryStore()) as client, client.worker(waits_for_hanging, hangs):
            begin = asyncio.get_running_loop().time()
            assert "2s" in await client.execute(waits_for_hanging, id="w")
            assert asyncio.get_running_loop().time() - begin == pytest.approx(5, abs=0.1)

    run_virtual(work())


@workflow
async def clocks() -> list[object]:
    first = workflow.now()
    await workflow.sleep(60)
    values = [workflow.random().random(), workflow.uuid4()]
    return [(workflow.now() - first).total_seconds(), first.tzinfo is UTC or first.tzinfo, *map(str, values)]


def test_now_random_and_uuid_are_the_runs_own() -> None:
    result = run(clocks)
    assert isinstance(result, list)
    assert result[0] == 60
    assert isinstance(datetime.now(UTC), datetime)


@workflow
async def forgetful() -> None:
    workflow.sleep(10)
    await double(1)


def test_a_forgotten_await_parks_the_run_and_names_the_line() -> None:
    async def work() -> str:
        async with client_on(MemoryStore()) as client, client.worker(forgetful, double):
            handle = await client.start(forgetful, id="w")
            while (error := (await handle.describe()).row.error) is None:
                await asyncio.sleep(0.1)
            return error

    error = run_virtual(work())
    assert "workflow.sleep" in error
    assert "test_workflows.py" in error


@workflow
async def cleans_up() -> str:
    try:
        await workflow.sleep("1 day")
    finally:
        await double(21)
    return "not reached"


def test_cancel_raises_in_the_main_task_and_cleanup_runs() -> None:
    async def work() -> None:
        async with client_on(MemoryStore()) as client, client.worker(cleans_up, double):
            handle = await client.start(cleans_up, id="w")
            await handle.cancel("changed my mind")
            with pytest.raises(outlast.WorkflowCancelled):
                await handle.result()
            kinds = [type(each.event).__name__ for each in await handle.history()]
            assert kinds[-1] == "WorkflowExecutionCancelled"
            assert calls == ["double 21"]

    run_virtual(work())


@workflow
async def fan_out(n: int) -> int:
    return sum(await asyncio.gather(*(double(i) for i in range(n))))


def test_a_large_gather() -> None:
    result, history = run_with_history(fan_out, 1_000)
    assert result == 999_000
    assert sum(isinstance(each.event, ActivityScheduled) for each in history) == 1_000
    assert sum(isinstance(each.event, ActivityCompleted) for each in history) == 1_000


def test_calling_outside_a_run_is_calling_the_function() -> None:
    assert asyncio.run(double(4)) == 8
    assert double_in_thread(4) == 8
    with pytest.raises(outlast.DurableCallError, match=r"workflow\.now"):
        workflow.now()


def test_an_id_in_use_is_refused_and_execute_attaches() -> None:
    async def work() -> None:
        async with client_on(MemoryStore()) as client, client.worker(sequence, double):
            first = await client.start(sequence, 2, id="same")
            with pytest.raises(outlast.AlreadyStarted) as caught:
                await client.start(sequence, 2, id="same")
            assert caught.value.run_id == first.run_id
            assert await client.execute(sequence, 2, id="same") == [0, 2]
            assert await client.execute(sequence, 2, id="same") == [0, 2]
            assert len(await client.runs()) == 1

    run_virtual(work())


def test_a_bad_argument_fails_at_the_caller_and_writes_nothing() -> None:
    async def work() -> None:
        async with client_on(MemoryStore()) as client:
            with pytest.raises(outlast.PayloadError, match="n"):
                await client.start(sequence, "three", id="w")  # type: ignore[arg-type]
            assert await client.runs() == []

    run_virtual(work())


def test_a_client_without_a_worker_starts_what_another_process_runs() -> None:
    async def work() -> None:
        store = MemoryStore()
        async with client_on(store) as starter, client_on(store.connect()) as hoster:
            handle = await starter.start(sequence, 2, id="w")
            async with hoster.worker(sequence, double):
                assert await handle.result() == [0, 2]

    run_virtual(work())
