"""Pending: what a workflow can wait for. `await it`, or `it.result()`, which blocks in sync code.

A pending that must be awaited and is dropped instead is a mistake that would pass silently: `workflow.sleep(60)` in
async code does nothing. Its `__del__`, which CPython runs before the next statement, poisons the turn with the place
where it was made; and `bool(pending)` raises, since `if workflow.wait(...):` would always be true.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, NoReturn, TypeVar

from outlast.model.errors import DurableCallError

R_co = TypeVar("R_co", covariant=True)


class Pending(Generic[R_co]):
    """Something that a workflow waits for: a sleep, a condition, a started activity.

    `await pending` in async code, `pending.result()` in sync code; either may be used again after the first time.
    """

    __slots__ = ("_block", "_dropped", "_wait", "_what")

    def __init__(
        self,
        what: str,
        wait: Callable[[], Coroutine[Any, Any, R_co]],
        block: Callable[[], R_co],
        dropped: Callable[[str], None] | None,
    ) -> None:
        self._what = what
        self._wait = wait
        self._block = block
        self._dropped = dropped
        """Told when nobody has waited. None: need not be waited for."""

    def __await__(self) -> Generator[Any, Any, R_co]:
        self._dropped = None
        return self._wait().__await__()

    def result(self) -> R_co:
        """Wait for it, blocking: in a `def` workflow, or in an `async def` one, whose other tasks then wait too."""
        self._dropped = None
        return self._block()

    def __bool__(self) -> NoReturn:
        raise DurableCallError(
            f"{self._what} is used as a condition, but it has not been waited for. "
            f"Write `await {self._what}` in async code, `{self._what}.result()` in sync code."
        )

    def __del__(self) -> None:
        if self._dropped is not None:
            self._dropped(self._what)

    def __repr__(self) -> str:
        return f"<Pending {self._what}>"
