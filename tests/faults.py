"""A store that fails as it is told: between a node and its real store, where networks and disks do their worst.

A test says what the next calls of a method do: raise an error before anything is written, or after it was written;
wait at a gate until the test opens it, before or after the write. All other calls pass through.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from outlast.model.ids import RunId
from outlast.store.api import Commit, Store

Call = Callable[[], Awaitable[Any]]
Fault = Callable[[Call], Awaitable[Any]]
PLAIN = frozenset({"on_change", "open", "close", "connect"})


class Gate:
    """Where a call waits. `reached` is set when it has come there; `open()` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        self.reached.set()
        await self._opened.wait()


class FaultyStore:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.calls: Counter[str] = Counter()
        self.poisoned: set[RunId] = set()
        """A batch with a commit of one of these runs fails as a whole, as if the store had a bug."""
        self.down: Exception | None = None
        """While set, every call raises it and writes nothing."""

    def fail(self, method: str, error: Exception, *, times: int = 1, written: bool = False) -> None:
        """The next `times` calls raise `error`; with `written`, after they have done their work."""

        async def fault(call: Call) -> Any:
            if written:
                await call()
            raise error

        self._faults[method].extend([fault] * times)

    def gate(self, method: str, *, written: bool = False) -> Gate:
        """The next call waits at a gate; with `written`, after it has done its work."""
        gate = Gate()

        async def fault(call: Call) -> Any:
            answer = await call() if written else None
            await gate.passed()
            return answer if written else await call()

        self._faults[method].append(fault)
        return gate

    def skip(self, method: str, times: int) -> None:
        """The next `times` calls are left alone; what is ordered afterwards comes after them."""
        self._faults[method].extend([lambda call: call()] * times)

    def used_up(self) -> bool:
        """Every fault that was ordered has happened: a test whose faults did not happen proves nothing."""
        return not any(self._faults.values())

    async def commit(self, batch: Sequence[Commit]) -> Any:
        if any(each.run_id in self.poisoned for each in batch):
            raise ZeroDivisionError("a bug in the store")
        return await self._passed_on("commit", self._store.commit, batch)

    async def _passed_on(self, name: str, method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        self.calls[name] += 1
        if self.down is not None:
            raise self.down
        if self._faults[name]:
            return await self._faults[name].popleft()(lambda: method(*args, **kwargs))
        return await method(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in PLAIN or not asyncio.iscoroutinefunction(method):
            return method

        async def passed_on(*args: Any, **kwargs: Any) -> Any:
            return await self._passed_on(name, method, *args, **kwargs)

        return passed_on
