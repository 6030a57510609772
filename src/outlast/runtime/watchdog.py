"""The watchdog: names who blocks the event loop, interrupts it, and ends the process if that does not help.

Theory of operation
===================
A plain `time.sleep(30)` in an async activity, or a workflow that computes for minutes, stops everything else in the
process: other runs, timers, heartbeats. The loop itself cannot tell, so a thread asks it for a sign of life twice a
second. When none comes, what happens depends on whose code it is, and on how long it lasts:

    2 s           whoever blocks is named in the log, with its stack
    interrupt_s   (4 s, `Limits`) a turn, or a step of an async activity, is interrupted (see `interrupts`) and again
                  every tick: the run is parked with its error, the attempt fails as timed out
    + 2 s         it is still there (C code that does not come back, code that swallows every exception, a task that
                  an activity has begun beside itself): the process ends, before the others would take its lease for
                  over. Whoever takes over journals the attempt as lost, so that its retry policy ends it; a run that
                  does so again and again is put into quarantine.

Code that is neither a workflow's nor an activity's is only named: it is the program's own matter, and others take
over the runs if it lasts.

Time is counted in ticks in which this thread itself was running: a process that was stopped, or a machine that was
asleep, has blocked nobody. Where a debugger is at work, nothing but naming is done.

Nothing is written for its sake on the way of a turn or an attempt but the number of the stretch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from outlast.runtime import interrupts
from outlast.runtime.limits import INTERRUPT_S
from outlast.runtime.ports import Attempt

logger = logging.getLogger("outlast")

TICK_S = 0.5
"""Between two questions to the loop. Each wakes it up."""

PATIENCE_S = 2.0
"""Long enough for a large turn or a checkpoint of the database; shorter than a lease by far."""

GIVE_UP_S = 2.0
"""For interrupting, before the process ends. With the patience before it, shorter than the lease of 10 s, even if the
next heartbeat was due (after 2 s) when it all began."""

TRIES = 40
TRY_S = 0.005
"""Shots per tick at code that may not be interrupted just where it is: an interval in which the interpreter switches
between threads."""

EXIT_STATUS = 70
"""EX_SOFTWARE of sysexits.h. A supervisor starts the process again."""

LAST_WORDS_S = 1.0
"""For writing the log: its disk or pipe may be just what blocks."""

FRAMES = 6
"""Innermost frames that are shown."""

DEBUGGERS = frozenset({"bdb", "pdb", "pydevd", "_pydevd_bundle.pydevd_frame", "debugpy"})


def end_process(why: str) -> None:
    """As `kill -9` would, but with last words."""
    _say(lambda: logger.critical("%s", why))
    _say(lambda: print(f"outlast: {why}", file=sys.stderr, flush=True))
    os._exit(EXIT_STATUS)


def _say(words: Callable[[], object]) -> None:
    """On a thread of its own: a log that blocks must not keep the watchdog."""
    speaker = threading.Thread(target=words, name="outlast-last-words", daemon=True)
    speaker.start()
    speaker.join(LAST_WORDS_S)


class Watchdog:
    """Started on the loop that it watches."""

    def __init__(
        self,
        interrupt_s: float | None = INTERRUPT_S,
        *,
        patience_s: float = PATIENCE_S,
        give_up_s: float = GIVE_UP_S,
        end: Callable[[str], object] = end_process,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._book = interrupts.here()
        self._may_nudge = interrupts.allow_nudges()
        self._interrupt_s = interrupt_s
        self._patience_s = patience_s
        self._give_up_s = give_up_s
        self._end = end
        self._tick_s = min(TICK_S, patience_s / 2, TICK_S if interrupt_s is None else interrupt_s / 2)
        self._alive = threading.Event()
        self._stop = threading.Event()
        self._silent_s = 0.0
        """How long the loop has not answered."""
        self._same_s = 0.0
        """How long it has been in the same stretch meanwhile."""
        self._number = 0
        self._has_barked = False
        self._thread = threading.Thread(target=self._watch, name="outlast-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """On the loop that it watches."""
        self._stop.set()
        if self._may_nudge:
            self._may_nudge = False
            interrupts.end_nudges()

    def _watch(self) -> None:
        self._alive.set()
        while not self._stop.wait(self._tick_s):
            try:
                if not self._alive.is_set():
                    self._silence()
                    continue
                self._silent_s, self._has_barked = 0.0, False
                self._alive.clear()
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop is closed
                return
            except Exception:
                logger.exception("the watchdog of the event loop failed; please report this bug")

    def _answer(self) -> None:
        self._book.settle_outside()
        self._alive.set()

    # --- when the loop does not answer --------------------------------------------------------------------------------

    def _silence(self) -> None:
        number = self._book.current
        if number != self._number or not self._silent_s:
            self._number, self._same_s = number, 0.0
        self._silent_s += self._tick_s
        self._same_s += self._tick_s
        frame = sys._current_frames().get(self._book.thread)  # pyright: ignore[reportPrivateUsage]
        if not self._has_barked and self._silent_s >= self._patience_s:
            self._has_barked = True
            self._bark(frame)
        limit_s = self._interrupt_s
        if limit_s is None or self._same_s < limit_s:
            return
        attempt = interrupts.attempt_of(self._loop)
        if not number and attempt is None:
            return
        if is_debugged(frame):
            self._same_s = 0.0
            return
        if self._same_s >= limit_s + self._give_up_s:
            self._end(self._last_words(frame, attempt))
        elif number:
            self._interrupt(number, f"{_blocked_for(limit_s)} at {_place(frame)}, and was interrupted. {ADVICE}")

    def _interrupt(self, number: int, why: str) -> None:
        if not interrupts.is_possible():
            return
        for _ in range(TRIES):
            if self._book.interrupt(number, why):
                if self._may_nudge:
                    interrupts.nudge(self._book.thread)
                return
            if self._book.current != number or self._stop.wait(TRY_S):
                return
            self._silent_s += TRY_S
            self._same_s += TRY_S

    def _bark(self, frame: FrameType | None) -> None:
        if frame is None:
            return
        who = who_runs(frame, interrupts.attempt_of(self._loop))
        stack = "".join(traceback.format_list(traceback.extract_stack(frame)[-FRAMES:])).rstrip()
        text = f"{who} has {_blocked_for(self._patience_s)}; everything else in this process waits. {ADVICE}\n{stack}"
        _say(lambda: logger.error("%s", text))

    def _last_words(self, frame: FrameType | None, attempt: Attempt | None) -> str:
        return (
            f"{who_runs(frame, attempt)} has {_blocked_for(self._same_s)} at {_place(frame)}, and cannot be "
            f"interrupted. This process ends now (status {EXIT_STATUS}), before others take over its runs while it is "
            f"still at work; nothing that is recorded is lost. {ADVICE}"
        )


ADVICE = "Move blocking work into a plain `def` activity (it runs in a thread), and long computations out of workflows."


def _blocked_for(seconds: float) -> str:
    return f"blocked the event loop for over {seconds:g} s"


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    """From the innermost frame outwards."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType | None) -> str:
    for each in _stack(frame):
        code = each.f_code
        if not code.co_filename.startswith(interrupts.UNTOUCHABLE):
            return f"{code.co_filename}:{each.f_lineno} in {code.co_qualname}"
    return "an unknown place"


def is_debugged(frame: FrameType | None) -> bool:
    """Somebody may be looking at a breakpoint, and takes their time."""
    monitoring = getattr(sys, "monitoring", None)
    if monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None:
        return True
    if threading.gettrace() is not None:
        return True
    return any(each.f_trace is not None or each.f_globals.get("__name__") in DEBUGGERS for each in _stack(frame))


def who_runs(frame: FrameType | None, attempt: Attempt | None = None) -> str:
    """The activity or the workflow in whose middle this stack is."""
    for each in _stack(frame):
        name, module = each.f_code.co_name, each.f_globals.get("__name__")
        # Workflow code runs in greenlets, whose stacks begin at these two.
        if (name, module) == ("run_ready", "outlast.sdk.loop"):
            return f"workflow {each.f_locals['self'].name}"
        if (name, module) == ("_main", "outlast.sdk.greenlets"):
            return f"workflow {each.f_locals['loop'].name}"
    if attempt is not None:
        return f"activity {attempt.activity} of {attempt.workflow}/{attempt.workflow_id}"
    return "code outside of workflows and activities"
