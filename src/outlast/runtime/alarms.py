"""Alarms: things to do at a time, kept in one heap and one timer of the event loop.

Times are the database's clock. When the loop's timer goes off the clock is read again: an alarm that is not due yet
(the clock was set back) stays in the heap. The timer is never set further ahead than `LOOK_AGAIN_S`, so that a clock
which is set forward is noticed soon. An alarm is never taken back: who set it looks whether it still means anything.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from itertools import count

from outlast.runtime.ports import Clock

logger = logging.getLogger("outlast")

LOOK_AGAIN_S = 1.0
"""A clock that jumps forward delays no alarm by more than this."""


class Alarms:
    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._loop = loop
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for_us = 0

    def set(self, at_us: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (at_us, next(self._order), action))
        if self._timer is None or at_us < self._timer_for_us:
            self._arm()

    def clear(self) -> None:
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
            _, _, action = heapq.heappop(self._heap)
            try:
                action()
            except Exception:  # the other alarms must go off all the same
                logger.exception("an alarm failed; please report this bug")
        self._arm()
