"""Unwinding a run that leaves memory.

Nothing may be left: a suspended greenlet is never collected, a suspended coroutine would be closed by the garbage
collector at any time and on any thread. So `Evicted` is raised wherever the run's code waits. `finally` blocks run, but
nothing that they do counts: every durable call and every `await` in them raises `Evicted` again.

Code can swallow that and wait again. Each coroutine is given a number of chances, and all sync calls of the run
together too; code that is still not done then is left suspended for ever, and reported. It is kept referenced, since
Python would answer dropping it by raising in it once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from outlast.model.errors import Evicted
from outlast.sdk.compat import swap_current_task
from outlast.sdk.tasks import Task

if TYPE_CHECKING:
    from outlast.sdk.loop import WorkflowLoop

MAX_CHANCES = 200
"""How often code may wait again while it is unwound. Each nested TaskGroup takes one; nobody nests 200 deep."""

_left_suspended: list[object] = []


def evicted() -> Evicted:
    return Evicted("The run leaves this process's memory. Nothing that its code does now counts; let this pass.")


def left_behind(name: str) -> str:
    return (
        f"Code of {name} did not end when the run left memory, and stays suspended for ever: it catches BaseException "
        "and waits again. Let outlast.Evicted pass."
    )


def park(unwinding: greenlet) -> None:
    """In code that does not end: give up, go back to who unwinds it, and never return."""
    _left_suspended.append(getcurrent())
    while True:
        unwinding.switch()


def unwind_run(loop: WorkflowLoop) -> bool:
    """Whether everything has ended. Called in phase EVICTING, inside of the loop."""
    ended = [_unwind_hub(loop)]
    while loop.strands:
        strand, _ = loop.strands.popitem()
        ended.append(_unwind_strand(strand))
    ended += [task.done() or _unwind_task(loop, task) for task in list(loop.tasks.values())]
    loop.tasks.clear()
    generators = [*(loop.generators or ()), *loop.abandoned]
    loop.generators = None
    loop.abandoned.clear()
    ended.append(loop.context.copy().run(unwind_generators, generators))
    return all(ended)


def _unwind_hub(loop: WorkflowLoop) -> bool:
    """Raise in the task that blocks the loop. When its step ends, or waits as a task does, the hub is free."""
    if loop.suspended is None:
        return True
    task = loop.blocked_task
    loop.suspended.throw(evicted())
    loop.escaped = None
    free = loop.hub is loop.caller
    if not free and task is not None:
        # Its coroutine is left in the middle of a step.
        _disown(loop.tasks.pop(task.number))
    return free


def _unwind_strand(strand: greenlet) -> bool:
    """Whether it has ended."""
    strand.parent = getcurrent()
    try:
        strand.throw(evicted())
    except BaseException as error:
        _forget(error)
    return strand.dead


def _unwind_task(loop: WorkflowLoop, task: Task[Any]) -> bool:
    """Whether its coroutine has ended. The task itself stays pending, unseen."""
    _disown(task)
    coroutine: Any = task.get_coro()
    unwind = partial(_as_current, loop, task, partial(_throw_until_done, coroutine))
    return coroutine is None or _in_greenlet(lambda: task.where.copy().run(unwind))


def _disown(task: Task[Any]) -> None:
    """It may be dropped though it is pending."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # pyright: ignore


def unwind_generators(generators: Iterable[Any]) -> bool:
    """Close async generators that nobody iterates any more."""
    ended = [_in_greenlet(partial(_throw_until_done, generator.aclose(), begun=False)) for generator in generators]
    return all(ended)


def _in_greenlet(unwind: Callable[[], bool]) -> bool:
    """Call it where `park` can leave it behind."""
    outcome: list[bool] = []
    unwinding = greenlet(lambda: outcome.append(unwind()))
    unwinding.gr_context = copy_context()
    unwinding.switch()
    return outcome == [True]


def _as_current(loop: WorkflowLoop, task: Task[Any], unwind: Callable[[], bool]) -> bool:
    before = swap_current_task(loop, task)
    try:
        return unwind()
    finally:
        swap_current_task(loop, before)


def _throw_until_done(coroutine: Any, begun: bool = True) -> bool:
    for _ in range(MAX_CHANCES):
        try:
            if begun:
                coroutine.throw(evicted())
            else:
                coroutine.send(None)
                begun = True
        except BaseException as error:
            _forget(error)
            return True
    _left_suspended.append(coroutine)
    return False


def _forget(error: BaseException) -> None:
    """What unwound code ends with does not count. Frames that keep their own exception are cycles, which would leave
    what they hold, coroutines that nobody awaited among it, to the garbage collector.
    """
    each: BaseException | None = error
    for _ in range(MAX_CHANCES):
        if each is None:
            return
        clear_frames(each.__traceback__)
        each = each.__context__
