"""Interrupts hit the stretch that they are aimed at, or nothing: however the moment falls."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from world import membership_of, names, nothing_is_left

from outlast import Retry, activity, workflow
from outlast.model.ids import DEFAULT_NAMESPACE
from outlast.runtime.interrupts import Book, LoopBlocked, here, interruptible
from outlast.runtime.ports import SystemClock, SystemEntropy
from outlast.runtime.service import Service
from outlast.sdk.client import Client
from outlast.store.memory import MemoryStore


@pytest.fixture(autouse=True)
def _no_foreign_callbacks_of_the_collector() -> Iterator[None]:
    """Hypothesis leaves one behind in the process; where an interrupt goes off in it, pytest reports it."""
    before = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = before


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    """So that moments fall everywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Interrupter:
    """A thread that interrupts whatever stretch is current, at random moments."""

    def __init__(self, book: Book, seed: int) -> None:
        self.hits: list[int] = []
        self.misses = 0
        self._book = book
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._stop.is_set():
            time.sleep(self._random.choice([0, 1e-6, 1e-4, 1e-3]))
            number = self._book.current
            if self._random.random() < 0.3:
                time.sleep(self._random.choice([0, 1e-6, 1e-4]))  # it may be over by then
            if number:
                if self._book.interrupt(number, f"number {number}"):
                    self.hits.append(number)
                else:
                    self.misses += 1

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()


def spin(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step % 7
    return total


def spin_and_swallow(steps: int) -> int:
    try:
        return spin(steps)
    except BaseException:
        return spin(10)


def sleep_a_little(steps: int) -> int:
    time.sleep(steps / 1e7)
    return steps


def test_an_interrupt_hits_the_stretch_that_it_was_aimed_at_and_nothing_else() -> None:
    book, rng = here(), random.Random(1)
    interrupter = Interrupter(book, seed=2)
    interrupted: list[int] = []
    finished = 0
    with interrupter.at_work():
        deadline = time.monotonic() + 60
        while len(interrupted) < 2_000 and time.monotonic() < deadline:
            work, steps = rng.choice([spin, spin, spin_and_swallow, sleep_a_little]), rng.choice([1, 30, 1_000, 30_000])
            number = book.count + 1
            try:
                interruptible(work, steps)
            except LoopBlocked as error:
                assert str(error) == f"number {number}"  # noqa: PT017
                interrupted.append(number)
            else:
                finished += 1
            spin(rng.choice([1, 30, 1_000]))  # outside of any stretch: whatever went off here would fail the test
    spin(10_000)
    assert set(interrupter.hits) == set(interrupted), "every hit has ended its own stretch, and no other was ended"
    assert len(interrupted) == len(set(interrupted)) >= 2_000
    assert finished > 100
    assert interrupter.misses > 100, "some came too late, and did no harm"
    assert book.current == 0


def test_an_inner_stretch_that_is_hit_leaves_the_outer_one_alone() -> None:
    book = here()
    interrupter = Interrupter(book, seed=3)
    hits = {"inner": 0, "outer": 0}

    def outer() -> None:
        number = book.current
        try:
            interruptible(spin, 3_000)
        except LoopBlocked as error:
            if str(error) == f"number {number}":
                raise
            assert str(error) == f"number {number + 1}"  # noqa: PT017
            hits["inner"] += 1
        assert book.current == number
        spin(3_000)

    with interrupter.at_work():
        deadline = time.monotonic() + 60
        while min(hits.values()) < 300 and time.monotonic() < deadline:
            number = book.count + 1
            try:
                interruptible(outer)
            except LoopBlocked as error:
                assert str(error) == f"number {number}"  # noqa: PT017
                hits["outer"] += 1
    assert min(hits.values()) >= 300
    assert book.current == 0


# --- in a node --------------------------------------------------------------------------------------------------------


@activity(retry=Retry(initial_interval=0.001, backoff=1.0, jitter=0.0))
async def toil(steps: int) -> int:
    spin(steps)
    await asyncio.sleep(0)
    return spin(steps)


@activity(retry=Retry(initial_interval=0.001, backoff=1.0, jitter=0.0))
async def stubborn_toil(steps: int) -> int:
    return spin_and_swallow(steps)


@workflow
async def labour(steps: int, times: int) -> int:
    done = 0
    for _ in range(times):
        spin(steps // 10)
        first, second = workflow.start(toil, steps), workflow.start(stubborn_toil, steps)
        await first
        await second
        done += 1
    return done


@workflow
def plain_labour(steps: int, times: int) -> int:
    for _ in range(times):
        spin(steps // 10)
        workflow.start(stubborn_toil, steps).result()
    return times


async def test_a_node_whose_user_code_is_interrupted_all_the_time_comes_to_no_harm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    store = MemoryStore()
    await store.open()
    service = Service(store, SystemClock(), SystemEntropy(), DEFAULT_NAMESPACE)
    client, loop = Client(service), asyncio.get_running_loop()
    interrupter = Interrupter(here(), seed=4)
    async with client.worker(labour, plain_labour, toil, stubborn_toil):
        handles: list[Any] = []
        with interrupter.at_work():
            until = loop.time() + 3
            while loop.time() < until:
                handles += [await client.start(kind, 10_000, 5) for kind in (labour, plain_labour)]
                await asyncio.sleep(0.01)
        assert asyncio.get_running_loop() is loop
        results = await asyncio.wait_for(asyncio.gather(*(handle.result() for handle in handles)), 60)
        assert results == [5] * len(handles)
        seen = [each for handle in handles for each in await names(handle)]
        assert seen.count("ActivityAttemptFailed") > 100, "interrupted in activities"
        assert len(interrupter.hits) > 500
        assert membership_of(client).node.attempts._free == 1_000
        await nothing_is_left(client)
    await service.close()
    await store.close()
    assert not caplog.records, "nothing was found that must be reported as a bug"
