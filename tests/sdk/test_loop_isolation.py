"""A turn leaves nothing behind on the node's loop, and the collector and other code leave nothing in the run."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from outlast.model.errors import DurableCallError
from outlast.sdk.loop import in_finaliser, user_frame
from outlast.sdk.whereabouts import count_as_user_code, is_user_file
from sdk.loop_world import Broken, World, activity, call, trace


def surroundings() -> tuple[Any, ...]:
    return asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()


async def work() -> str:
    inside = asyncio.get_running_loop()
    await activity("a")
    await asyncio.to_thread(call, "b")
    call("c")
    assert asyncio.get_running_loop() is inside
    return "done"


async def test_turns_inside_a_task_of_another_loop_restore_everything() -> None:
    before = surroundings()
    running = World()
    seen: list[bool] = []
    running.between_turns = lambda: seen.append(surroundings() == before)
    assert running.run(work) == "done"
    assert seen == [True] * 4
    assert surroundings() == before
    await asyncio.sleep(0)


async def test_turn_that_raises_restores_everything() -> None:
    before = surroundings()
    running = World()
    running.loop.start(lambda: work(), is_async=True)
    running.turn()

    def deliver() -> None:
        raise Broken("delivery")

    with pytest.raises(Broken):
        running.turn(deliver)
    assert surroundings() == before
    running.loop.close()
    assert surroundings() == before


def test_turns_work_where_no_loop_runs() -> None:
    hooks = sys.get_asyncgen_hooks()
    assert World().run(work) == "done"
    assert sys.get_asyncgen_hooks() == hooks
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


async def test_runs_take_turns_on_one_thread_without_seeing_each_other() -> None:
    worlds = [World(f"order-{n}") for n in range(20)]
    done = [each.loop.start(lambda: work(), is_async=True) for each in worlds]
    for each in worlds:
        each.turn()
    for activity_id in ("1", "2", "3"):
        for each in worlds if activity_id == "2" else reversed(worlds):
            each.complete(activity_id)
    assert [each.result() for each in done] == ["done"] * 20
    assert len({str(each.commands) for each in worlds}) == 1
    for each in worlds:
        each.loop.close()


async def test_other_loops_keep_pythons_own_behaviour() -> None:
    async def one() -> int:
        return 1

    done, _ = await asyncio.wait({asyncio.create_task(one())})
    assert type(done) is set
    assert type(asyncio.all_tasks()) is set
    together = asyncio.gather(one(), one())
    assert hash(together) == object.__hash__(together)
    assert await together == [1, 1]


def test_nothing_can_be_scheduled_between_turns() -> None:
    event = asyncio.Event()

    async def main() -> None:
        await event.wait()

    running = World()
    running.loop.start(lambda: main(), is_async=True)
    running.turn()
    with pytest.raises(DurableCallError, match="between turns"):
        event.set()
    with pytest.raises(DurableCallError, match="between turns"):
        running.loop.call_later(1, print)
    running.loop.close()


def test_the_collectors_finalisers_cannot_touch_the_run() -> None:
    seen: list[object] = []

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            seen.append(in_finaliser())
            try:
                call("from __del__")
            except DurableCallError as error:
                seen.append("finaliser" in str(error))

    async def main() -> tuple[int, int]:
        before = hash(asyncio.get_running_loop().create_future())
        Cycle()
        gc.collect()
        return before, hash(asyncio.get_running_loop().create_future())

    running = World()
    before, after = running.run(main)
    assert seen == [True, True]
    assert after == before + 1
    assert running.commands == []
    assert not in_finaliser()


def test_generator_found_by_the_collector_is_closed_with_the_run_only() -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            trace("closing")
            await activity("close")

    async def main() -> None:
        generator: Any = numbers()
        await anext(generator)
        cycle = [generator]
        cycle.append(cycle)
        del generator, cycle
        gc.collect()
        await activity("next")
        trace("end")

    running = World()
    running.live(lambda: main(), lambda _: 0).result()
    assert [command[2] for command in running.commands] == ["next"]
    assert running.trace == ["end"]
    running.loop.close()
    assert running.trace == ["end", "closing"]


# --- where user code is


def test_whereabouts_names_the_innermost_user_frames() -> None:
    def pay() -> None:
        sorted([1], key=lambda _: call("pay"))

    async def helper() -> None:
        await asyncio.wait_for(activity("help"), 5)

    async def main() -> None:
        task = asyncio.create_task(helper())
        await asyncio.sleep(0)
        await asyncio.gather(task, asyncio.to_thread(pay))

    running = World()
    running.loop.start(lambda: main(), is_async=True)
    running.turn()
    places = running.loop.whereabouts()
    assert "in call" in places
    assert "test_loop_isolation.py" in places
    assert "in main" in places
    assert "tasks.py" not in places
    assert "thread" not in places
    running.loop.close()
    assert running.loop.whereabouts() == ""


def test_whereabouts_of_a_blocked_loop_is_the_sync_call() -> None:
    async def main() -> None:
        call("x")

    running = World()
    running.loop.start(lambda: main(), is_async=True)
    running.turn()
    assert running.loop.whereabouts().startswith("loop_world.py:")
    running.loop.close()


def test_user_frame_is_the_line_that_calls() -> None:
    line = sys._getframe().f_lineno + 1
    places = [user_frame(), asyncio.iscoroutine(None) or user_frame()]
    assert places == [f"{__file__}:{line}"] * 2


def test_installed_files_are_user_code_only_when_registered() -> None:
    installed = pytest.__file__
    assert not is_user_file(installed)
    assert not is_user_file(asyncio.__file__)
    assert not is_user_file("<frozen importlib._bootstrap>")
    assert is_user_file("<stdin>")
    registered = installed.replace("pytest", "shop_workflows")
    count_as_user_code(registered)
    assert is_user_file(registered)
