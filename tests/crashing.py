"""A store that crashes its user: at a chosen commit the process is as good as dead, before or after the write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from outlast.store.api import Answer, Commit, Store


class CrashingStore:
    """Passes everything on to the real store, up to commit number `at` (counted from 1).

    From then on nothing comes back, as if the process had been killed: with `written`, after the batch was
    written, else before. `crashed` tells the test.
    """

    def __init__(self, store: Store, at: int, *, written: bool) -> None:
        self._store = store
        self._at = at
        self._written = written
        self._count = 0
        self._under_way: set[asyncio.Task[list[Answer]]] = set()
        self.crashed = asyncio.Event()

    def commit(self, batch: Sequence[Commit]) -> asyncio.Task[list[Answer]]:
        """Begun at once, like that of the real stores: a caller that is cancelled does not take it back."""
        task = asyncio.get_running_loop().create_task(self._commit(batch))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _commit(self, batch: Sequence[Commit]) -> list[Answer]:
        if self.crashed.is_set():
            await asyncio.Event().wait()
        self._count += 1
        if self._count < self._at:
            return await self._store.commit(batch)
        if self._written:
            await self._store.commit(batch)
        self.crashed.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in ("on_change", "open", "close") or not asyncio.iscoroutinefunction(method):
            return method

        async def passed_on(*args: Any, **kwargs: Any) -> Any:
            if self.crashed.is_set():
                await asyncio.Event().wait()
            return await method(*args, **kwargs)

        return passed_on
