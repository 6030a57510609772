"""What of the runtime is replaced while a world is simulated, and the constants that are scaled.

Only what could make two equal executions differ, and only at its seam: threads. What the guard finds out about the
workflows' code is kept between worlds: reading bytecode would take most of the time. Constants are scaled together, so
that they stand in the same proportion to each other as in production; `Plan.speed` says by how much.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import outlast.runtime
import outlast.sdk.guard
import outlast.sdk.worker
from sim.threads import SimThreads

SCALED = (
    "LEASE_S", "HEARTBEAT_S", "IDLE_S", "SWEEP_S", "SOON_US", "MAX_BACKOFF_S", "HANDOVER_S", "MAX_PAUSE_S",
    "LAST_ROUND_S", "GOODBYE_S", "GRACE_S", "LOOK_AGAIN_S", "LOOK_S", "PATIENCE_S",
)  # fmt: skip


_prepare = functools.cache(outlast.sdk.guard.prepare)


class NoWatchdog:
    """In place of the thread that watches the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def runtime_modules() -> list[ModuleType]:
    names = [each.name for each in pkgutil.iter_modules(outlast.runtime.__path__)]
    return [importlib.import_module(f"outlast.runtime.{name}") for name in names]


@contextmanager
def simulated_runtime(speed: float) -> Generator[None]:
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(outlast.sdk.worker, "Threads", SimThreads))
        stack.enter_context(mock.patch.object(outlast.sdk.guard, "prepare", _prepare))
        for module in runtime_modules():
            if isinstance(getattr(module, "Watchdog", None), type):
                stack.enter_context(mock.patch.object(module, "Watchdog", NoWatchdog))
            for name in SCALED if speed != 1.0 else ():
                value = getattr(module, name, None)
                if value is not None:
                    stack.enter_context(mock.patch.object(module, name, type(value)(value * speed)))
        yield
