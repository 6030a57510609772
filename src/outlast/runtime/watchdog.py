"""The watchdog: names who blocks the event loop.

A plain `time.sleep(30)` in an async activity, or a workflow that computes for minutes, stops everything else in the
process: other runs, timers, heartbeats. The loop itself cannot tell, so a thread asks it for a sign of life; when
none comes, the thread looks at the stack of the loop's thread, which says what it is in the middle of, and logs it.

It only looks. Nothing is written for its sake on the way of a turn or an attempt.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from types import FrameType

logger = logging.getLogger("outlast")

PATIENCE_S = 2.0
"""Long enough for a large turn or a checkpoint of the database; shorter than a lease by far."""

FRAMES = 6
"""Innermost frames that are shown."""


class Watchdog:
    """Started on the loop that it watches."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._patience_s = patience_s
        self._alive = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="outlast-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._patience_s):
            self._alive.clear()
            try:
                self._loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:  # the loop is closed
                return
            if not self._alive.wait(self._patience_s) and not self._stop.is_set():
                self._bark()
                while not self._alive.wait(self._patience_s):
                    if self._stop.is_set():
                        return

    def _bark(self) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
        if frame is not None:
            stack = "".join(traceback.format_list(traceback.extract_stack(frame)[-FRAMES:]))
            logger.error(
                "%s has blocked the event loop for over %.0f s; everything else in this process waits. Move blocking "
                "work into a plain `def` activity (it runs in a thread), and long computations out of workflows.\n%s",
                who_runs(frame),
                self._patience_s,
                stack.rstrip(),
            )


def who_runs(frame: FrameType | None) -> str:
    """The activity or the workflow in whose middle this stack is."""
    while frame is not None:
        name, module, names = frame.f_code.co_name, frame.f_globals.get("__name__"), frame.f_locals
        if name == "run_attempt" and (attempt := names.get("attempt")) is not None:
            return f"activity {attempt.activity} of {attempt.workflow}/{attempt.workflow_id}"
        # Workflow code runs in greenlets, whose stacks begin at these two.
        if (name, module) == ("run_ready", "outlast.sdk.loop"):
            return f"workflow {names['self'].name}"
        if (name, module) == ("_main", "outlast.sdk.greenlets"):
            return f"workflow {names['loop'].name}"
        frame = frame.f_back
    return "code outside of workflows and activities"
