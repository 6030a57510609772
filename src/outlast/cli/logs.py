"""Logs of a command go to stderr, with times in UTC, as everything that the commands print."""

from __future__ import annotations

import logging
import time


class _Formatter(logging.Formatter):
    def __init__(self, tracebacks: bool) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        if self._tracebacks or record.exc_info is None:
            return super().format(record)
        # On a copy of its fields: other handlers shall still see the traceback.
        return super().format(logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None}))


def log_to_stderr(level: str, *, tracebacks: bool, leave_out: str | None = None) -> None:
    """Unless the user's code has set up logging of its own when it was imported.

    Records whose message begins with `leave_out` are left out, because the command tells it itself.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    if leave_out is not None:
        handler.addFilter(lambda record: not record.getMessage().startswith(leave_out))
    handler.setFormatter(_Formatter(tracebacks))
    root.addHandler(handler)
    root.setLevel(level)
