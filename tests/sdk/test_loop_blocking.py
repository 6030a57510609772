"""Sync code in workflows: it can wait anywhere, and only what should wait with it does."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from outlast.model.errors import DurableCallError, OutlastInterrupt
from outlast.sdk.loop import Phase
from sdk.loop_world import Broken, World, activity, call, trace, world

label: contextvars.ContextVar[str] = contextvars.ContextVar("label", default="none")


class Stop(OutlastInterrupt):
    """An interrupt that user code raises or lets pass."""


def started(main: Any, *, is_async: bool) -> tuple[World, asyncio.Future[Any]]:
    running = World()
    done = running.loop.start(main, is_async=is_async)
    running.turn()
    return running, done


def test_def_workflow_waits_in_a_greenlet_of_its_own() -> None:
    def main() -> list[Any]:
        return [call("a"), call("b")]

    running, done = started(main, is_async=False)
    assert not running.loop.blocked()
    running.complete("1", "A")
    running.complete("2", "B")
    assert done.result() == ["A", "B"]
    running.loop.close()


def test_sync_call_blocks_the_whole_loop_of_an_async_workflow_but_not_the_program() -> None:
    async def other() -> None:
        trace("other starts")
        await activity("other")
        trace("other ends")

    async def main() -> Any:
        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        value = call("blocking")
        trace("main goes on")
        await task
        return value

    running, done = started(lambda: main(), is_async=True)
    assert running.loop.blocked()
    assert running.loop.quiet()
    running.complete("1")
    assert running.trace == ["other starts"]
    running.complete("2", "value")
    assert not running.loop.blocked()
    assert running.trace == ["other starts", "main goes on", "other ends"]
    assert done.result() == "value"
    running.loop.close()


def test_sync_call_can_wait_under_c_frames_generators_and_except_blocks() -> None:
    def lazily() -> Iterator[Any]:
        for n in range(2):
            yield call(f"generated {n}")

    async def main() -> Any:
        label.set("inside")
        task = asyncio.current_task()
        try:
            raise Broken("first")
        except Broken:
            ranked = sorted([2, 1], key=lambda n: call(f"key {n}"))
            assert isinstance(sys.exc_info()[1], Broken)
        got = [*lazily(), *map(call, ["mapped"])]
        assert label.get() == "inside"
        assert asyncio.current_task() is task
        return ranked, got

    running, done = started(lambda: main(), is_async=True)
    for n, value in enumerate([2, 1, "a", "b", "c"], 1):
        assert asyncio.current_task(running.loop) is None
        running.complete(str(n), value)
    assert done.result() == ([1, 2], ["a", "b", "c"])
    running.loop.close()


def test_threads_of_a_workflow_wait_beside_each_other() -> None:
    async def main() -> Any:
        return await asyncio.gather(*(asyncio.to_thread(call, name) for name in "abc"))

    running, done = started(lambda: main(), is_async=True)
    assert [command[2] for command in running.commands] == ["a", "b", "c"]
    for activity_id in ("3", "1", "2"):
        running.complete(activity_id, activity_id)
    assert done.result() == ["1", "2", "3"]
    running.loop.close()


def test_errors_and_stop_iteration_come_out_of_threads() -> None:
    def stop() -> None:
        raise StopIteration

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.to_thread(stop)

    running, done = started(lambda: main(), is_async=True)
    assert done.result() is None
    running.loop.close()


@pytest.mark.parametrize("is_async", [True, False])
def test_cancelling_a_workflow_interrupts_its_sync_call(is_async: bool) -> None:
    def work() -> None:
        try:
            call("long")
        except asyncio.CancelledError:
            trace("cancelled")
            raise

    async def main() -> None:
        work()

    running, done = started(main if is_async else work, is_async=is_async)
    running.turn(lambda: trace(done.cancel("no longer wanted")))
    assert done.cancelled()
    assert running.trace == [True, "cancelled"]
    running.loop.close()


def test_strand_that_is_cancelled_before_it_starts_never_starts() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().run_in_executor(None, trace, "started")
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future

    running, done = started(lambda: main(), is_async=True)
    assert done.result() is None
    assert running.trace == []
    running.loop.close()


def test_waiting_in_sync_code_for_what_needs_the_blocked_loop_is_refused() -> None:
    async def main() -> None:
        task = asyncio.create_task(activity("x"))
        with pytest.raises(DurableCallError, match="Await it"):
            world().loop.block(task)
        task.cancel()

    running, done = started(lambda: main(), is_async=True)
    assert done.result() is None
    running.loop.close()


def test_blocking_while_delivering_or_from_another_thread_is_refused() -> None:
    async def main() -> None:
        await activity("x")

    running, _ = started(lambda: main(), is_async=True)
    seen: list[BaseException] = []

    def elsewhere() -> None:
        try:
            running.loop.block(running.loop.create_future())
        except DurableCallError as error:
            seen.append(error)

    def deliver() -> None:
        with pytest.raises(DurableCallError, match="outside of the tasks"):
            running.loop.block(running.loop.create_future())
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    running.turn(deliver)
    assert len(seen) == 1
    running.loop.close()


def test_timer_of_the_program_reaches_a_blocked_loop() -> None:
    async def main() -> Any:
        loop = world().loop
        future = loop.create_future()
        loop.call_timer(2_000_000, "pause", future.set_result, "over")
        return loop.block(future)

    running, done = started(lambda: main(), is_async=True)
    assert running.loop.blocked()
    running.fire("1")
    assert done.result() == "over"
    running.loop.close()


@pytest.mark.parametrize("how", ["task", "child", "callback", "strand", "blocked", "def"])
def test_interrupts_escape_from_the_turn_at_once(how: str) -> None:
    def stop() -> None:
        raise Stop

    async def child() -> None:
        stop()

    async def main() -> None:
        match how:
            case "task":
                await activity("x")
                stop()
            case "child":
                await activity("x")
                asyncio.create_task(child())  # noqa: RUF006
                asyncio.get_running_loop().call_soon(trace, "before")
                await asyncio.sleep(0)
                call("blocks before anybody looks at the child")
            case "callback":
                await activity("x")
                asyncio.get_running_loop().call_soon(stop)
            case "strand":
                await asyncio.to_thread(lambda: (call("x"), stop()))
            case _:
                call("x")
                stop()
        await asyncio.sleep(0)
        trace("after")

    if how == "def":
        running, _ = started(lambda: (call("x"), stop()), is_async=False)
    else:
        running, _ = started(lambda: main(), is_async=True)
    with pytest.raises(Stop):
        running.complete("1")
    assert "after" not in running.trace
    running.loop.close()
    assert running.problems == []


def test_query_sees_the_run_and_can_change_nothing() -> None:
    event = asyncio.Event()

    async def main() -> None:
        await event.wait()

    running, _ = started(lambda: main(), is_async=True)

    def query() -> int:
        assert running.loop.phase is Phase.READ_ONLY
        assert asyncio.get_running_loop() is running.loop
        coroutine = activity("x")
        for change in (event.set, lambda: call("x"), lambda: asyncio.create_task(coroutine)):
            with pytest.raises(DurableCallError, match="answering a query"):
                change()
        asyncio.get_running_loop().create_future()
        return len(asyncio.all_tasks())

    before = hash(running.loop.create_future())
    assert running.loop.peek(query) == 1
    assert hash(running.loop.create_future()) == before + 1
    assert running.loop.phase is Phase.IDLE
    assert running.commands == []
    running.loop.close()
