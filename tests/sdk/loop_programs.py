"""Random workflow programs: trees of asyncio's tools over activities, timers and sync calls.

A program is plain data (nested tuples), drawn by a `Pick`; `run_program` is its interpreter. Everything that it does is
put into the world's trace, so that two executions can be compared step by step.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from sdk.loop_world import Pick, activity, call, trace

Node = tuple[Any, ...]

LEAVES = ("activity", "activity", "sync", "sleep", "yield", "thread", "callback")
TOOLS = (
    *("gather", "gather_errors", "wait", "as_completed", "group", "wait_for", "timeout", "sequence", "shield"),
    *("cancel", "queue", "event", "lock", "semaphore", "condition", "barrier", "generator"),
    *("gathers", "shields", "all_tasks"),
)
MODES = (asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION, asyncio.ALL_COMPLETED)


def draw_program(pick: Pick, depth: int = 3) -> Node:
    if depth == 0 or pick(5) == 0:
        return LEAVES[pick(len(LEAVES))], pick(4)
    kind = TOOLS[pick(len(TOOLS))]
    return kind, pick(12), *(draw_program(pick, depth - 1) for _ in range(2 + pick(2)))


async def run_program(node: Node, path: str = "") -> Any:
    here = f"{path}/{node[0]}"
    try:
        value = await globals()[f"do_{node[0]}"](node, here)
    except Exception as error:
        trace((here, type(error).__name__))
        raise
    except asyncio.CancelledError:
        trace((here, "cancelled"))
        raise
    trace((here, str(value)))
    return value


def later(node: Node, here: str) -> list[Any]:
    """The children, each to be called for its coroutine: one that is never reached must not be made."""
    return [partial(run_program, child, f"{here}.{n}") for n, child in enumerate(node[2:])]


def children(node: Node, here: str) -> list[Any]:
    return [child() for child in later(node, here)]


def tasks(node: Node, here: str) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(child) for child in children(node, here)]


async def end_all(started: list[asyncio.Task[Any]]) -> list[str]:
    for task in started:
        task.cancel()
    return [type(outcome).__name__ for outcome in await asyncio.gather(*started, return_exceptions=True)]


async def do_activity(node: Node, here: str) -> Any:
    return await activity(here)


async def do_sync(node: Node, here: str) -> Any:
    return sorted([3, 1, 2], key=lambda n: (call(f"{here} {n}") if n == 1 else "", n))


async def do_sleep(node: Node, here: str) -> Any:
    return await asyncio.sleep(node[1] * 0.1, node[1])


async def do_yield(node: Node, here: str) -> Any:
    for _ in range(node[1]):
        await asyncio.sleep(0)


async def do_thread(node: Node, here: str) -> Any:
    return await asyncio.to_thread(lambda: [call(f"{here} {n}") for n in range(node[1])])


async def do_callback(node: Node, here: str) -> Any:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(trace, (here, "soon"))
    loop.call_later(node[1] * 0.25, done.set_result, "later")
    return await done


async def do_sequence(node: Node, here: str) -> Any:
    return [await child() for child in later(node, here)]


async def do_gather(node: Node, here: str) -> Any:
    started = tasks(node, here)
    try:
        return await asyncio.gather(*started)
    finally:
        await end_all(started)


async def do_gather_errors(node: Node, here: str) -> Any:
    outcomes = await asyncio.gather(*children(node, here), return_exceptions=True)
    return [type(outcome).__name__ for outcome in outcomes]


async def do_gathers(node: Node, here: str) -> Any:
    """Futures of gather() in a set, which is where they hash."""
    inner = [asyncio.gather(child, return_exceptions=True) for child in children(node, here)]
    names = {future: n for n, future in enumerate(inner)}
    done, pending = await asyncio.wait(set(inner), return_when=asyncio.FIRST_COMPLETED)
    trace((here, [names[future] for future in done], [names[future] for future in pending]))
    for future in pending:
        future.cancel()
    return [type(outcome).__name__ for outcome in await asyncio.gather(*inner, return_exceptions=True)]


async def do_shields(node: Node, here: str) -> Any:
    """Bare futures in a set."""
    started = [*tasks(node, here), *tasks(node, f"{here}'")]
    names = {asyncio.shield(task): n for n, task in enumerate(started)}
    done, pending = await asyncio.wait({*names}, return_when=asyncio.FIRST_COMPLETED)
    trace((here, [names[future] for future in done], [names[future] for future in {*pending}]))
    outcomes = await end_all(started)
    await asyncio.wait(names)
    return [outcomes, [future.cancelled() or str(future.exception()) for future in names]]


async def do_wait(node: Node, here: str) -> Any:
    started = {asyncio.create_task(child, name=f"{here} {n}") for n, child in enumerate(children(node, here))}
    timeout = None if node[1] % 2 else node[1] * 0.2
    done, pending = await asyncio.wait(started, timeout=timeout, return_when=MODES[node[1] % 3])
    trace((here, [task.get_name() for task in done], [task.get_name() for task in pending]))
    return await end_all([*done, *pending])


async def do_as_completed(node: Node, here: str) -> Any:
    timeout = None if node[1] % 3 else 1.5
    finished: list[str] = []
    started = tasks(node, here) if node[1] % 2 else children(node, here)
    try:
        if node[1] % 4 < 2 and sys.version_info >= (3, 13):
            finished += [str(task.exception()) async for task in asyncio.as_completed(started, timeout=timeout)]
        else:
            finished += [str(await next_done) for next_done in asyncio.as_completed(started, timeout=timeout)]
    finally:
        trace((here, finished))
    return finished


async def do_group(node: Node, here: str) -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            started = [group.create_task(child) for child in children(node, here)]
    except ExceptionGroup as errors:
        return [str(error) for error in errors.exceptions]
    return [task.result() for task in started]


async def do_wait_for(node: Node, here: str) -> Any:
    return [await asyncio.wait_for(run_program(child, here), node[1] * 0.15) for child in node[2:]]


async def do_timeout(node: Node, here: str) -> Any:
    try:
        async with asyncio.timeout(node[1] * 0.3):
            return [await run_program(child, here) for child in node[2:]]
    except TimeoutError:
        return "late"


async def do_shield(node: Node, here: str) -> Any:
    started = tasks(node, here)
    try:
        return await asyncio.wait_for(asyncio.shield(started[0]), 0.2)
    except TimeoutError:
        return await end_all(started)
    finally:
        await end_all(started)


async def do_cancel(node: Node, here: str) -> Any:
    started = tasks(node, here)
    for _ in range(node[1] % 3):
        await asyncio.sleep(0)
    if node[1] % 2:
        await activity(f"{here} first")
    return await end_all(started)


async def do_all_tasks(node: Node, here: str) -> Any:
    started = tasks(node, here)
    await asyncio.sleep(0)
    trace((here, [task.get_name() for task in asyncio.all_tasks()]))
    return await end_all(started)


async def do_queue(node: Node, here: str) -> Any:
    queue: asyncio.Queue[Any] = (asyncio.Queue, asyncio.LifoQueue, asyncio.PriorityQueue)[node[1] % 3](node[1] % 2)

    async def produce(n: int, child: Node) -> None:
        try:
            await run_program(child, f"{here}.{n}")
        finally:
            await queue.put((n, child[0]))

    made = [asyncio.create_task(produce(n, child)) for n, child in enumerate(node[2:])]
    try:
        return [await queue.get() for _ in made]
    finally:
        await end_all(made)


async def do_event(node: Node, here: str) -> Any:
    event = asyncio.Event()

    async def after(child: Any) -> Any:
        await event.wait()
        return await child()

    first, *rest = later(node, here)
    started = [asyncio.create_task(after(child)) for child in rest]
    try:
        await first()
    finally:
        event.set()
        trace(await asyncio.gather(*(asyncio.wait_for(task, 2) for task in started), return_exceptions=True) == [])


async def do_lock(node: Node, here: str) -> Any:
    return await _limited(asyncio.Lock(), node, here)


async def do_semaphore(node: Node, here: str) -> Any:
    return await _limited((asyncio.Semaphore, asyncio.BoundedSemaphore)[node[1] % 2](2), node, here)


async def do_condition(node: Node, here: str) -> Any:
    return await _limited(asyncio.Condition(), node, here)


async def _limited(limit: Any, node: Node, here: str) -> Any:
    async def one(child: Any) -> Any:
        async with limit:
            return await child()

    outcomes = await asyncio.gather(*map(one, later(node, here)), return_exceptions=True)
    return [type(outcome).__name__ for outcome in outcomes]


async def do_barrier(node: Node, here: str) -> Any:
    barrier = asyncio.Barrier(len(node) - 2)

    async def one(child: Any) -> Any:
        try:
            await child()
        finally:
            trace((here, await barrier.wait()))

    outcomes = await asyncio.gather(*map(one, later(node, here)), return_exceptions=True)
    return [type(outcome).__name__ for outcome in outcomes]


async def do_generator(node: Node, here: str) -> Any:
    async def steps() -> AsyncIterator[Any]:
        try:
            for child in node[2:]:
                yield await run_program(child, here)
        finally:
            trace((here, "closing"))
            await activity(f"{here} close")

    got: list[Any] = []
    async for value in steps():
        got.append(value)
        if len(got) > node[1] % 2:
            break
    return got


program = partial(partial, run_program)
