"""A world for workflow loops: it stands in for the program, keeps the commands, and decides what happens next.

`World.live` picks the events and records them; `World.replay` feeds recorded ones. Both keep what the code asked for
(`commands`) and what it did (`trace`), to be compared.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from outlast.model.ids import TimerId
from outlast.sdk.loop import WorkflowLoop

Pick = Callable[[int], int]
"""Picks a number below the one given."""
Event = tuple[str, str, int]
"""What happened ("done", "failed", "timer"), to which id, and when (microseconds)."""

_world: contextvars.ContextVar[World] = contextvars.ContextVar("world")


class Broken(Exception):
    """An activity failed."""


class World:
    def __init__(self, name: str = "order") -> None:
        self.commands: list[tuple[str, ...]] = []
        self.trace: list[object] = []
        self.events: list[Event] = []
        self.problems: list[dict[str, Any]] = []
        self.activities: dict[str, asyncio.Future[Any]] = {}
        self.timers: dict[str, int] = {}
        self.between_turns: Callable[[], None] = lambda: None
        self._count = 0
        context = contextvars.Context()
        context.run(_world.set, self)
        self.loop = WorkflowLoop(self, name, context, 1_000)

    # --- the loop's host

    def start_timer(self, delay_us: int, label: str | None) -> TimerId:
        timer_id = self._next_id()
        self.timers[timer_id] = self.loop.now_us + delay_us
        self.commands.append(("timer", timer_id, str(delay_us)))
        return TimerId(timer_id)

    def cancel_timer(self, timer_id: TimerId) -> None:
        del self.timers[timer_id]
        self.commands.append(("cancel timer", timer_id))

    def unhandled(self, context: dict[str, Any]) -> None:
        self.problems.append(context)

    def _next_id(self) -> str:
        self._count += 1
        return str(self._count)

    # --- what workflow code calls

    def schedule(self, name: str) -> asyncio.Future[Any]:
        if self.loop.phase.name != "RUNNING":
            self.loop.refuse(name)
        future = self.loop.create_future()
        activity_id = self._next_id()
        self.activities[activity_id] = future
        self.commands.append(("activity", activity_id, name))
        return future

    # --- what happens

    def turn(self, deliver: Callable[[], None] | None = None) -> None:
        self.loop.turn(deliver)
        self.between_turns()

    def complete(self, activity_id: str, value: object = None) -> None:
        self.turn(lambda: self.activities.pop(activity_id).set_result(value))

    def fire(self, timer_id: str) -> None:
        due = self.timers.pop(timer_id)
        self.loop.now_us = max(self.loop.now_us, due)
        self.turn(lambda: self.loop.fire_timer(TimerId(timer_id)))

    def happen(self, event: Event) -> None:
        kind, what, at_us = event
        self.events.append(event)
        self.loop.now_us = at_us
        if kind == "timer":
            del self.timers[what]
            self.turn(lambda: self.loop.fire_timer(TimerId(what)))
            return
        future = self.activities.pop(what)
        if future.done():
            self.turn()
        elif kind == "done":
            self.turn(lambda: future.set_result(f"result {what}"))
        else:
            self.turn(lambda: future.set_exception(Broken(what)))

    def live(
        self, main: Callable[[], Any], pick: Pick, *, is_async: bool = True, limit: int = 500
    ) -> asyncio.Future[Any]:
        """Run until it is done, or waits for nothing. Whatever is open may happen next, timers in their order."""
        done = self.loop.start(main, is_async=is_async)
        self.turn()
        while not done.done():
            choices: list[Event] = [
                (kind, waiting, self.loop.now_us + 1)
                for waiting in self.activities
                for kind in ("done", "done", "failed")
            ]
            if self.timers:
                first = min(self.timers, key=lambda timer: (self.timers[timer], int(timer)))
                choices.append(("timer", first, max(self.timers[first], self.loop.now_us)))
            if not choices:
                break
            assert len(self.events) < limit, "it does not end"
            self.happen(choices[pick(len(choices))])
        return done

    def replay(self, main: Callable[[], Any], events: Iterable[Event], *, is_async: bool = True) -> asyncio.Future[Any]:
        done = self.loop.start(main, is_async=is_async)
        self.turn()
        for event in events:
            self.happen(event)
        return done

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of an async workflow, when everything succeeds in the order in which it was asked for."""
        done = self.live(main, lambda _: 0)
        assert done.done(), f"it waits for nothing, at {self.loop.whereabouts()}"
        self.loop.close()
        assert self.problems == []
        return done.result()


async def activity(name: str) -> Any:
    return await _world.get().schedule(name)


def call(name: str) -> Any:
    """The same, for sync code."""
    world = _world.get()
    return world.loop.block(world.schedule(name))


def trace(entry: object) -> None:
    _world.get().trace.append(entry)


def world() -> World:
    return _world.get()
