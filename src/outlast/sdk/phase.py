"""Between a workflow's loop and its program: what may be done when, and what the loop asks for."""

from __future__ import annotations

from enum import Enum
from typing import Any, NoReturn, Protocol

from outlast.model.errors import InternalError
from outlast.model.ids import TimerId


class Phase(Enum):
    IDLE = "between turns"
    RUNNING = "in a turn"
    READ_ONLY = "answering a query"
    COLLECTING = "in a finaliser that the garbage collector runs"
    EVICTING = "leaving memory"
    CLOSED = "closed"


class LoopHost(Protocol):
    """What the loop asks of its program."""

    def start_timer(self, delay_us: int, label: str | None) -> TimerId:
        """A durable timer is wanted; `fire_timer` is called when it is due."""
        ...

    def cancel_timer(self, timer_id: TimerId) -> None:
        """Nobody waits for it any more. Not called for timers that have fired, nor during eviction."""
        ...

    def unhandled(self, context: dict[str, Any]) -> None:
        """What asyncio gives to a loop's exception handler: a callback failed, an exception was never retrieved.

        The latter is told by a finaliser, so the moment may depend on the garbage collector, and then the thread too:
        log it, and let nothing else depend on it.
        """
        ...


class _Nobody:
    """The host of a loop that is closed."""

    def start_timer(self, delay_us: int, label: str | None) -> NoReturn:
        raise InternalError("A timer was started on a closed loop. Please report this.")

    def cancel_timer(self, timer_id: TimerId) -> None:
        pass

    def unhandled(self, context: dict[str, Any]) -> None:
        pass


NOBODY: LoopHost = _Nobody()
