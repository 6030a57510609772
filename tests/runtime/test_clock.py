"""The clock: all nodes go by the database's, whatever their machines believe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from world import HOSTED, nap, two_steps

from outlast import StoreUnavailable, activity, workflow
from outlast.model.ids import DEFAULT_NAMESPACE
from outlast.runtime.clock import DRIFT, REFRESH_S, DatabaseClock, clock_of
from outlast.runtime.ports import SystemClock, SystemEntropy
from outlast.runtime.service import Service
from outlast.sdk.client import Client, Connecting
from outlast.store.memory import MemoryStore
from outlast.store.sqlite import SqliteStore
from virtual import START_US, run_virtual


class Told:
    """A store whose clock a test sets, and a monotonic clock that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.database_ahead_us = START_US
        self.trip_s = 0.0
        self.back_s = 0.0
        self.error: Exception | None = None
        self.before_answer: Callable[[], None] = lambda: None
        self.asked = 0

    def monotonic(self) -> float:
        return self.now_s

    async def now_us(self) -> int:
        self.asked += 1
        self.before_answer()
        if self.error is not None:
            raise self.error
        self.now_s += self.trip_s
        told = self.database_ahead_us + round(self.now_s * 1e6)
        self.now_s += self.back_s
        return told

    def wrong_by_us(self, clock: DatabaseClock) -> int:
        return clock.now_us() - self.database_ahead_us - round(self.now_s * 1e6)


async def a_clock(told: Told) -> DatabaseClock:
    clock = DatabaseClock(told, told.monotonic)  # type: ignore[arg-type]
    assert await clock.ask()
    return clock


async def test_it_goes_on_between_two_answers() -> None:
    told = Told()
    clock = await a_clock(told)
    told.now_s += 3.25
    assert told.wrong_by_us(clock) == 0
    assert told.asked == 1


async def test_it_is_wrong_by_half_the_round_trip_at_most() -> None:
    for there, back in ((0.4, 0.0), (0.0, 0.4), (0.2, 0.2)):
        told = Told()
        told.trip_s, told.back_s = there, back
        assert abs(told.wrong_by_us(await a_clock(told))) <= 200_000


async def test_an_answer_that_took_long_does_not_spoil_a_good_anchor() -> None:
    told = Told()
    clock = await a_clock(told)
    told.now_s += REFRESH_S
    told.trip_s = 2.0  # taken for the middle, it would be wrong by a second
    await clock.refresh()
    assert told.asked == 2
    assert told.wrong_by_us(clock) == 0


async def test_a_bad_anchor_is_replaced_by_a_better_one() -> None:
    told = Told()
    told.trip_s = 2.0
    clock = await a_clock(told)
    assert abs(told.wrong_by_us(clock)) == 1_000_000
    told.trip_s = 0.0
    told.now_s += REFRESH_S
    await clock.refresh()
    assert told.wrong_by_us(clock) == 0


async def test_a_first_answer_that_took_long_is_not_taken_for_the_last_word() -> None:
    """The first question on a connection takes longer than the next ones."""
    told = Told()
    clock = DatabaseClock(told, told.monotonic)  # type: ignore[arg-type]
    trips = iter([0.4, 0.0])
    told.before_answer = lambda: setattr(told, "trip_s", next(trips))
    assert await clock.start()
    assert told.asked == 2
    assert told.wrong_by_us(clock) == 0


async def test_drift_is_followed() -> None:
    """The machine's quartz is slow. Every answer is as good as the one before, so the age of the anchor decides."""
    told = Told()
    told.trip_s = told.back_s = 0.001
    clock = await a_clock(told)
    for _ in range(1_000):
        told.now_s += REFRESH_S
        told.database_ahead_us += round(REFRESH_S * DRIFT * 1e6)
        await clock.refresh()
        assert abs(told.wrong_by_us(clock)) <= 7_000


async def test_a_database_clock_that_was_set_counts_even_if_the_answer_took_long() -> None:
    for jump_us in (3_600_000_000, -3_600_000_000):
        told = Told()
        clock = await a_clock(told)
        told.database_ahead_us += jump_us
        told.now_s += REFRESH_S
        told.trip_s = 2.0
        await clock.refresh()
        assert abs(told.wrong_by_us(clock)) <= 1_000_000


async def test_a_database_that_is_away_leaves_the_clock_going() -> None:
    told = Told()
    clock = await a_clock(told)
    told.error = StoreUnavailable("away")
    told.now_s += 60
    await clock.refresh()
    assert told.asked == 2
    assert told.wrong_by_us(clock) == 0


async def test_a_database_on_this_machine_goes_by_the_machine_s_clock(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "x.db"))
    await store.open()
    assert isinstance(await clock_of(store), SystemClock)
    await store.close()


# --- nodes ------------------------------------------------------------------------------------------------------------


class Elsewhere(MemoryStore):
    """A database with a clock of its own, ahead of this machine's by `ahead_us`."""

    ahead_us = 0
    poll_s = 0.25

    async def now_us(self) -> int:  # type: ignore[override]
        return START_US + self.ahead_us + round(asyncio.get_running_loop().time() * 1e6)


