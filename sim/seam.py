"""The store seam: between each process and the one database, where networks, disks and servers do their worst.

A call travels to the database, is carried out there in one go, and its answer travels back; each leg takes a drawn
time. What can happen to it on the way is drawn from the plan's rates:

- nothing is written, and the caller is told so (`Busy`, `StoreUnavailable`);
- it is written, and the caller hears `CommitUnknown`; or it is not; or it is written *later*, when the caller has long
  heard `CommitUnknown`: the server still worked on it when the connection broke;
- the process is killed right before, or right after the write, or the write arrives when it has long been dead;
- a commit cannot be written, for a reason that is a bug (*poisoned*): whatever batch it is in fails as a whole;
- either leg takes longer than a timeout of the runtime, the lease among them.

What was under way when a process dies may still arrive. Hints to the other processes are lost, doubled, late.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from outlast.model.errors import Busy, CommitUnknown, StoreUnavailable
from sim.loop import SECOND_US
from sim.plan import WRITE_FAULTS, near_constant_s

if TYPE_CHECKING:
    from sim.process import Process
    from sim.world import World

UNHARMED = "ok"

UNKNOWN = frozenset({"unknown, written", "unknown, not written", "unknown, written later"})
COMMIT_WEIGHT = 3.0
"""Commits are few among the calls, and what is not known of them is what the runtime is built around."""

COMMIT_FAULTS = (*WRITE_FAULTS, "poisoned")
READ_FAULTS = ("read unavailable", "slow read")


class SeamStore:
    """The `Store` of one process: every method of the protocol, by name."""

    def __init__(self, world: World, process: Process, rng: random.Random) -> None:
        self._world = world
        self._process = process
        self._rng = rng
        self._callbacks: list[Callable[[], None]] = []
        self._methods: dict[str, Callable[..., asyncio.Future[Any]]] = {}

    @property
    def poll_s(self) -> float:
        return self._world.plan.poll_s

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def now_us(self) -> None:
        return None

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def __getattr__(self, method: str) -> Callable[..., asyncio.Future[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)
        known = self._methods.get(method)
        if known is None:
            known = self._methods[method] = partial(self._ask, method, self._world.database.writes(method))
        return known

    # --- calls --------------------------------------------------------------------------------------------------------

    def _ask(self, method: str, writes: bool, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        world, process = self._world, self._process
        future = process.loop.create_future()
        if process.loop.dead:
            return future
        if method == "commit":
            fate = self._draw_fate(COMMIT_FAULTS, COMMIT_WEIGHT)
        else:
            fate = self._draw_fate(WRITE_FAULTS if writes else READ_FAULTS)
        there_us, back_us = self._travel_us(), self._travel_us()
        if fate in ("slow request", "slow read"):
            there_us += self._long_us()
        elif fate == "slow answer":
            back_us += self._long_us()
        call = _Call(method, args, kwargs, writes, fate, back_us, future, self._rng.random() < 0.5)
        world.scheduler.after(there_us, partial(self._arrive, call))
        return future

    def _draw_fate(self, faults: Sequence[str], weight: float = 1.0) -> str:
        rates = self._world.rates
        if rates:
            for fault in faults:
                rate = rates.get(fault)
                if rate is not None and self._rng.random() < (rate * weight if fault in UNKNOWN else rate):
                    return fault
        return UNHARMED

    def _travel_us(self) -> int:
        return int(self._rng.random() * self._world.plan.latency_s * SECOND_US)

    def _long_us(self) -> int:
        return int(near_constant_s(self._rng, self._world.plan.speed, 15.0) * SECOND_US)

    def _late_us(self) -> int:
        """When a write arrives of which its caller heard nothing: while that looks for it, or long after."""
        return self._travel_us() * 3 + (0 if self._rng.random() < 0.4 else self._long_us())

    def _arrive(self, call: _Call) -> None:
        """At the database."""
        world, process = self._world, self._process
        if process.loop.dead and not (call.writes and call.lands_after_crash and not process.ended):
            return
        fate = call.fate
        if fate != UNHARMED:
            if not world.allows(fate, process):
                fate = UNHARMED
            else:
                world.covered[fate] += 1
                world.note(process.name, f"{call.method}: {fate}")
        if process.loop.dead:
            world.covered["write of a killed process arrives"] += 1
        self._carry_out(call, fate)

    def _carry_out(self, call: _Call, fate: str) -> None:
        match fate:
            case "busy":
                self._answer(call, Busy("simulated: the database is busy"))
            case "unavailable" | "read unavailable":
                self._answer(call, StoreUnavailable("simulated: the database does not answer"))
            case "unknown, not written":
                self._answer(call, CommitUnknown("simulated: the connection broke"))
            case "unknown, written":
                self._apply(call)
                self._answer(call, CommitUnknown("simulated: the connection broke"))
            case "unknown, written later":
                self._world.scheduler.after(self._late_us(), partial(self._apply_late, call))
                self._answer(call, CommitUnknown("simulated: the connection broke"))
            case "poisoned":
                if going_on := [each.run_id for each in call.args[0] if each.create is None]:
                    self._world.poison(self._rng.choice(going_on))
                self._answer(call, self._apply(call))
            case "crash before the write":
                self._process.crash(self._world.draw_known_gone_s())
            case "crash, written later":
                self._world.scheduler.after(self._late_us(), partial(self._apply_late, call))
                self._process.crash(self._world.draw_known_gone_s())
            case "crash after the write":
                self._apply(call)
                self._process.crash(self._world.draw_known_gone_s())
            case _:
                self._answer(call, self._apply(call))

    def _apply_late(self, call: _Call) -> None:
        self._world.covered["late write arrives"] += 1
        self._apply(call)

    def _apply(self, call: _Call) -> Any:
        """Carry it out. An exception is an answer."""
        world = self._world
        if world.poisoned and call.method == "commit" and any(world.is_poisoned(each.run_id) for each in call.args[0]):
            return ZeroDivisionError("simulated: a bug for which this run cannot be written")
        try:
            answer = world.database.apply(call.method, call.args, call.kwargs)
        except Exception as error:
            world.note(self._process.name, f"{call.method}: {error!r}")
            return error
        if call.writes:
            world.written(self._process, call.method, call.args, answer)
        elif call.method == "nodes":
            answer = [replace(each, gone=world.is_gone(each.node_id)) for each in answer]
        return answer

    def _answer(self, call: _Call, answer: Any) -> None:
        self._world.scheduler.after(call.back_us, partial(self._process.loop.post, _settle, call.future, answer))

    # --- hints --------------------------------------------------------------------------------------------------------

    def hint(self) -> None:
        """Another process has written."""
        rates, rng, world = self._world.rates, self._rng, self._world
        delay_us = self._travel_us() + 1_000
        if rates:
            if rng.random() < rates.get("hint lost", 0.0):
                world.covered["hint lost"] += 1
                return
            if rng.random() < rates.get("hint late", 0.0):
                world.covered["hint late"] += 1
                delay_us += self._long_us()
            if rng.random() < rates.get("hint twice", 0.0):
                world.covered["hint twice"] += 1
                world.scheduler.after(delay_us + self._travel_us(), self._hinted)
        world.scheduler.after(delay_us, self._hinted)

    def _hinted(self) -> None:
        for callback in self._callbacks:
            self._process.loop.post(callback)


class _Call:
    __slots__ = ("args", "back_us", "fate", "future", "kwargs", "lands_after_crash", "method", "writes")

    def __init__(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        writes: bool,
        fate: str,
        back_us: int,
        future: asyncio.Future[Any],
        lands_after_crash: bool,
    ) -> None:
        self.method = method
        self.args = args
        self.kwargs = kwargs
        self.writes = writes
        self.fate = fate
        self.back_us = back_us
        self.future = future
        self.lands_after_crash = lands_after_crash


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
