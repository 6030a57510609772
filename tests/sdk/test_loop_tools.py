"""Each of asyncio's tools works inside a workflow, on its own, and asks the host for what it should and no more."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from outlast.model.errors import DurableCallError
from sdk.loop_world import Broken, World, activity, call, trace, world

label: contextvars.ContextVar[str] = contextvars.ContextVar("label", default="none")


def result_of(main: Any, *, commands: int | None = None) -> Any:
    running = World()
    result = running.run(main)
    if commands is not None:
        assert len(running.commands) == commands
    return result


async def named(name: str) -> str:
    await activity(name)
    return name


# --- time


def test_sleep_is_a_timer_of_the_delay_as_given_in_microseconds() -> None:
    async def main() -> object:
        return await asyncio.sleep(0.3, "slept"), asyncio.get_running_loop().time()

    running = World()
    assert running.run(main) == ("slept", 0.3)
    assert running.commands == [("timer", "1", "300000")]


def test_sleep_of_zero_yields_without_a_timer() -> None:
    async def main() -> list[str]:
        seen: list[str] = []

        async def other() -> None:
            seen.append("other")

        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        seen.append("main")
        await task
        return seen

    assert result_of(main, commands=0) == ["other", "main"]


def test_timeout_asks_for_whole_microseconds_though_it_is_given_a_time() -> None:
    async def main() -> None:
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.Event().wait()

    running = World()
    running.run(main)
    assert running.commands == [("timer", "1", "100000"), ("timer", "2", "300000")]


def test_timer_that_is_not_needed_any_more_is_cancelled_once() -> None:
    async def main() -> str:
        async with asyncio.timeout(5):
            return await activity("quick")

    running = World()
    running.run(main)
    assert running.commands == [("timer", "1", "5000000"), ("activity", "2", "quick"), ("cancel timer", "1")]


def test_call_later_of_zero_or_less_is_a_timer_so_that_polling_lets_the_world_go_on() -> None:
    async def main() -> int:
        task = asyncio.create_task(named("slow"))
        polls = 0
        while not task.done():
            await asyncio.wait([task], timeout=0)
            polls += 1
        asyncio.get_running_loop().call_later(-5, trace, "late")
        await asyncio.sleep(1)
        return polls

    running = World()
    picks = iter([3, 3, 0])
    done = running.live(lambda: main(), lambda _: next(picks, 0))
    assert done.result() == 3
    assert [command[2] for command in running.commands if command[0] == "timer"] == ["0", "0", "0", "0", "1000000"]
    assert running.trace == ["late"]
    running.loop.close()


def test_endless_delay_needs_no_timer_and_nan_is_refused() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(float("inf"), trace, "never").cancel()
        with pytest.raises(ValueError, match="NaN"):
            loop.call_later(float("nan"), trace, "never")
        with pytest.raises(ValueError, match="NaN"):
            loop.call_at(float("nan"), trace, "never")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(float("inf")), 1)

    running = World()
    running.run(main)
    assert running.commands == [("timer", "1", "1000000")]


def test_cancelled_handles_are_not_called() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        soon, later = loop.call_soon(trace, "soon"), loop.call_later(1, trace, "later")
        assert not soon.cancelled()
        assert not later.cancelled()
        soon.cancel()
        later.cancel()
        later.cancel()
        assert soon.cancelled()
        assert later.cancelled()
        await asyncio.sleep(2)

    running = World()
    running.run(main)
    assert running.trace == []
    assert [command[0] for command in running.commands] == ["timer", "cancel timer", "timer"]


def test_wait_for_raises_timeout_error_and_cancels_what_it_waited_for() -> None:
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            trace("cancelled")
            raise

    async def main() -> str:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(forever(), 1)
        return await asyncio.wait_for(named("quick"), 10)

    running = World()
    assert running.run(main) == "quick"
    assert running.trace == ["cancelled"]


# --- several at once


def test_gather_keeps_the_order_of_its_arguments() -> None:
    async def main() -> Any:
        return await asyncio.gather(named("a"), named("b"), named("c"))

    running = World()
    done = running.loop.start(lambda: main(), is_async=True)
    running.turn()
    for activity_id in ("3", "1", "2"):
        assert not done.done()
        running.complete(activity_id)
    assert done.result() == ["a", "b", "c"]
    running.loop.close()


def test_gather_raises_the_first_error_and_can_return_errors() -> None:
    async def bad() -> None:
        raise Broken("bad")

    async def main() -> Any:
        with pytest.raises(Broken):
            await asyncio.gather(named("a"), bad())
        return await asyncio.gather(named("b"), bad(), return_exceptions=True)

    result = result_of(main)
    assert result[0] == "b"
    assert isinstance(result[1], Broken)


def test_wait_returns_sets_in_the_order_of_creation() -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(named(str(n))) for n in range(40)]
        done, pending = await asyncio.wait(set(tasks), return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(done, set)
        assert done == {tasks[0]}
        assert list(pending) == tasks[1:]
        done, pending = await asyncio.wait(tasks)
        assert list(done) == tasks
        assert pending == set()

    result_of(main)


def test_wait_for_the_first_exception() -> None:
    async def bad() -> None:
        await activity("bad")
        raise Broken("bad")

    async def main() -> int:
        tasks = [asyncio.create_task(bad()), asyncio.create_task(named("slow"))]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        assert isinstance(tasks[0].exception(), Broken)
        return len(done)

    assert result_of(main) == 1


@pytest.mark.parametrize("count", [3, 50])
def test_as_completed_starts_coroutines_in_the_order_given(count: int) -> None:
    async def main() -> list[str]:
        return [await done for done in asyncio.as_completed([named(str(n)) for n in range(count)])]

    running = World()
    assert running.run(main) == [str(n) for n in range(count)]
    assert [command[2] for command in running.commands] == [str(n) for n in range(count)]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
def test_as_completed_can_be_iterated_asynchronously() -> None:
    async def main() -> bool:
        tasks = [asyncio.create_task(named(str(n))) for n in range(5)]
        return [task async for task in asyncio.as_completed(tasks)] == tasks

    assert result_of(main) is True


def test_task_group_aborts_in_the_order_of_creation_also_when_nested() -> None:
    async def member(name: str) -> None:
        try:
            await activity(name)
        except asyncio.CancelledError:
            trace(name)
            raise
        if name == "bad":
            raise Broken(name)

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(10):
                group.create_task(member(f"inner {n}"))

    async def outer() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(member("bad"))
            group.create_task(inner())
            for n in range(10):
                group.create_task(member(f"outer {n}"))

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await outer()

    running = World()
    running.run(main)
    assert running.trace == [*[f"outer {n}" for n in range(10)], *[f"inner {n}" for n in range(10)]]


def test_shield_keeps_the_inner_task_alive() -> None:
    async def main() -> str:
        inner = asyncio.create_task(named("inner"))
        outer = asyncio.create_task(asyncio.wait_for(asyncio.shield(inner), 100))
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        return await inner

    assert result_of(main) == "inner"


def test_queues_locks_events_conditions_semaphores_and_barriers() -> None:
    async def main() -> list[Any]:
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        lock, event, condition = asyncio.Lock(), asyncio.Event(), asyncio.Condition()
        semaphore, bounded, barrier = asyncio.Semaphore(2), asyncio.BoundedSemaphore(1), asyncio.Barrier(2)
        seen: list[Any] = []

        async def produce() -> None:
            for n in range(3):
                await queue.put(n)
            event.set()

        async def consume() -> None:
            for _ in range(3):
                async with lock, semaphore, bounded:
                    await activity("work")
                    seen.append(await queue.get())
                    queue.task_done()
            async with condition:
                condition.notify_all()
            await barrier.wait()

        async def watch() -> None:
            async with condition:
                await condition.wait()
            await barrier.wait()
            seen.append("met")

        await asyncio.gather(produce(), consume(), watch(), event.wait(), queue.join())
        stack: asyncio.LifoQueue[int] = asyncio.LifoQueue()
        heap: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        for n in (2, 1, 3):
            stack.put_nowait(n)
            heap.put_nowait(n)
        return [*seen, await stack.get(), await heap.get()]

    assert result_of(main, commands=3) == [0, 1, 2, "met", 3, 1]


# --- tasks


def test_tasks_are_named_and_listed_per_run() -> None:
    async def main() -> list[str]:
        tasks = [asyncio.create_task(named(str(n))) for n in range(30)]
        tasks.append(asyncio.create_task(named("mine"), name="mine"))
        names = [task.get_name() for task in asyncio.all_tasks()]
        current = asyncio.current_task()
        assert current is not None
        assert names[0] == current.get_name()
        await asyncio.gather(*tasks)
        return names

    expected = [*[f"Task-{n}" for n in range(1, 32)], "mine"]
    assert result_of(main) == expected
    assert result_of(main) == expected


def test_cancel_and_uncancel_count() -> None:
    async def main() -> tuple[int, int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await activity("x")
        return task.cancelling(), task.uncancel()

    assert result_of(main) == (1, 0)


def test_contextvars_are_copied_for_tasks_callbacks_and_threads() -> None:
    async def child() -> str:
        before = label.get()
        label.set("child")
        return before

    def in_thread() -> str:
        before = label.get()
        label.set("thread")
        call("x")
        return f"{before} {label.get()}"

    async def main() -> list[str]:
        label.set("main")
        own = contextvars.copy_context()
        own.run(label.set, "own")
        seen = [await asyncio.create_task(child()), await asyncio.create_task(child(), context=own)]
        seen += [await asyncio.to_thread(in_thread), own[label], label.get()]
        asyncio.get_running_loop().call_soon(lambda: trace(label.get()))
        await asyncio.sleep(0)
        return seen

    running = World()
    assert running.run(main) == ["main", "own", "main thread", "child", "main"]
    assert running.trace == ["main"]


def test_task_factories_and_eager_tasks_are_refused() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(None)
        assert loop.get_task_factory() is None
        with pytest.raises(DurableCallError, match="factory"):
            loop.set_task_factory(lambda loop, coro: asyncio.Task(coro, loop=loop))
        options: Any = {"eager_start": True}
        with pytest.raises(DurableCallError, match="eager_start"):
            await loop.create_task(named("x"), **options)

    result_of(main, commands=0)


# --- async generators


def test_abandoned_generator_is_closed_on_the_workflows_loop() -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await activity("close")
            trace("closed")

    async def main() -> None:
        async for _ in numbers():
            break
        await activity("after")
        await activity("and after")

    running = World()
    running.run(main)
    assert [command[2] for command in running.commands] == ["after", "close", "and after"]
    assert running.trace == ["closed"]


# --- errors


def test_failing_callback_and_forgotten_exception_are_reported() -> None:
    async def bad() -> None:
        raise Broken("never retrieved")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        task = asyncio.create_task(bad())
        await asyncio.sleep(0)
        del task
        await asyncio.sleep(0)
        loop.set_exception_handler(lambda _, context: trace(type(context["exception"])))
        loop.call_soon(lambda: [][0])
        await asyncio.sleep(0)
        assert loop.get_exception_handler() is not None
        loop.set_exception_handler(lambda *_: {}["handler fails"])
        loop.call_soon(lambda: [][0])
        await asyncio.sleep(0)

    running = World()
    running.live(lambda: main(), lambda _: 0).result()
    assert [type(problem["exception"]) for problem in running.problems] == [ZeroDivisionError, Broken, KeyError]
    assert running.trace == [IndexError]
    running.loop.close()


def test_what_cannot_work_says_what_to_do_instead() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pytest.raises(DurableCallError, match="in an activity"):
            loop.call_soon_threadsafe(print)
        with pytest.raises(DurableCallError, match="in an activity"):
            await loop.getaddrinfo("localhost", 80)
        with pytest.raises(DurableCallError, match="in an activity"):
            await asyncio.create_subprocess_exec("true")
        with pytest.raises(DurableCallError, match="in an activity"):
            await asyncio.open_connection("localhost", 80)
        with pytest.raises(DurableCallError, match="signal"):
            loop.add_signal_handler(2, print)
        with pytest.raises(DurableCallError, match="await the coroutine"):
            loop.run_until_complete(None)
        with pytest.raises(DurableCallError, match="loop of its own"):
            asyncio.run(named("x"))
        with pytest.raises(DurableCallError, match="Only None"):
            await loop.run_in_executor(object(), print)
        with pytest.raises(DurableCallError, match="from inside"):
            loop.close()
        assert loop.is_running()
        assert not loop.is_closed()
        assert not loop.get_debug()

    result_of(main, commands=0)


def test_every_method_of_an_event_loop_is_either_there_or_refused() -> None:
    loop = World().loop
    inherited = [name for name in vars(asyncio.AbstractEventLoop) if not name.startswith("_")]
    missing = [name for name in inherited if getattr(type(loop), name) is getattr(asyncio.AbstractEventLoop, name)]
    assert missing == []


def test_code_that_never_gets_quiet_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outlast.sdk.loop.MAX_STEPS", 1_000)

    async def main() -> None:
        while not trace("spin"):
            await asyncio.sleep(0)

    running = World()
    running.loop.start(lambda: main(), is_async=True)
    with pytest.raises(DurableCallError, match=r"1000 callbacks.*test_loop_tools\.py:\d+ in main"):
        running.turn()
    running.loop.close()


def test_world_of_the_caller_is_that_of_the_run() -> None:
    async def main() -> World:
        return world()

    running = World()
    assert running.run(main) is running
