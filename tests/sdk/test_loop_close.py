"""Eviction: whatever a run is doing when it leaves memory, nothing of it is left."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from greenlet import greenlet

from outlast.model.errors import Evicted, InternalError
from outlast.sdk import eviction
from outlast.sdk.loop import Phase
from sdk.loop_world import World, activity, call, trace

Main = Callable[[], Any]


class Witness:
    """Lives as long as the frame that holds it."""


alive: weakref.WeakSet[Witness] = weakref.WeakSet()


def witness() -> Witness:
    made = Witness()
    alive.add(made)
    return made


async def in_activity() -> None:
    here = witness()
    await activity("x")
    del here


def in_call() -> None:
    here = witness()
    call("x")
    del here


async def in_gather() -> None:
    await asyncio.gather(in_activity(), in_activity(), asyncio.to_thread(in_call))


async def in_groups() -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(in_activity())
        async with asyncio.TaskGroup() as inner:
            inner.create_task(in_activity())
            inner.create_task(in_gather())


async def in_blocked_task() -> None:
    others = [asyncio.create_task(in_activity()), asyncio.create_task(in_gather())]
    await asyncio.sleep(0)
    sorted([1], key=lambda _: in_call())
    await asyncio.gather(*others)


async def in_generator() -> None:
    async def steps() -> AsyncIterator[None]:
        here = witness()
        yield
        await activity("x")
        del here

    kept = steps()
    await anext(kept)
    async for _ in steps():
        pass


async def in_timeouts() -> None:
    async with asyncio.timeout(5):
        await asyncio.wait_for(asyncio.shield(in_activity()), 10)


async def in_unstarted_task() -> None:
    tasks = [asyncio.create_task(in_activity()), asyncio.create_task(asyncio.to_thread(in_call))]
    in_call()
    await asyncio.gather(*tasks)


async def with_unawaited_coroutines() -> None:
    later = [in_activity() for _ in range(3)]
    await activity("x")
    for each in later:
        await each


async def waiting_again() -> None:
    for _ in range(20):
        try:
            await in_activity()
        finally:
            await activity("tidy up")


async def swallowing_errors() -> None:
    while True:
        try:
            await activity("x")
        except Exception:
            trace("swallowed")


ASYNC_MAINS: list[Main] = [
    *(in_activity, in_gather, in_groups, in_blocked_task, in_generator, in_timeouts, in_unstarted_task),
    *(with_unawaited_coroutines, waiting_again, swallowing_errors),
]


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """Looking at all objects of the process would take half a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def greenlets() -> int:
    gc.collect()
    return sum(isinstance(each, greenlet) and bool(each) and each.gr_frame is not None for each in gc.get_objects())


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("main", [*ASYNC_MAINS, in_call])
def test_nothing_is_left_after_eviction(main: Main) -> None:
    World().run(in_unwitnessed)  # so that there is an idle hub
    before = greenlets()
    running = World()
    running.loop.start(main, is_async=main is not in_call)
    running.turn()
    asked = len(running.commands)
    seen = weakref.ref(running.loop)
    running.loop.close()
    assert running.loop.phase is Phase.CLOSED
    assert running.loop.is_closed()
    assert len(running.commands) == asked
    assert running.problems == []
    assert running.trace == []
    running.loop.close()
    del running
    assert greenlets() == before
    assert len(alive) == 0
    assert seen() is None


async def in_unwitnessed() -> None:
    call("x")


def test_finally_blocks_run_and_can_do_nothing() -> None:
    async def main() -> None:
        try:
            await activity("x")
        finally:
            trace("tidying")
            for attempt in (lambda: call("y"), lambda: asyncio.get_running_loop().call_later(1, print)):
                with pytest.raises(Evicted):
                    attempt()
            coroutine = activity("z")
            with pytest.raises(Evicted):
                await asyncio.create_task(coroutine)
            with pytest.raises(Evicted):
                await asyncio.Event().wait()
            asyncio.get_running_loop().call_soon(trace, "never")
            trace("tidied")

    running = World()
    running.loop.start(lambda: main(), is_async=True)
    running.turn()
    running.loop.close()
    assert running.trace == ["tidying", "tidied"]
    assert [command[2] for command in running.commands] == ["x"]


@pytest.mark.parametrize("how", ["await", "sync", "blocked"])
def test_code_that_refuses_to_end_is_given_up_and_reported(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Any] = []
    monkeypatch.setattr(eviction, "_left_suspended", left)

    refusing = True
    tries: list[int] = []

    def stubborn() -> None:
        while refusing:
            try:
                call("x")
            except BaseException:
                tries.append(1)

    async def main() -> None:
        match how:
            case "sync":
                await asyncio.to_thread(stubborn)
            case "blocked":
                stubborn()
            case _:
                while refusing:
                    try:
                        await asyncio.Event().wait()
                    except BaseException:
                        tries.append(1)

    running = World()
    running.loop.start(lambda: main(), is_async=True)
    running.turn()
    running.loop.close()
    assert running.loop.is_closed()
    assert 1 < len(tries) <= 2 * eviction.MAX_CHANCES + 2
    assert ["did not end" in problem["message"] for problem in running.problems] == [True]
    assert len(left) == 1
    refusing = False
    if how == "await":
        left[0].close()
    given_up.extend(left)


given_up: list[object] = []
"""What was given up stays for ever."""


def test_coroutines_that_eviction_cuts_off_cause_no_warning_later(recwarn: pytest.WarningsRecorder) -> None:
    async def cut_off() -> None:
        later = [in_activity()]
        try:
            await activity("x")
        except BaseException as error:
            later.append(error)  # type: ignore[arg-type]  # a cycle: error, traceback, frame, list
            raise
        await later[0]

    running = World()
    running.loop.start(lambda: cut_off(), is_async=True)
    running.turn()
    running.loop.close()
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_close_on_another_thread_is_refused_and_changes_nothing() -> None:
    running = World()
    running.loop.start(in_call, is_async=False)
    running.turn()
    seen: list[BaseException] = []

    def elsewhere() -> None:
        try:
            running.loop.close()
        except InternalError as error:
            seen.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(seen) == 1
    running.complete("1")
    running.loop.close()


def test_run_that_ended_leaves_its_other_tasks_unheard() -> None:
    async def main() -> str:
        task = asyncio.create_task(in_activity())
        await asyncio.sleep(0)
        return f"done before {task.get_name()}"

    running = World()
    done = running.live(lambda: main(), lambda _: 0)
    assert done.result() == "done before Task-2"
    running.loop.close()
    assert running.problems == []
    assert len(alive) == 0


def test_a_run_that_is_dropped_unclosed_harms_nobody() -> None:
    """Not allowed, but a bug elsewhere must not turn into switches between greenlets at random."""
    before = World()
    before.loop.start(lambda: in_blocked_task(), is_async=True)
    before.turn()
    del before
    gc.collect()
    after = World()
    after.run(in_unwitnessed)
    assert [command[2] for command in after.commands] == ["x"]
