"""Interrupts: how code that keeps the event loop to itself is stopped from another thread, and nothing else is hit.

Theory of operation
===================
User code runs on the event loop in *stretches*: one turn of a run, or one step of an async activity. `interruptible`
and `Steps` mark them; it costs well under a microsecond. The watchdog sees by the stretch's number if it is still the
same one that keeps the loop, and then raises `LoopBlocked` in the loop's thread (`PyThreadState_SetAsyncExc`).

Such an exception goes off at the thread's next bytecode, wherever that is. Two things make sure that it goes off in
the user's code of that stretch:

- *Look and shoot are one step.* It is raised only if the thread is in user code, or in what that has called of the
  standard library: not in this package, nor in the parts of the library that hold locks for the whole process
  (`UNTOUCHABLE`). Look and shoot are one call of C code, so that the interpreter switches to no other thread in
  between; and when the loop's thread goes on, the exception goes off in the very frame that was looked at (on Python
  3.13 up to one loop or call later). From there on it is like any exception that user code raises.
- *A stretch that ends settles.* The interrupter takes aim (`aimed`) before it looks whether the stretch is still
  current; the stretch stops being current before it looks whether anybody has taken aim. So at least one of the two
  sees the other. If a stretch ends that was aimed at, it waits for the interrupter to be done (microseconds), and has
  what is still on its way go off where it does no harm.

A turn that was hit has failed, even if the user's code has swallowed the exception: what came after would not come
out so on replay. An activity may swallow it, and answer for what it does.

C code that does not come back cannot be interrupted so. In the main thread a signal helps (`nudge`): SIGURG, which is
ignored by default and which nobody uses (the runtime of Go preempts by it for that reason), with a handler that does
nothing. It makes `time.sleep`, or a read from a socket, call back into Python, where the exception goes off.

Refused: `sys.settrace` and `sys.monitoring`, which would be exact, but slow down what is innocent, are in the way of
debuggers, and do not reach a frame that runs already on Python 3.11.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from itertools import accumulate, chain, compress, filterfalse, islice, repeat, starmap, takewhile
from operator import attrgetter, itemgetter, not_, truth
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from outlast.model.errors import OutlastInterrupt
from outlast.runtime.ports import Attempt

P = ParamSpec("P")
T = TypeVar("T")

PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep

LIBRARY = os.path.dirname(os.__file__) + os.sep

UNTOUCHABLE = (
    PACKAGE,
    "<frozen importlib",
    *(LIBRARY + name + os.sep for name in ("asyncio", "concurrent", "logging")),
    *(LIBRARY + name for name in ("_weakrefset.py", "contextlib.py", "queue.py", "threading.py", "weakref.py")),
)
"""Code in whose middle an exception would break what others use: our own, asyncio's, and what holds locks."""

_is_untouchable = re.compile("|".join(map(re.escape, UNTOUCHABLE))).match

_is_passed_over = re.compile(
    f"(?!{'|'.join(map(re.escape, UNTOUCHABLE))})"
    f"(?:{re.escape(LIBRARY)}(?!site-packages|dist-packages)|<frozen |<string>|<attrs)"
).match
"""Files of the rest of the library, and generated code: it depends on who has called them."""

SETTLE_PAUSE_S = 0.0001

attempt_here: ContextVar[Attempt | None] = ContextVar("attempt_here", default=None)
"""The attempt whose code this is, also in tasks that it has begun beside itself."""


class LoopBlocked(OutlastInterrupt):
    """A turn, or a step of an async activity, has kept the event loop to itself for too long, and was interrupted."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why or here().why)


class Book:
    """What the event loop of one thread is in the middle of."""

    __slots__ = ("aimed", "count", "current", "gate", "hit", "thread", "why")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.count = 0
        self.current = 0
        """Number of the innermost stretch; 0 outside of any."""
        self.aimed = 0
        """Number of the stretch that an interrupter has taken aim at last; 0 if that is settled."""
        self.hit = 0
        """Number of the stretch in which an exception was raised."""
        self.why = ""
        self.gate = threading.Lock()
        """Held by an interrupter from before it takes aim until it is done."""

    def interrupt(self, number: int, why: str) -> bool:
        """From another thread: raise LoopBlocked in stretch `number`, if that is still the current one and its code
        may be interrupted where it is. False: it was not; perhaps in a moment it may.
        """
        if not self.gate.acquire(blocking=False):  # another watchdog of this loop is at it
            return False
        try:
            self.aimed = number
            if self.current != number:
                return False
            self.why = why
            if not _look_and_shoot(self.thread):
                return False
            self.hit = number
            return True
        finally:
            self.gate.release()

    def settle(self, number: int) -> bool:
        """On the thread itself, when nothing aimed at may go off any more. Whether stretch `number` was hit.

        What is on its way goes off here, where it does no harm. Nobody can tell whether there is anything, so one is
        sent after it: there is never more than one. (To take it back, by a null pointer, would leave the flag set by
        which Python 3.11 and 3.12 notice it, and make every later bytecode slow.)
        """
        while True:
            try:
                while self.gate.locked():
                    time.sleep(SETTLE_PAUSE_S)
                _set_async_exc(self.thread, LoopBlocked)
                while True:
                    pass
            except LoopBlocked:
                if not self.gate.locked():
                    break
        self.aimed = 0
        hit, self.hit = self.hit, 0
        return hit == number

    def settle_outside(self) -> None:
        """In a callback of the loop, thus outside of any stretch: whatever the last one has left behind."""
        self.current = 0
        if self.aimed:
            self.settle(0)


class _Here(threading.local):
    def __init__(self) -> None:
        self.book = Book(threading.get_ident())


_here = _Here()


def here() -> Book:
    return _here.book


def interruptible(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `work` as one stretch. Raises LoopBlocked if it was interrupted, even if it has swallowed that.

    No context manager: an exception that goes off on the way into `__exit__` would leave the stretch current.
    """
    book = _here.book
    # They can be nested: an activity may start a run, whose first turn is then taken in the middle of its step.
    outer = book.current
    loop = asyncio._get_running_loop()
    book.count = number = book.current = book.count + 1
    try:
        return work(*args, **kwargs)
    finally:
        book.current = outer
        if book.aimed and book.settle(number):
            # A turn runs on a loop of its own. If it was hit on its way back from there, this is what it still owes.
            asyncio._set_running_loop(loop)
            raise LoopBlocked


