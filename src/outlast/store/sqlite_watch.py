"""Noticing that somebody else has written to the file: another process, or another connection of this one.

Theory of operation
===================
`PRAGMA data_version` tells for certain, but takes locks and, on an idle machine, 0.1 ms. So the log file is looked
at first (`stat`, some microseconds): every commit of anybody writes to it. Its time has the grain of the kernel's
clock tick, up to 10 ms, so a commit may leave it as it was; a file that was written a moment ago therefore counts as
changed. Windows keeps the time of open files to itself; there, SQLite is asked each time.

Who waits for an answer from another process sees something happen every few milliseconds, and is looked after
closely; a quiet file is looked at less often.
"""

from __future__ import annotations

import os
import time

from outlast.store.sqlite_writer import SqliteWriter

LOOK_S = 0.04
"""Between two looks at a quiet file: 20 ms on average until a change is seen, for less than 0.5 % of a core. Waking up
is what costs: 0.1 ms on a virtual machine, nearly twice that with the look."""

CLOSE_LOOK_S = 0.005
LIVELY_S = 0.05
"""For so long after a write, by whomever, every `CLOSE_LOOK_S`."""


class ChangeWatch:
    def __init__(self, writer: SqliteWriter, path: str) -> None:
        self._writer = writer
        self._log = os.path.realpath(path) + "-wal"
        self._seen: tuple[int, int] | None = None
        self._version = writer.data_version()
        self._looked_at = 0.0
        self._wrote_at = 0.0

    def wrote(self, now: float) -> None:
        """This store itself has written; an answer may come soon."""
        self._wrote_at = now

    def pause_s(self, now: float) -> float:
        return CLOSE_LOOK_S if now - self._wrote_at < LIVELY_S else LOOK_S

    def others_wrote(self, now: float) -> bool:
        """True if somebody else has written since the last call. Looks at the file only when it is time to."""
        if now - self._looked_at < CLOSE_LOOK_S:
            return False
        self._looked_at = now
        if not self._log_was_written():
            return False
        version = self._writer.data_version()
        if version == self._version:
            return False
        self._version = version
        self._wrote_at = now
        return True

    def _log_was_written(self) -> bool:
        if os.name == "nt":
            return True
        try:
            log = os.stat(self._log)
        except OSError:
            return True
        seen = (log.st_mtime_ns, log.st_size)
        changed = seen != self._seen or time.time_ns() - log.st_mtime_ns < LIVELY_S * 1e9
        self._seen = seen
        return changed