def elsewhere(data: MemoryStore, ahead_us: int) -> Elsewhere:
    store = Elsewhere(data._data)
    store.ahead_us = ahead_us
    return store


@asynccontextmanager
async def client_elsewhere(store: Elsewhere) -> AsyncIterator[Client]:
    await store.open()
    clock = DatabaseClock(store, asyncio.get_running_loop().time)
    await clock.start()
    service = Service(store, clock, SystemEntropy(), DEFAULT_NAMESPACE)
    yield Client(service)
    await service.close()
    await store.close()


@pytest.mark.parametrize("ahead_us", [0, 600_000_000, -600_000_000], ids=["right", "behind", "ahead"])
def test_a_machine_whose_clock_is_ten_minutes_off_changes_nothing(ahead_us: int) -> None:
    """Started here, woken on another node: a minute is a minute, and all recorded times are the database's."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        data = MemoryStore()
        async with (
            client_elsewhere(elsewhere(data, ahead_us)) as one,
            client_elsewhere(elsewhere(data, ahead_us)) as two,
        ):
            begun = loop.time()
            async with one.worker(*HOSTED):
                handle = await one.start(nap, 60)
            async with two.worker(*HOSTED):
                assert await (await two.handle(handle.id)).result() == "rested"
            assert 60 <= loop.time() - begun < 61.5
            times = [each.at_us - START_US - ahead_us for each in await handle.history()]
            assert times == sorted(times)
            assert times[0] >= 0
            assert times[-1] <= 62_000_000

    run_virtual(asyncio.wait_for(scenario(), 300))


def test_a_database_clock_that_is_set_is_followed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        store = elsewhere(MemoryStore(), 0)
        async with client_elsewhere(store) as client, client.worker(*HOSTED):
            handle = await client.start(nap, 3600)
            await asyncio.sleep(60)
            store.ahead_us = 3_600_000_000
            set_at = asyncio.get_running_loop().time()
            assert await handle.result() == "rested"
            assert asyncio.get_running_loop().time() - set_at < REFRESH_S + 5
        assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
            "the clock was set forward by 3600.0 s"
        ]

    run_virtual(asyncio.wait_for(scenario(), 300))


def test_a_database_that_tells_no_time_does_not_stop_the_heart_of_a_node(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the error is: a node whose heart has stopped begins nothing more, and is not even told that it is dead.

    What stands in for it is what PostgreSQL's driver says of a connection that is cut while it is made.
    """

    async def scenario() -> None:
        store = elsewhere(MemoryStore(), 0)
        async with client_elsewhere(store) as client, client.worker(*HOSTED):
            store.now_us = no_time  # type: ignore[method-assign]
            await asyncio.sleep(60)
            assert await client.execute(two_steps, 1) == 3

    async def no_time() -> int:
        raise ZeroDivisionError

    run_virtual(asyncio.wait_for(scenario(), 120))
    said = {record.message for record in caplog.records if record.levelno >= logging.ERROR}
    assert said == {"the database could not be asked for the time; please report this bug"}


def test_clocks_that_differ_by_milliseconds_make_nobody_wait_for_a_poll() -> None:
    """The starter's clock is 20 ms ahead, so its run is due in the future of the node that hears of it."""

    async def scenario() -> None:
        data = MemoryStore()
        store = elsewhere(data, 0)
        store.poll_s = 60.0
        async with client_elsewhere(store) as client, client_elsewhere(elsewhere(data, 20_000)) as starter:
            async with client.worker(*HOSTED), starter.worker(far, queue="far"):
                await asyncio.sleep(99.5)
                begun = asyncio.get_running_loop().time()
                assert await starter.execute(two_steps, 1) == 3
                assert asyncio.get_running_loop().time() - begun < 0.3
            async with starter.worker(call_far), client.worker(far, queue="far"):
                await asyncio.sleep(99.5)  # between two heartbeats, which are hints too
                begun = asyncio.get_running_loop().time()
                assert await starter.execute(call_far) == "done"
                assert asyncio.get_running_loop().time() - begun < 0.3

    run_virtual(asyncio.wait_for(scenario(), 10_000))


@activity(queue="far")
async def far() -> str:
    return "done"


@workflow
async def call_far() -> str:
    return await far()


def test_a_process_without_a_node_asks_before_it_writes_a_time() -> None:
    async def scenario() -> None:
        store = elsewhere(MemoryStore(), 0)
        async with client_elsewhere(store) as client:
            await asyncio.sleep(3_600)
            store.ahead_us = 60_000_000
            row = (await (await client.start(nap, 60)).describe()).row
            assert row.started_at_us == START_US + 3_660_000_000

    run_virtual(asyncio.wait_for(scenario(), 10_000))


async def test_a_client_goes_by_the_clock_of_its_database() -> None:
    async with Connecting(elsewhere(MemoryStore(), 600_000_000)) as client:
        told = START_US + 600_000_000 + round(asyncio.get_running_loop().time() * 1e6)
        assert abs(client.service.clock.now_us() - told) < 1_000_000
