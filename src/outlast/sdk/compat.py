"""Every difference between Python versions, and every touch of asyncio's private parts, in one place.

*The current task.* Up to 3.13 asyncio keeps the current task per loop, so a turn inside a task of the node's loop
disturbs nobody. Since 3.14 it is kept per thread, and entering a task while another one is current is an error:
`enter_loop` takes the outer task out for the time of the turn, `leave_loop` puts it back.

*Order.* asyncio puts coroutines, tasks and futures into sets, which order them by their address in memory. Tasks and
futures of ours hash by a sequence number instead (see `tasks`); what is left is cured by `install`, which changes four
things in asyncio for loops of ours only. Code that runs on any other loop gets what it always got:
- `set` in `asyncio.tasks` keeps the order of insertion (`as_completed` makes a set of coroutines);
- the future that `gather` returns hashes by its children;
- `asyncio.all_tasks` answers in the order of creation;
- `asyncio.run` inside a workflow says what to do instead.
And one in `warnings`: no "was never awaited" for coroutines of a run that is being evicted.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import asyncio.runners
import asyncio.tasks
import functools
import sys
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, TypeAlias, TypeVar

from outlast.model.errors import DurableCallError

T = TypeVar("T")
AnyTask: TypeAlias = "asyncio.Task[Any]"
Outer: TypeAlias = "tuple[asyncio.AbstractEventLoop | None, AnyTask | None]"
"""What was running on this thread when a turn began."""

running_loop: Callable[[], asyncio.AbstractEventLoop | None] = asyncio.events._get_running_loop  # pyright: ignore
set_running_loop: Callable[[asyncio.AbstractEventLoop | None], None] = asyncio.events._set_running_loop  # pyright: ignore


class DeterministicLoop(asyncio.AbstractEventLoop):
    """What marks a loop as ours, for the patches below and for the garbage collector's watch."""

    def live_tasks(self) -> Iterable[AnyTask]:
        """Tasks that are not done, in order of creation."""
        raise NotImplementedError

    def collector_at_work(self, begins: bool) -> None:
        """The cyclic garbage collector begins, or ends, on the thread on which this loop takes its turn."""
        raise NotImplementedError


# --- running loop and current task -----------------------------------------------------------------------------------

if sys.version_info >= (3, 12):
    swap_current_task: Callable[[asyncio.AbstractEventLoop, AnyTask | None], AnyTask | None] = (
        asyncio.tasks._swap_current_task  # type: ignore[attr-defined]  # pyright: ignore
    )
else:

    def swap_current_task(loop: asyncio.AbstractEventLoop, task: AnyTask | None) -> AnyTask | None:
        """Make `task` the current one of `loop`, which is running; return the one that was."""
        before = asyncio.current_task(loop)
        if before is not None:
            asyncio.tasks._leave_task(loop, before)  # pyright: ignore
        if task is not None:
            asyncio.tasks._enter_task(loop, task)  # pyright: ignore
        return before


if sys.version_info >= (3, 14):

    def enter_loop(loop: asyncio.AbstractEventLoop) -> Outer:
        outer = running_loop()
        task = None if outer is None else swap_current_task(outer, None)
        set_running_loop(loop)
        return outer, task

    def leave_loop(before: Outer) -> None:
        outer, task = before
        set_running_loop(outer)
        if outer is not None and task is not None:
            swap_current_task(outer, task)

else:

    def enter_loop(loop: asyncio.AbstractEventLoop) -> Outer:
        outer = running_loop()
        set_running_loop(loop)
        return outer, None

    def leave_loop(before: Outer) -> None:
        set_running_loop(before[0])


# --- sets that keep their order --------------------------------------------------------------------------------------


class OrderedSet(set[T]):
    """A set that is iterated in the order in which its members came.

    Members that came in by another way than the constructor and `add` (`update`, `|=`) follow, in the set's own order.
    """

    def __init__(self, members: Iterable[T] = ()) -> None:
        super().__init__()
        self._came: dict[T, None] = {}
        for member in members:
            self.add(member)

    def add(self, element: T, /) -> None:
        if element not in self:
            self._came.pop(element, None)
            self._came[element] = None
        super().add(element)

    def __iter__(self) -> Iterator[T]:
        ordered = [member for member in self._came if member in self]
        if len(ordered) < len(self):
            ordered += [member for member in super().__iter__() if member not in self._came]
        return iter(ordered)

    def pop(self) -> T:
        for member in self:
            self.discard(member)
            return member
        raise KeyError("pop from an empty set")


def _set_in_asyncio_tasks(members: Iterable[Any] = ()) -> set[Any]:
    return OrderedSet(members) if isinstance(running_loop(), DeterministicLoop) else set(members)


def _hash_of_gathering(future: Any) -> int:
    # Equality stays identity: two gathers of the same children collide, which costs time only.
    if isinstance(future.get_loop(), DeterministicLoop):
        return hash(tuple(future._children))
    return object.__hash__(future)


# --- eviction ------------------------------------------------------------------------------------------------------

_unwinding_on: set[int] = set()
"""Threads on which a run is being unwound."""


@contextmanager
def unawaited_is_fine() -> Generator[None]:
    """On this thread, coroutines that are dropped without having been awaited cause no warning.

    `warnings.catch_warnings` will not do: what it changes is seen, and can be left behind, by every thread.
    """
    thread = get_ident()
    nested = thread in _unwinding_on
    _unwinding_on.add(thread)
    try:
        yield
    finally:
        if not nested:
            _unwinding_on.discard(thread)


# --- the patches -----------------------------------------------------------------------------------------------------

_installed = False


def install() -> None:
    """Change asyncio as the top of this file says. Any further call does nothing."""
    global _installed
    if _installed:
        return
    _installed = True
    tasks: Any = asyncio.tasks
    tasks.set = _set_in_asyncio_tasks
    tasks._GatheringFuture.__hash__ = _hash_of_gathering
    package: Any = asyncio
    tasks.all_tasks = package.all_tasks = _all_tasks_in_order(asyncio.all_tasks)
    asyncio.runners.run = package.run = _run_unless_in_workflow(asyncio.run)
    quiet: Any = warnings
    if hasattr(quiet, "_warn_unawaited_coroutine"):
        quiet._warn_unawaited_coroutine = _warn_unless_unwinding(quiet._warn_unawaited_coroutine)


def _all_tasks_in_order(
    original: Callable[..., set[AnyTask]],
) -> Callable[[asyncio.AbstractEventLoop | None], set[AnyTask]]:
    @functools.wraps(original)
    def all_tasks(loop: asyncio.AbstractEventLoop | None = None) -> set[AnyTask]:
        asked = asyncio.get_running_loop() if loop is None else loop
        return OrderedSet(asked.live_tasks()) if isinstance(asked, DeterministicLoop) else original(asked)

    return all_tasks


def _run_unless_in_workflow(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(main: Coroutine[Any, Any, Any], **options: Any) -> Any:
        if isinstance(running_loop(), DeterministicLoop):
            main.close()
            raise DurableCallError(
                "asyncio.run() was called inside a workflow, which runs on a loop of its own already. In `async def` "
                "code await the coroutine; in a `def` workflow call sync activities, or make the workflow `async def`."
            )
        return original(main, **options)

    return run


def _warn_unless_unwinding(original: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(original)
    def warn_unawaited(coroutine: Any) -> None:
        if get_ident() not in _unwinding_on:
            original(coroutine)

    return warn_unawaited
