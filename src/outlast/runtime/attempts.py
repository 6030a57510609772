"""Attempts that run in this process.

A fixed number of slots bounds how many run at a time; the others wait in line, in the order in which they came. An
attempt belongs to (run, activity, attempt): it is stopped by that name, and what it reports after it was stopped
counts for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from outlast.model.ids import ActivityId, RunId
from outlast.runtime.ports import Attempt, AttemptEnd, Host

logger = logging.getLogger("outlast")

GRACE_S = 5.0
"""What a cancelled attempt gets to clean up when its worker stops."""

Key: TypeAlias = tuple[RunId, ActivityId]
Report: TypeAlias = Callable[[AttemptEnd], None]


class Attempts:
    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, slots: int) -> None:
        self._host = host
        self._loop = loop
        self._free = slots
        self._line: deque[tuple[Attempt, Report]] = deque()
        self._running: dict[Key, tuple[int, asyncio.Task[None] | None]] = {}
        """Attempt number, and its task once it has a slot."""

    def start(self, attempt: Attempt, report: Report) -> None:
        """Run the attempt when a slot is free. `report` is called at its end, unless it is stopped before."""
        key = (attempt.run_id, attempt.activity_id)
        assert key not in self._running, f"two attempts of one activity at a time: {key}"
        if self._free > 0:
            self._launch(key, attempt, report)
        else:
            self._running[key] = (attempt.attempt, None)
            self._line.append((attempt, report))

    def stop(self, run_id: RunId, activity_id: ActivityId) -> None:
        """Cancel the attempt if it runs, forget it if it waits. A thread cannot be cancelled: it goes on unheard."""
        entry = self._running.pop((run_id, activity_id), None)
        if entry is not None and entry[1] is not None:
            entry[1].cancel()

    def has(self, run_id: RunId, activity_id: ActivityId) -> bool:
        """Whether an attempt runs or waits for a slot."""
        return (run_id, activity_id) in self._running

    def begun(self, run_id: RunId, activity_id: ActivityId) -> bool:
        """Whether the user's code may have run."""
        entry = self._running.get((run_id, activity_id))
        return entry is not None and entry[1] is not None

    async def stop_all(self) -> None:
        tasks = [task for _, task in self._running.values() if task is not None]
        self._running.clear()
        self._line.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=GRACE_S)
            if stubborn:
                logger.warning("%d attempts did not end within %.0f s of being cancelled", len(stubborn), GRACE_S)

    def _launch(self, key: Key, attempt: Attempt, report: Report) -> None:
        self._free -= 1
        task = self._loop.create_task(self._run(key, attempt, report))
        # Not in a `finally` of the coroutine: one that is stopped before its first step never gets there.
        task.add_done_callback(self._over)
        self._running[key] = (attempt.attempt, task)

    async def _run(self, key: Key, attempt: Attempt, report: Report) -> None:
        try:
            end = await self._host.run_attempt(attempt)
            # Stopped, or stopped and started again, perhaps under the same number (the run was parked and loaded
            # anew): what this one says no longer counts.
            if (entry := self._running.get(key)) is not None and entry[1] is asyncio.current_task():
                del self._running[key]
                report(end)
        except asyncio.CancelledError:
            # Either `stop` cancelled it, or the user's own code raised it into us; then too the attempt is over,
            # and only the loss is known. Nothing is reported: `stop` has its reasons, and a shutdown journals losses.
            pass

    def _over(self, _: asyncio.Task[None]) -> None:
        self._free += 1
        self._next()

    def _next(self) -> None:
        while self._line and self._free > 0:
            attempt, report = self._line.popleft()
            key = (attempt.run_id, attempt.activity_id)
            if self._running.get(key) == (attempt.attempt, None):
                self._launch(key, attempt, report)
