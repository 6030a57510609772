"""What can happen between processes and a PostgreSQL server: it is restarted, connections are cut, clocks differ."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

import postgres
from cluster import programs
from cluster.chaos import PAUSE_S, drive, plan_orders
from cluster.databases import PostgresDatabase
from cluster.marks import read_marks
from cluster.nodes import Cluster
from cluster.oracle import judge
from cluster.test_takeover import are_owned_by
from outlast import Client
from outlast.store import postgres_session
from outlast.store.postgres import PostgresStore
from processes import results_of, until, until_true

RUNS = 100
WORKERS = 2

TEN_MINUTES_S = 600.0
CLOCKS_DIFFER_US = 2_000_000
"""Far less than ten minutes, and more than a loaded machine takes for a round trip to its database."""


@pytest.fixture
def database(postgres_database: PostgresDatabase) -> PostgresDatabase:
    """These are about PostgreSQL only."""
    return postgres_database


async def under_load(cluster: Cluster, client: Client, trouble: Callable[[], Awaitable[None]]) -> None:
    """Let runs go through while there is trouble again and again; all must finish right, with every process alive."""
    workers = await asyncio.gather(*(cluster.start("--queue", "default", "--queue", "away") for _ in range(WORKERS)))
    orders = plan_orders(random.Random(7), RUNS, max_pause_s=0.5)
    moments = {RUNS // 4, RUNS // 2, RUNS * 3 // 4}
    troubles: list[asyncio.Future[None]] = []
    one_at_a_time = asyncio.Lock()

    async def befall() -> None:
        async with one_at_a_time:
            await trouble()

    def started(count: int) -> None:
        if count in moments:
            troubles.append(asyncio.ensure_future(befall()))

    async with asyncio.timeout(60):
        await drive(client, orders, 20, started)
        await asyncio.gather(*troubles)
    assert len(troubles) == len(moments)
    await cluster.end(workers)
    verdict = await judge(client, cluster.marks, [each.workflow_id for each in orders])
    assert verdict.lost == 0, "whatever was cut, what ran went on"


async def test_connections_that_are_cut_at_random_lose_and_double_nothing(
    cluster: Cluster, client: Client, database: PostgresDatabase
) -> None:
    rng = random.Random(3)

    async def cut_again_and_again() -> None:
        for _ in range(5):
            await database.cut(rng, share=0.5)
            await asyncio.sleep(PAUSE_S)

    await under_load(cluster, client, cut_again_and_again)


@pytest.mark.parametrize("crash", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_a_server_that_is_restarted_under_load_loses_and_doubles_nothing(
    cluster: Cluster, client: Client, database: PostgresDatabase, crash: bool
) -> None:
    if not database.can_restart():
        pytest.skip(f"{postgres.CHOSEN} names a server that others may use")
    await under_load(cluster, client, lambda: database.restart(crash=crash))


@pytest.mark.parametrize("ahead_s", [TEN_MINUTES_S, pytest.param(-TEN_MINUTES_S, marks=pytest.mark.slow)])
async def test_a_machine_whose_clock_is_ten_minutes_off_changes_nothing(
    cluster: Cluster, client: Client, ahead_s: float
) -> None:
    wrong = await cluster.start(f"--ahead={ahead_s}")
    began_us = time.time_ns() // 1_000
    handles = [await client.start(programs.napping, 1.0) for _ in range(10)]
    assert await results_of(handles) == ["slept"] * 10
    assert {mark.pid for mark in read_marks(cluster.marks)} == {wrong.pid}
    # What it began, another one ends in time.
    right = await cluster.start()
    cluster.stop(right)  # until the other one has all the runs
    more = [await client.start(programs.napping, 2.0) for _ in range(10)]
    await until_true(lambda: are_owned_by(client, more, wrong.pid))
    wrong.kill()
    right.go_on()
    assert await results_of(more) == ["slept"] * 10
    ended_us = time.time_ns() // 1_000
    assert {mark.pid for mark in read_marks(cluster.marks)} == {wrong.pid, right.pid}
    for handle in handles + more:
        times = [each.at_us for each in await handle.history()]
        assert began_us - CLOCKS_DIFFER_US < times[0], "by the database's clock"
        assert times[-1] < ended_us + CLOCKS_DIFFER_US
    assert ended_us - began_us < 60_000_000, "nobody waited for a clock to catch up"


async def test_a_session_whose_opening_fails_in_the_middle_is_opened_again(
    database: PostgresDatabase, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a session its nodes would be taken for dead again and again.

    The driver is left in a state of its own, and says so with an error of its own, if a connection is cut just while
    a statement is being prepared.
    """
    store = client.service.store
    assert isinstance(store, PostgresStore)
    session = store._session
    assert session is not None
    before = session.pid
    failures = [asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")]
    connect = postgres_session.connect

    async def connect_at_last(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await connect(*args, **options)

    monkeypatch.setattr(postgres_session, "connect", connect_at_last)
    await postgres.terminate_backends(database.url)
    await until(lambda: session.pid != before)
    assert failures == []
