"""Greenlets: how code that does not await can wait.

*Hubs.* The ready queue of a loop is run in a greenlet of its own, the hub, so that a task step that makes a sync call
can be suspended in the middle, C frames and all, while the caller of `turn` gets on. A hub that is not blocked holds
nothing of its run, so that runs share them: a thread has a few idle ones, a run takes one for the length of a turn, and
keeps it only when it is blocked. (One hub per run would cost each sleeping run 16 KB of stack.)

*Strands.* A plain function that runs beside the tasks of a run: the main function of a `def` workflow, a `def` handler,
a function given to `asyncio.to_thread`. It runs in a greenlet of its own, started and resumed from the ready queue, and
only it waits when it blocks.

Greenlets cannot be switched from another thread than theirs: a run stays on one thread. One that is suspended and
dropped is never collected, so whoever makes one sees to its end (see `eviction`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

from outlast.model.errors import OutlastInterrupt
from outlast.sdk.tasks import Future

if TYPE_CHECKING:
    from outlast.sdk.loop import WorkflowLoop

MAX_IDLE_HUBS = 8
"""Turns are not nested, so one is enough; a burst of runs that get unblocked gives back more."""


class _Hubs(threading.local):
    def __init__(self) -> None:
        self.idle: list[greenlet] = []


_hubs = _Hubs()


def take_hub() -> greenlet:
    idle = _hubs.idle
    return idle.pop() if idle else greenlet(_serve)


def _serve(loop: WorkflowLoop | None) -> None:
    """The hub: run one ready queue after the other. Keeps no reference to a run while it is idle."""
    hub, idle = getcurrent(), _hubs.idle
    while loop is not None:
        try:
            loop.run_ready()
        except BaseException as error:
            loop.escaped = error
        if loop.is_dropped():
            # Nobody closed the run, and Python ends the greenlets of what it collects: there is no caller to go to.
            return
        caller = loop.hub = loop.caller
        if len(idle) >= MAX_IDLE_HUBS:
            hub.parent = caller
            return
        loop = None
        idle.append(hub)
        loop = caller.switch()


class Strand(Future[Any]):
    """A plain function in a greenlet of its own, and the future of its result."""

    __slots__ = ("_cancel_message", "_function", "_loop_of_run", "_must_cancel", "_waits_for", "greenlet")

    def __init__(self, function: Callable[[], Any], loop: WorkflowLoop, where: Context, number: int) -> None:
        super().__init__(loop=loop)
        self.number = number
        self._function = function
        self._loop_of_run = loop
        self._waits_for: asyncio.Future[Any] | None = None
        self._must_cancel = False
        self._cancel_message: Any = None
        self.greenlet = greenlet(self._main)
        self.greenlet.gr_context = where

    def run(self) -> None:
        """From the ready queue, in the hub: go on until it waits or ends."""
        self.greenlet.parent = self._loop_of_run.hub
        self.greenlet.switch()

    def _wake(self, _: object) -> None:
        self.run()

    def wait(self, future: asyncio.Future[Any]) -> None:
        """In the strand's greenlet: return when `future` is done."""
        self._raise_if_cancelled()
        self._waits_for = future
        future.add_done_callback(self._wake, context=self._loop_of_run.context)
        try:
            while not future.done():
                self._loop_of_run.hub.switch()
        finally:
            self._waits_for = None

    def cancel(self, msg: Any | None = None) -> bool:
        """As for a task: CancelledError is raised where the function waits, or will wait next."""
        if self.done():
            return False
        if self._waits_for is not None and self._waits_for.cancel(msg):
            return True
        self._must_cancel = True
        self._cancel_message = msg
        return True

    def _raise_if_cancelled(self) -> None:
        if self._must_cancel:
            self._must_cancel = False
            raise asyncio.CancelledError(*(() if self._cancel_message is None else (self._cancel_message,)))

    def _main(self) -> None:
        loop = self._loop_of_run
        try:
            self._raise_if_cancelled()
            result = self._function()
        except asyncio.CancelledError as error:
            super().cancel(error.args[0] if error.args else None)
        except (SystemExit, KeyboardInterrupt, OutlastInterrupt):
            raise
        except StopIteration as error:
            # A future cannot carry it, as it would end the coroutine that awaits the future.
            replaced = RuntimeError(f"StopIteration was raised in {self._function!r}")
            replaced.__cause__ = error
            self.set_exception(replaced)
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)
        finally:
            # The hub that started it may be another than the one that has resumed it: what escapes goes to the latter.
            loop.strands.pop(getcurrent(), None)
            del self._function