class Steps(Coroutine[Any, Any, T]):
    """A coroutine each of whose steps is a stretch. It may swallow the interruption."""

    __slots__ = ("__name__", "__qualname__", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, T], name: str) -> None:
        self._coroutine = coroutine
        self.__name__ = self.__qualname__ = name

    def send(self, value: Any) -> Any:
        book = _here.book
        outer = book.current
        book.count = number = book.current = book.count + 1
        try:
            return self._coroutine.send(value)
        finally:
            book.current = outer
            if book.aimed:
                book.settle(number)

    def throw(self, *error: Any) -> Any:
        book = _here.book
        outer = book.current
        book.count = number = book.current = book.count + 1
        try:
            return self._coroutine.throw(*error)
        finally:
            book.current = outer
            if book.aimed:
                book.settle(number)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()


# --- the shot ---------------------------------------------------------------------------------------------------------

_set_async_exc = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


def is_possible() -> bool:
    """Not without the interpreter's lock: then look and shoot would not be one step."""
    has_lock = getattr(sys, "_is_gil_enabled", None)
    return has_lock is None or bool(has_lock())


def _look_and_shoot(thread: int) -> bool:
    """One call of `next`, and no bytecode in between: see the top of the file."""
    frame = islice(map(itemgetter(thread), iter(sys._current_frames, None)), 1)  # pyright: ignore[reportPrivateUsage]
    stack = takewhile(truth, accumulate(chain(frame, repeat("f_back")), getattr))
    files = filterfalse(_is_passed_over, map(attrgetter("f_code.co_filename"), stack))
    may_shoot = map(not_, map(_is_untouchable, files))
    shot = starmap(_set_async_exc, compress([(thread, LoopBlocked)], may_shoot))
    # On Python 3.11 a garbage collection may begin wherever an object is made, and run bytecode.
    collects = gc.isenabled()
    gc.disable()
    try:
        return next(shot, 0) > 0
    finally:
        if collects:
            gc.enable()


# --- the nudge --------------------------------------------------------------------------------------------------------

_NUDGE = getattr(signal, "SIGURG", None)
_nudged_by = 0
"""Watchdogs that may nudge. The handler is there as long as one may."""


def _nudged(number: int, frame: FrameType | None) -> None:
    """It is enough that Python code runs."""


def allow_nudges() -> bool:
    """On the main thread, unless the program uses the signal itself."""
    global _nudged_by
    if _NUDGE is None or threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(_NUDGE)
    if handler is signal.SIG_DFL:
        signal.signal(_NUDGE, _nudged)
    elif handler is not _nudged:
        return False
    _nudged_by += 1
    return True


def end_nudges() -> None:
    global _nudged_by
    _nudged_by -= 1
    if _nudged_by == 0 and _NUDGE is not None and signal.getsignal(_NUDGE) is _nudged:
        signal.signal(_NUDGE, signal.SIG_DFL)


def nudge(thread: int) -> None:
    assert _NUDGE is not None
    signal.pthread_kill(thread, _NUDGE)


# --- whose code it is -------------------------------------------------------------------------------------------------


def attempt_of(loop: asyncio.AbstractEventLoop) -> Attempt | None:
    """From another thread: the attempt in one of whose tasks the loop is."""
    task = asyncio.current_task(loop)
    if task is None:
        return None
    # `Task.get_context` came with Python 3.12.
    contexts = [each for each in gc.get_referents(task) if isinstance(each, Context)]
    return contexts[0].get(attempt_here) if contexts else None
