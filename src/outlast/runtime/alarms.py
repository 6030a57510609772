"""Alarms: what hosted runs have to do at a time, kept in one heap and one timer of the event loop.

Times are the database's clock. When the loop's timer goes off the clock is read again: an alarm that is not due yet
(the clock was set back) stays in the heap. The timer is never set further ahead than `LOOK_AGAIN_S`, so that a clock
which is set forward is noticed soon.

An alarm is never taken back: who is woken looks whether it still means anything. So that a heap does not fill up with
timeouts of what was done in time, it is swept whenever it has doubled since the last sweep: what means nothing any
more is dropped. That costs each alarm a constant time, and at least half of a large heap is worth keeping.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from itertools import count
from typing import NamedTuple, TypeAlias, assert_never

from outlast.model.ids import ActivityId
from outlast.model.inputs import ActivityDeadlinePassed, TimerDue
from outlast.runtime.hosted import Hosted, Stage
from outlast.runtime.ports import Clock

logger = logging.getLogger("outlast")

LOOK_AGAIN_S = 1.0
"""A clock that jumps forward delays no alarm by more than this."""

SWEEP_FROM = 1_000
"""Alarms below which a sweep is not worth it: about 200 kB."""


class NextAttempt(NamedTuple):
    """The pause before another attempt is over."""

    activity_id: ActivityId
    attempt: int


Due: TypeAlias = TimerDue | ActivityDeadlinePassed | NextAttempt


class Alarms:
    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop, go_off: Callable[[Hosted, Due], None]) -> None:
        self._clock = clock
        self._loop = loop
        self._tell = go_off
        self._heap: list[tuple[int, int, Hosted, Due]] = []
        self._order = count()
        self._sweep_at = SWEEP_FROM
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for_us = 0

    def set(self, at_us: int, hosted: Hosted, due: Due) -> None:
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heapq.heappush(self._heap, (at_us, next(self._order), hosted, due))
        if self._timer is None or at_us < self._timer_for_us:
            self._arm()

    def clear(self) -> None:
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __len__(self) -> int:
        return len(self._heap)

    def _sweep(self) -> None:
        self._heap = [each for each in self._heap if _is_wanted(each[2], each[3])]
        heapq.heapify(self._heap)
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._heap))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer_for_us = self._heap[0][0]
            delay_s = max(0.0, (self._timer_for_us - self._clock.now_us()) / 1e6)
            self._timer = self._loop.call_later(min(delay_s, LOOK_AGAIN_S), self._go_off)

    def _go_off(self) -> None:
        self._timer = None
        now_us = self._clock.now_us()
        while self._heap and self._heap[0][0] <= now_us:
            _, _, hosted, due = heapq.heappop(self._heap)
            try:
                self._tell(hosted, due)
            except Exception:  # the other alarms must go off all the same
                logger.exception("an alarm failed; please report this bug")
        self._arm()


def _is_wanted(hosted: Hosted, due: Due) -> bool:
    if hosted.stage is Stage.GONE:
        return False
    match due:
        case TimerDue():
            return due.timer_id in hosted.state.timers
        case ActivityDeadlinePassed():
            return due.activity_id in hosted.state.activities
        case NextAttempt():
            pending = hosted.state.activities.get(due.activity_id)
            return pending is not None and pending.attempt == due.attempt
        case _:
            assert_never(due)
