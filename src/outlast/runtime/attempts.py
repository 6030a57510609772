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

from outlast.model.ids import ActivityId, MessageId, RunId
from outlast.model.inputs import AttemptFailed, AttemptLost, AttemptSucceeded
from outlast.runtime.ports import Attempt, AttemptEnd, Host

logger = logging.getLogger("outlast")

GRACE_S = 5.0
"""What a cancelled attempt gets to clean up when its worker stops."""

Key: TypeAlias = tuple[RunId, ActivityId]
Report: TypeAlias = Callable[[AttemptEnd], None]
AttemptOver: TypeAlias = AttemptSucceeded | AttemptFailed | AttemptLost


def end_id(end: AttemptOver) -> MessageId:
    """Under which the end of an attempt goes through a mailbox: the same, however often it is sent."""
    return MessageId(f"activity/{end.activity_id}/{end.attempt}")


class _Entry:
    """An attempt that runs, or stands in line."""

    __slots__ = ("attempt", "begun", "report", "task")

    def __init__(self, attempt: Attempt, report: Report) -> None:
        self.attempt = attempt
        self.report = report
        self.task: asyncio.Task[None] | None = None
        """None while it stands in line."""
        self.begun = False
        """Its first step has been taken: from then on it gives its slot back itself."""


class Attempts:
    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, slots: int) -> None:
        self._host = host
        self._loop = loop
        self._free = slots
        self._line: deque[_Entry] = deque()
        self._running: dict[Key, _Entry] = {}

    def start(self, attempt: Attempt, report: Report) -> None:
        """Run the attempt when a slot is free. `report` is called at its end, unless it is stopped before."""
        key = (attempt.run_id, attempt.activity_id)
        assert key not in self._running, f"two attempts of one activity at a time: {key}"
        entry = self._running[key] = _Entry(attempt, report)
        if self._free > 0:
            self._launch(key, entry)
        else:
            self._line.append(entry)

    def stop(self, run_id: RunId, activity_id: ActivityId) -> None:
        """Cancel the attempt if it runs, forget it if it waits. A thread cannot be cancelled: it goes on unheard."""
        entry = self._running.pop((run_id, activity_id), None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()
            if not entry.begun:
                self._give_back()

    def has(self, run_id: RunId, activity_id: ActivityId) -> bool:
        """Whether an attempt runs or waits for a slot."""
        return (run_id, activity_id) in self._running

    def begun(self, run_id: RunId, activity_id: ActivityId) -> bool:
        """Whether the user's code may have run."""
        return self.begun_number(run_id, activity_id) is not None

    def begun_number(self, run_id: RunId, activity_id: ActivityId) -> int | None:
        """Which attempt it is that runs; None if none does, or if it waits for a slot."""
        entry = self._running.get((run_id, activity_id))
        return None if entry is None or entry.task is None else entry.attempt.attempt

    async def stop_all(self) -> None:
        tasks = [entry.task for entry in self._running.values() if entry.task is not None]
        self._running.clear()
        self._line.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=GRACE_S)
            if stubborn:
                logger.warning("%d attempts did not end within %.0f s of being cancelled", len(stubborn), GRACE_S)

    def _launch(self, key: Key, entry: _Entry) -> None:
        self._free -= 1
        entry.task = self._loop.create_task(self._run(key, entry))

    async def _run(self, key: Key, entry: _Entry) -> None:
        entry.begun = True
        try:
            end = await self._host.run_attempt(entry.attempt)
            # Stopped, or stopped and started again, perhaps under the same number (the run was parked and loaded
            # anew): what this one says no longer counts.
            if self._running.get(key) is entry:
                del self._running[key]
                entry.report(end)
        except asyncio.CancelledError:
            # Either `stop` cancelled it, or the user's own code raised it into us; then too the attempt is over,
            # and only the loss is known. Nothing is reported: `stop` has its reasons, and a shutdown journals losses.
            pass
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self._free += 1
        while self._line and self._free > 0:
            entry = self._line.popleft()
            key = (entry.attempt.run_id, entry.attempt.activity_id)
            if self._running.get(key) is entry:
                self._launch(key, entry)
