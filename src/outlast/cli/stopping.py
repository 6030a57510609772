"""Ctrl-C and SIGTERM: the first asks nicely, the second ends the process."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

STRAGGLERS_S = 5.0
"""How long code of the user that does not stop may keep a process whose work is handed over. Short of the ten seconds
after which container runtimes kill."""


@contextmanager
def on_first_signal(stop: Callable[[], object], *numbers: signal.Signals) -> Generator[None, None, None]:
    """On the first of these signals call `stop` on the running loop; the next one ends the process as if nobody
    handled it. So code that never gives way cannot keep a user from ending it.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in numbers}
    stopped = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop)

    # Not `loop.add_signal_handler`: Windows has none.
    for each in numbers:
        signal.signal(each, handle)
    try:
        yield
    finally:
        if not stopped:
            for each, handler in before.items():
                signal.signal(each, handler)


def end_without_stragglers(status: int) -> None:
    """All is handed over: end soon, even if tasks or threads of the user's code never do."""
    timer = threading.Timer(STRAGGLERS_S, os._exit, (status,))
    timer.daemon = True
    timer.start()
