"""What every store promises about nodes: who joined, who is alive, who is gone."""

from __future__ import annotations

import asyncio

import pytest

from outlast.model.errors import StoreUnavailable
from outlast.model.ids import NodeId
from outlast.store.api import NodeRow, RunStatus, Store
from store.building import claim, mail, row, start, task, task_claim, turn, until
from store.conftest import TELLING, Database


async def test_ids_of_nodes_only_grow(database: Database) -> None:
    store, other = await database.connect(), await database.connect()
    first = await store.join("a")
    second = await other.join("b")
    await store.declare_dead(second)
    third = await store.join("c")

    assert first < second < third
    assert await store.nodes() == [NodeRow(first, "a", True, 0, False), NodeRow(third, "c", True, 0, False)]
    assert await other.nodes() == await store.nodes()


async def test_a_heartbeat_raises_the_counter_and_tells_the_dead(store: Store) -> None:
    node = await store.join("n")

    assert await store.heartbeat(node)
    assert await store.heartbeat(node)
    assert [each.counter for each in await store.nodes()] == [2]

    assert await store.declare_dead(node)
    assert not await store.heartbeat(node)
    assert not await store.heartbeat(NodeId(99))


async def test_a_node_dies_once(store: Store) -> None:
    node = await store.join("n")

    assert await store.declare_dead(node)
    assert not await store.declare_dead(node)
    assert not await store.declare_dead(NodeId(99))


async def test_the_dead_are_shown_while_something_is_left_of_them(store: Store) -> None:
    owner, claimer, idle, live = [await store.join(name) for name in ("owner", "claimer", "idle", "live")]
    await store.commit([start(1, owner=owner), start(2, owner=live, add_tasks=[task()])])
    (got,) = await store.claim_tasks(task_claim(claimer))
    for node in (owner, claimer, idle):
        await store.declare_dead(node)

    async def shown() -> list[tuple[NodeId, bool]]:
        return [(each.node_id, each.alive) for each in await store.nodes()]

    assert await shown() == [(owner, False), (claimer, False), (live, True)]
    await store.join("one more")
    assert (await shown())[:3] == [(owner, False), (claimer, False), (live, True)]

    await store.commit([turn(1, owner, 2, status=RunStatus.COMPLETED)])
    await store.deliver(claimer, got, mail(2, "m"))
    assert [each for each, _ in await shown()][:1] == [live]


@TELLING
async def test_a_store_that_is_closed_has_gone_with_its_nodes(database: Database) -> None:
    store, other = await database.connect(), await database.connect()
    mine, its = await store.join("mine"), await other.join("its")

    await other.close()

    async def is_seen() -> bool:  # soon, not at once: a session that was cut may come back
        return any(each.gone for each in await store.nodes())

    await until(is_seen)
    assert [(each.node_id, each.alive, each.gone) for each in await store.nodes()] == [
        (mine, True, False),
        (its, True, True),
    ]


async def test_stores_on_the_same_data_see_each_other(database: Database) -> None:
    store, other = await database.connect(), await database.connect()
    await store.commit([start(1, owner=NodeId(1))])

    assert await row(other, 1) == await row(store, 1)
    await other.send([mail(1, "m")])
    assert [each.message_id for each in await store.mail_of(NodeId(1), 10)] == ["m"]


@TELLING
async def test_a_store_hears_that_another_one_has_written(database: Database) -> None:
    store, other = await database.connect(), await database.connect()
    await store.claim(claim(await store.join("n")))  # a store is told of what it has shown an interest in
    heard = asyncio.Event()
    store.on_change(heard.set)

    await other.commit([start(1)])

    await asyncio.wait_for(heard.wait(), 30)


async def test_a_closed_store_says_so(database: Database) -> None:
    store = await database.connect()
    await store.close()
    await store.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        await store.commit([start(1)])
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.nodes()
