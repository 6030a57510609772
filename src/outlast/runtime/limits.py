"""Limits: how much one worker takes on, and how long its code may keep everything else waiting.

What is beyond them waits in the database, which has room for it, and not in the memory of a process.
"""

from __future__ import annotations

from outlast.model.errors import InvalidArgument

INTERRUPT_S = 4.0
"""Twice what a large turn on a busy machine takes; a request that hangs is never over sooner."""

MAX_INTERRUPT_S = 5.0
"""Later would be too late: what cannot be interrupted must end its process before the lease of 10 s is over."""


class Limits:
    """How much a worker takes on: `client.worker(..., limits=Limits(runs=1_000))`. What is more waits."""

    __slots__ = ("attempts", "interrupt_s", "runs")

    def __init__(self, runs: int = 10_000, attempts: int = 1_000, *, interrupt_s: float | None = INTERRUPT_S) -> None:
        self.runs = runs
        """Runs in memory. A waiting run takes about 10 kB."""
        self.attempts = attempts
        """Attempts of activities that run at a time."""
        self.interrupt_s = interrupt_s
        """How long a turn, or a step of an async activity, may block the event loop before it is interrupted (see
        `runtime.watchdog`). None: never; who blocks is only named in the log."""
        if min(runs, attempts) < 1:
            raise InvalidArgument(f"Limits: runs and attempts must be 1 or more, not {runs} and {attempts}")
        if interrupt_s is not None and not 0 < interrupt_s <= MAX_INTERRUPT_S:
            raise InvalidArgument(
                f"Limits: interrupt_s must be more than 0 and at most {MAX_INTERRUPT_S:g} seconds, since other nodes "
                f"take over a process that is silent for 10, not {interrupt_s!r}; None means never"
            )
