"""Attempts that run in this process.

A fixed number of slots bounds how many run at a time, and a plain function needs a thread besides. The others wait in
line, in the order in which they came: one line for those that need a thread, one for the rest, so that neither kind
stands in the way of the other. An attempt belongs to (run, activity, attempt): it is stopped by that name, and what
it reports after it was stopped counts for nothing.

A process may be stopped (SIGSTOP, a machine that sleeps) between a commit and what follows from it, and go on when
others have long taken over its runs. The fence keeps it from writing; what keeps it from beginning an activity that
has come to its end elsewhere is `trust`: nothing begins when the last accepted heartbeat is nearly a lease old.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

from outlast.model.ids import ActivityId, MessageId, RunId
from outlast.model.inputs import AttemptFailed, AttemptLost, AttemptSucceeded
from outlast.runtime.interrupts import Steps, attempt_here
from outlast.runtime.ports import Attempt, AttemptEnd, Host

logger = logging.getLogger("outlast")

GRACE_S = 5.0
"""What a cancelled attempt gets to clean up when its worker stops."""

FEW = 100
"""Places in line that are not worth tidying up."""

Key: TypeAlias = tuple[RunId, ActivityId]
Report: TypeAlias = Callable[[AttemptEnd], None]
AttemptOver: TypeAlias = AttemptSucceeded | AttemptFailed | AttemptLost


def end_id(end: AttemptOver) -> MessageId:
    """Under which the end of an attempt goes through a mailbox: the same, however often it is sent."""
    return MessageId(f"activity/{end.activity_id}/{end.attempt}")


class _Entry:
    """An attempt that runs, or stands in line."""

    __slots__ = ("attempt", "begun", "report", "since", "task", "threaded")

    def __init__(self, attempt: Attempt, report: Report, threaded: bool, since: float) -> None:
        self.attempt = attempt
        self.report = report
        self.threaded = threaded
        self.since = since
        """When it took its place in line, by the loop's clock."""
        self.task: asyncio.Task[None] | None = None
        """None while it stands in line."""
        self.begun = False
        """Its first step has been taken: from then on it gives its slot back itself."""


class Attempts:
    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, slots: int) -> None:
        self._host = host
        self._loop = loop
        self._free = slots
        self._free_threads = host.threads
        self._line: deque[_Entry] = deque()
        self._line_for_threads: deque[_Entry] = deque()
        self._running: dict[Key, _Entry] = {}
        self.waiting = 0
        """How many stand in line."""
        self._trusted_until = float("inf")
        self.on_free: Callable[[], None] = lambda: None
        """Called when a slot is free again and nobody stands in line for it."""

    def start(self, attempt: Attempt, report: Report) -> None:
        """Run the attempt when a slot is free. `report` is called at its end, unless it is stopped before."""
        key = (attempt.run_id, attempt.activity_id)
        assert key not in self._running, f"two attempts of one activity at a time: {key}"
        threaded = self._host.needs_thread(attempt.activity)
        now = self._loop.time()
        entry = self._running[key] = _Entry(attempt, report, threaded, now)
        self.waiting += 1
        if self.waiting == 1 and self._has_room(threaded, now):
            self._launch(key, entry)
            return
        (self._line_for_threads if threaded else self._line).append(entry)
        self._serve()

    def trust(self, until: float) -> None:
        """Nothing is begun after this moment of the loop's clock, until it is put off again: others may have taken the
        runs by then, and may have brought their activities to an end."""
        self._trusted_until = until
        if self.waiting:
            self._serve()

    def stop(self, run_id: RunId, activity_id: ActivityId) -> None:
        """Cancel the attempt if it runs, forget it if it waits. A thread cannot be cancelled: it goes on unheard."""
        entry = self._running.pop((run_id, activity_id), None)
        if entry is None:
            return
        if entry.task is None:
            self.waiting -= 1
            self._close_up()
            return
        entry.task.cancel()
        if not entry.begun:
            self._give_back(entry)

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

    def room(self, *, threaded: bool) -> int:
        """How many more attempts of this kind would begin at once."""
        return min(self._free, self._free_threads) if threaded else self._free

    def waiting_since(self, before: float) -> Iterator[Attempt]:
        """Attempts that have stood in line since before this moment of the loop's clock, the oldest of each line first.

        They must not be started or stopped while this is iterated over."""
        for line in (self._line, self._line_for_threads):
            for entry in line:
                if entry.since > before:
                    break
                if self._stands_in_line(entry):
                    yield entry.attempt

    async def stop_all(self) -> None:
        tasks = [entry.task for entry in self._running.values() if entry.task is not None]
        self._running.clear()
        self._line.clear()
        self._line_for_threads.clear()
        self.waiting = 0
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=GRACE_S)
            if stubborn:
                logger.warning("%d attempts did not end within %.0f s of being cancelled", len(stubborn), GRACE_S)

    def _stands_in_line(self, entry: _Entry) -> bool:
        key = (entry.attempt.run_id, entry.attempt.activity_id)
        return entry.task is None and self._running.get(key) is entry

    def _close_up(self) -> None:
        """Those who have left the lines are skipped when their turn comes. Where slots are taken for hours it does not
        come: so that they do not fill the memory until then, they are taken out when they are more than the others."""
        if len(self._line) + len(self._line_for_threads) > 2 * self.waiting + FEW:
            self._line = deque(filter(self._stands_in_line, self._line))
            self._line_for_threads = deque(filter(self._stands_in_line, self._line_for_threads))

    def _serve(self) -> None:
        """Launch whoever has stood in line longest, as long as there is room."""
        while self._free > 0 and self._loop.time() < self._trusted_until:
            lines = [line for line in (self._line, self._line_for_threads) if self._may_go(line)]
            if not lines:
                return
            entry = min(lines, key=lambda line: line[0].since).popleft()
            self._launch((entry.attempt.run_id, entry.attempt.activity_id), entry)

    def _has_room(self, threaded: bool, now: float) -> bool:
        return self._free > 0 and (self._free_threads > 0 or not threaded) and now < self._trusted_until

    def _may_go(self, line: deque[_Entry]) -> bool:
        while line and not self._stands_in_line(line[0]):
            line.popleft()  # stopped, or it became a task
        return bool(line) and (self._free_threads > 0 or not line[0].threaded)

    def _launch(self, key: Key, entry: _Entry) -> None:
        self.waiting -= 1
        self._free -= 1
        self._free_threads -= entry.threaded
        steps = Steps(self._run(key, entry), entry.attempt.activity)
        entry.task = self._loop.create_task(steps)

    async def _run(self, key: Key, entry: _Entry) -> None:
        entry.begun = True
        attempt_here.set(entry.attempt)
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
            self._give_back(entry)

    def _give_back(self, entry: _Entry) -> None:
        self._free += 1
        self._free_threads += entry.threaded
        self._serve()
        if not self.waiting:
            self.on_free()
