"""The database's clock, as a process on another machine reads it without asking each time.

Theory of operation
===================
Nodes on several machines must agree on the time, or a run that moves from one to another would see its timers come
early or late. So all read the database's clock: it is asked now and then, and in between this process' monotonic
clock says how much time has passed since. The machine's own idea of the date plays no part.

An answer was true at some moment between question and answer; taken for the middle, it is off by at most half the
round trip. That is the error of an *anchor*, and it grows with age, since two quartz clocks drift apart. A new answer
replaces the anchor if its error is smaller than the error which the anchor has come to. If the two contradict each
other by more than both errors, somebody has set the database's clock: the new answer counts, whatever its error.

The clock asks nobody by itself: a node's heartbeat calls `refresh`, and so does a process without a node before it
writes a time. `membership` says in the log when the clock was set.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from outlast.model.errors import Busy, StoreUnavailable
from outlast.runtime.ports import Clock, SystemClock
from outlast.store.api import Store

logger = logging.getLogger("outlast")

APART_US = 50_000
"""By how much two nodes may disagree while nothing is wrong, and then some. What one has stamped as due now, the other
must not find to be not due yet, or it would be found a whole poll later: so claims look this far ahead. A run that is
loaded early waits for its timer in memory."""

GOOD_ENOUGH_US = 2_000.0
FIRST_TRIES = 3
"""The first question on a new connection takes longer than the next."""

REFRESH_S = 10.0
"""How old an anchor may get before the database is asked again: drift adds 5 ms at most in that time."""

DRIFT = 0.0005
"""Seconds by which two clocks drift apart in a second, at worst: the most by which NTP slews a clock."""


class _Anchor(NamedTuple):
    ahead_us: int
    """Microseconds by which the database's clock is ahead of the monotonic one."""
    error_us: float
    """By how much that may be wrong when it is new."""
    at: float
    """When it was taken, on the monotonic clock."""

    def error_now_us(self, now: float) -> float:
        return self.error_us + (now - self.at) * DRIFT * 1e6


class DatabaseClock:
    """Made by `clock_of`, which has started it."""

    def __init__(self, store: Store, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._anchor: _Anchor | None = None
        self._asked_at = 0.0

    def now_us(self) -> int:
        assert self._anchor is not None, "the clock was never set"
        return self._anchor.ahead_us + round(self._monotonic() * 1e6)

    def monotonic(self) -> float:
        return self._monotonic()

    async def start(self) -> bool:
        """False if the store has no clock of its own."""
        for _ in range(FIRST_TRIES):
            if not await self.ask():
                return False
            if self._anchor is not None and self._anchor.error_us <= GOOD_ENOUGH_US:
                break
        return True

    async def refresh(self) -> None:
        """Ask the database again if it is time to. If it does not answer, the old anchor serves on."""
        if self._monotonic() - self._asked_at < REFRESH_S:
            return
        try:
            await self.ask()
        except (Busy, StoreUnavailable) as error:
            logger.debug("the database did not tell the time (%s)", error)

    async def ask(self) -> bool:
        """False if the store has no clock of its own."""
        begun = self._asked_at = self._monotonic()
        told_us = await self._store.now_us()
        if told_us is None:
            return False
        ended = self._monotonic()
        middle = (begun + ended) / 2
        self._take(_Anchor(told_us - round(middle * 1e6), (ended - begun) / 2 * 1e6, middle))
        return True

    def _take(self, new: _Anchor) -> None:
        old = self._anchor
        if old is not None:
            worth_us = old.error_now_us(new.at)
            was_set = abs(new.ahead_us - old.ahead_us) > worth_us + new.error_us
            if new.error_us > worth_us and not was_set:
                return
        self._anchor = new


async def clock_of(store: Store) -> Clock:
    """The clock by which whoever works on this open store must go."""
    clock = DatabaseClock(store)
    return clock if await clock.start() else SystemClock()
