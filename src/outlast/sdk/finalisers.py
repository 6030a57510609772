"""Keeping the cyclic garbage collector out of workflow code.

The collector runs `__del__` methods, weakref callbacks and abandoned async generators of *any* object, at a moment that
no replay repeats, possibly in the middle of another run's turn. What is asked for there must not become a command: so
while a collection runs on a thread, the loop that takes a turn there is told, and refuses. (Finalisers that run
because the last reference went away are different: that moment is part of the program.)
"""

from __future__ import annotations

import gc
from threading import get_ident

from outlast.sdk.compat import DeterministicLoop, running_loop

_collecting_on = 0
"""The thread that collects; 0: none. There is one collection at a time per interpreter."""


def in_finaliser() -> bool:
    """True if the caller was called, however indirectly, by the cyclic garbage collector."""
    return _collecting_on != 0 and _collecting_on == get_ident()


def _watch(step: str, info: dict[str, int]) -> None:
    global _collecting_on
    _collecting_on = get_ident() if step == "start" else 0
    loop = running_loop()
    if isinstance(loop, DeterministicLoop):
        loop.collector_at_work(step == "start")


def install() -> None:
    if _watch not in gc.callbacks:
        gc.callbacks.append(_watch)
