"""Which threads are in a live turn, what was violated there, and the blocks that are excepted.

A thread is guarded between `begin_turn(live=True)` and `end_turn`. User code may be suspended in between (an await,
a greenlet switch) and resumed in a later turn; the state therefore belongs to the thread's turn and not to the code.

`unsafe` belongs to the code: the block excepts what is called from inside it, and nothing else. A forbidden call is
excepted if the frame that holds an open block is on its stack. So a block that is suspended half way excepts nothing
that other tasks or runs do meanwhile, is still in force when it is resumed, in whichever turn, and is not inherited
by tasks that it starts.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from types import FrameType, TracebackType
from typing import Final
from weakref import WeakValueDictionary

from outlast.model.errors import DeterminismViolation
from outlast.sdk.guard_rules import Rule
from outlast.sdk.guard_sites import describe, find_site

live: Final[dict[int, DeterminismViolation | None]] = {}
"""Threads in a live turn, by ident, and the first violation of that turn."""


class unsafe:  # lower case, as `with workflow.unsafe():` reads
    """Lets the calls inside the block through: for values that cannot change what the workflow does.

    A replay runs the block again and gets other values. Nothing that depends on them may be given to an activity,
    decide a branch, or be returned.
    """

    __slots__ = ("__weakref__", "_frame", "_outer")

    def __init__(self) -> None:
        self._frame: FrameType | None = None
        self._outer: unsafe | None = None

    def __enter__(self) -> None:
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame.f_back is not None and frame.f_globals.get("__name__") == "contextlib":
            frame = frame.f_back  # entered through an ExitStack: the block is its caller's
        self._frame = frame
        self._outer = _blocks.get(id(frame))
        _blocks[id(frame)] = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        frame, outer = self._frame, self._outer
        self._frame = self._outer = None
        if outer is None:
            _blocks.pop(id(frame), None)
        else:
            _blocks[id(frame)] = outer

    def holds(self, frame: FrameType) -> bool:
        return self._frame is frame


_blocks: WeakValueDictionary[int, unsafe] = WeakValueDictionary()
"""Open blocks by the id of their frame. A block keeps its frame alive and the frame its block; nothing else keeps
either, so that code which is dropped half way is collected with its open blocks."""


def is_excepted(frame: FrameType | None) -> bool:
    while frame is not None:
        block = _blocks.get(id(frame))
        if block is not None and block.holds(frame):
            return True
        frame = frame.f_back
    return False


def blame(rule: Rule, caller: FrameType, *, deep: bool = False) -> None:
    """Raise and note a violation, if `caller` runs in a live turn and the user's code is to blame."""
    thread = get_ident()
    if thread not in live:
        return
    site = find_site(caller, deep=deep)
    if site is None or (_blocks and is_excepted(caller)):
        return
    violation = DeterminismViolation(describe(rule, site))
    if live.get(thread) is None:
        live[thread] = violation
    raise violation
