"""Behind PgBouncer in transaction mode. The conformance suite runs there too (`-m slow`); here is the short proof."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

import outlast
import pgbouncer
import postgres
from outlast import activity, workflow
from outlast.runtime import membership
from outlast.store.api import Answer
from outlast.store.postgres_connection import Line
from store.building import claim, claimed, commit_one, mail, run_id, start, turn
from store.staging import staged


@pytest.fixture
def url() -> Iterator[str]:
    url = postgres.require(postgres.fresh_database)
    yield postgres.require(lambda: pgbouncer.pooled(url))
    postgres.drop_database(url)


@activity
async def charge(n: int) -> int:
    return n + 1


@workflow
async def shop(n: int) -> int:
    return await charge(await charge(n))


@workflow
async def rest_and_charge(n: int) -> int:
    await workflow.sleep(0.1)
    return await charge(n)


@workflow
async def wait_for_ever() -> None:
    await workflow.wait(lambda: False)


async def test_workflows_run_to_their_end_behind_a_pooler(url: str) -> None:
    """Client and worker have stores of their own, and no notifications between them."""
    async with outlast.connect(url) as client, outlast.connect(url) as other:
        async with other.worker(shop, wait_for_ever, charge):
            handles = [await client.start(shop, number, id=f"shop-{number}") for number in range(10)]
            sleeper = await client.start(wait_for_ever, id="sleeper")
            await sleeper.cancel("enough")

            assert await asyncio.gather(*[handle.result() for handle in handles]) == [n + 2 for n in range(10)]
            with pytest.raises(outlast.WorkflowCancelled, match="sleeper"):
                await sleeper.result()


async def test_takeover_behind_a_pooler_waits_for_the_heartbeat(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "LEASE_S", 1.5)
    monkeypatch.setattr(membership, "HEARTBEAT_S", 0.2)
    async with outlast.connect(url) as dying, outlast.connect(url) as other:
        await dying.worker(rest_and_charge, charge).__aenter__()
        handle = await dying.start(rest_and_charge, 1)
        assert dying.service.membership is not None
        dying.service.membership.abandon()

        async with other.worker(rest_and_charge, charge):
            begun = time.monotonic()
            assert await asyncio.wait_for((await other.handle(handle.id)).result(), 60) == 2
            assert time.monotonic() - begun > 1.5
        assert [each.alive for each in await other.service.store.nodes()] == []


async def test_many_stores_share_few_sessions_of_the_server(url: str) -> None:
    async with staged(url) as stage:
        stores = [await stage.store() for _ in range(4)]
        nodes = [await store.join("n") for store in stores]
        assert {store.poll_s for store in stores} == {0.25}
        await stores[0].commit([start(number, owner=nodes[number % 4]) for number in range(40)])

        async def work(number: int) -> list[Answer]:
            store, node = stores[number % 4], nodes[number % 4]
            await store.send([mail(number, "m")])
            answers = [await commit_one(store, turn(number, node, next_event)) for next_event in (2, 3)]
            assert await claimed(store, claim(node)) == []
            return answers

        assert await asyncio.gather(*[work(number) for number in range(40)]) == [[Answer.COMMITTED] * 2] * 40
        assert len(await stores[1].mail_for([run_id(number) for number in range(40)])) == 40
        assert {each.gone for each in await stores[0].nodes()} == {False}
        server = await stage.connection()
        sessions = await server.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert sessions <= pgbouncer.POOL_SIZE


async def test_a_transaction_that_a_stopped_client_leaves_open_behind_a_pooler_does_not_last(url: str) -> None:
    async with staged(url) as stage:
        await (await stage.store()).join("n")
        line = Line(url, "here", "outlast test", pooled=True)

        (limits,) = await line.fetch(
            "SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout')"
        )

        assert tuple(limits) == ("5s", "5s")
        await line.close()
