"""Moments on PostgreSQL in the middle of a function, or of a statement: what others commit there is neither lost nor
taken for something else.

Between two statements of a function, or in one of them between its snapshot and its locks, nobody outside can stop it;
so these tests put a lock there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import asyncpg
import pytest

import postgres
from outlast.model.ids import NodeId
from outlast.store import postgres_migrate
from outlast.store import postgres_sql as sql
from outlast.store.api import Answer, RunStatus, Sent
from outlast.store.postgres import PostgresStore
from store.building import claim, claimed, mail, row, run_id, start, task, task_claim, turn, until
from store.staging import Stage, end, staged
from store.staging import claim as claim_over

A = NodeId(1_000)


@pytest.fixture
def url() -> Iterator[str]:
    url = postgres.require(postgres.fresh_database)
    yield url
    postgres.drop_database(url)


@pytest.fixture
async def stage(url: str) -> AsyncIterator[Stage]:
    async with staged(url) as stage:
        yield stage


_HOLD = 7


async def _held(
    stage: Stage, function: str, before: str, hold: str, work: Callable[[], Awaitable[object]]
) -> Callable[[], Awaitable[object]]:
    """Begin this, and see that it waits in the middle of the function. Returns what lets it go on."""
    await stage.spoil(function, before, hold + before)
    holder = await stage.connection()
    await holder.execute("SELECT pg_advisory_lock($1)", _HOLD)
    task = await stage.waits(work())

    async def go_on() -> object:
        await holder.execute("SELECT pg_advisory_unlock($1)", _HOLD)
        return await task

    return go_on


_STATEMENT = f"PERFORM pg_advisory_xact_lock({_HOLD}); "


async def _prefer(url: str, setting: str, value: str) -> None:
    database = await asyncpg.connect(url)
    await database.execute(f"ALTER DATABASE {postgres.database_of(url)} SET {setting} = '{value}'")
    await database.close()


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_no_mail_is_lost_whatever_isolation_the_database_prefers(stage: Stage, level: str) -> None:
    await _prefer(stage.url, "default_transaction_isolation", level)
    store, sender = await stage.store(), await stage.store()
    await store.commit([start(1, owner=A)])
    closing = turn(1, A, 2, status=RunStatus.COMPLETED)
    before = "SELECT coalesce(array_agg(leaving.place)"
    go_on = await _held(stage, "commit_turns_1", before, _STATEMENT, lambda: store.commit([closing]))

    assert await sender.send([mail(1, "m")]) == [Sent.ACCEPTED]

    assert await go_on() == [Answer.MAIL_WAITING], "a run has ended with mail that was acknowledged"
    assert [each.message_id for each in await store.mail_for([run_id(1)])] == ["m"]


async def test_a_schema_is_made_once_whatever_isolation_the_database_prefers() -> None:
    with postgres.require(lambda: postgres.database(migrated=False)) as url:
        await _prefer(url, "default_transaction_isolation", "repeatable read")
        stores = [PostgresStore(url) for _ in range(2)]
        async with staged(url) as stage:
            holder = await stage.transaction()
            await holder.execute(postgres_migrate._LOCK)
            opening = [stage.begin(store.open()) for store in stores]

            async def both_wait() -> bool:
                return await stage.blocked() == 2

            await until(both_wait)
            await end(holder)
            await asyncio.gather(*opening)
            await asyncio.gather(*[store.close() for store in stores])


async def test_mail_to_a_run_that_begins_at_this_moment_is_not_accepted_and_lost(stage: Stage) -> None:
    """It is not locked: it could end beside its mail, with neither seeing the other."""
    store, owner = await stage.store(), await stage.store()
    before = "FOR i IN 1 .. cardinality(run_ids) LOOP"
    go_on = await _held(stage, "send_mail_1", before, _STATEMENT, lambda: store.send([mail(1, "m")]))

    await owner.commit([start(1, owner=A)])

    assert await go_on() == [Sent.NO_SUCH_RUN]
    assert await store.mail_for([run_id(1)]) == []


@pytest.mark.parametrize("how", ["claim", "take"])
async def test_a_node_that_is_just_claiming_is_not_forgotten_with_what_it_claims(stage: Stage, how: str) -> None:
    store = await stage.store()
    dying, other = await store.join("dying"), await store.join("other")
    await store.commit([start(1)])
    claimer = await stage.transaction()
    if how == "claim":
        assert await claim_over(claimer, claim(dying)) == [run_id(1)]
    else:
        assert len(await claimer.fetch(sql.TAKE_RUN, dying, run_id(1))) == 1

    await store.declare_dead(dying)
    await stage.at_once(store.join("third"))
    await end(claimer)

    assert (await row(store, 1)).owner == dying
    dead = [each.node_id for each in await store.nodes() if not each.alive]
    assert dead == [dying], "nobody would ask for suspects, which its run is now"
    assert await claimed(store, claim(other, suspect=True)) == [run_id(1)]


async def test_a_node_that_is_forgotten_takes_nothing_any_more(stage: Stage) -> None:
    """It waited for a lock while it was declared dead and forgotten."""
    store = await stage.store()
    dying = await store.join("dying")
    await store.commit([start(1)])
    holder = await stage.transaction()
    await holder.execute("SELECT 1 FROM outlast.runs FOR UPDATE")
    taking = await stage.waits(store.take(dying, run_id(1)))
    await store.declare_dead(dying)
    await store.join("third")
    await end(holder)

    assert await taking is None
    assert (await row(store, 1)).owner is None


async def test_the_next_attempt_of_a_task_is_not_claimed_before_it_is_due(stage: Stage) -> None:
    """The row is replaced between the moment in which a claim found it and that in which it locks it."""
    store, owner = await stage.store(), await stage.store()
    node = await store.join("n")
    await store.commit([start(1, owner=A)])
    await owner.commit([turn(1, A, 2, add_tasks=[task(attempt=1, visible_at_us=0)])])
    before, hold = "unnest(of_queues) AS hosted (queue)", f"(SELECT pg_advisory_xact_lock({_HOLD})) AS hold, "
    wanted = task_claim(node, now_us=100)
    go_on = await _held(stage, "claim_tasks_1", before, hold, lambda: store.claim_tasks(wanted))

    await owner.commit([turn(1, A, 3, add_tasks=[task(attempt=2, visible_at_us=5_000)])])

    assert await go_on() == []
    assert [each.attempt for each in await store.claim_tasks(task_claim(node, now_us=5_000))] == [2]
