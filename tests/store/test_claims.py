"""What every store promises about claims: which runs are free, in which order, and that nobody else gets them."""

from __future__ import annotations

import pytest

from outlast.model.ids import Namespace, NodeId
from outlast.store.api import Answer, RunStatus, Store
from store.building import claim, claimed, commit_one, mail, release, row, run_id, start, turn


async def test_a_claim_makes_the_node_the_owner(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, wake_at_us=5, turn_id=3)])
    before = await row(store, 1)

    (got,) = await store.claim(claim(node))

    assert got.run == await row(store, 1)
    assert not got.lost
    assert (got.run.owner, got.run.claims, got.run.wake_at_us, before.owner, before.claims) == (node, 1, 5, None, 0)
    assert await store.claim(claim(node)) == []
    assert await commit_one(store, turn(1, node, 2)) is Answer.COMMITTED


async def test_a_run_that_is_not_due_stays(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, wake_at_us=101), start(2, wake_at_us=100), start(3, wake_at_us=None)])

    assert await claimed(store, claim(node, now_us=100)) == [run_id(2)]
    assert await claimed(store, claim(node, now_us=101)) == [run_id(1)]
    assert await claimed(store, claim(node, now_us=2**60)) == []


async def test_a_run_of_a_live_node_stays(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, owner=node)])
    await store.send([mail(1, "m")])

    assert await claimed(store, claim(other)) == []
    assert (await row(store, 1)).owner == node


async def test_the_runs_of_a_dead_node_are_taken_over_and_it_commits_nothing_more(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, owner=node), start(2, owner=other)])
    assert await store.declare_dead(node)

    (got,) = await store.claim(claim(other))

    assert (got.run.run_id, got.run.owner, got.run.claims, got.lost) == (run_id(1), other, 1, True)
    assert await commit_one(store, turn(1, node, 2)) is Answer.FENCED
    assert await commit_one(store, turn(1, other, 2)) is Answer.COMMITTED


async def test_the_runs_of_a_node_of_which_nothing_is_known_are_taken_over(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, owner=NodeId(99))])

    (got,) = await store.claim(claim(node))

    assert (got.run.run_id, got.lost) == (run_id(1), True)


async def test_until_it_is_taken_over_a_run_of_a_dead_node_still_takes_its_commits(store: Store) -> None:
    """What counts is who owns the run: nothing is released in bulk."""
    node = await store.join("n")
    await store.commit([start(1, owner=node)])
    await store.declare_dead(node)

    assert await commit_one(store, turn(1, node, 2)) is Answer.COMMITTED


async def test_a_dead_node_claims_nothing(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1)])
    await store.declare_dead(node)

    assert await claimed(store, claim(node)) == []
    assert await claimed(store, claim(NodeId(99))) == []
    assert (await row(store, 1)).owner is None


async def test_highest_priority_first_then_longest_due_then_by_run_id(store: Store) -> None:
    node = await store.join("n")
    await store.commit(
        [
            start(1, wake_at_us=30),
            start(2, wake_at_us=10),
            start(3, wake_at_us=20, priority=5),
            start(4, wake_at_us=10, priority=-1),
            start(5, wake_at_us=10, priority=5),
            start(6, wake_at_us=10),
            start(7, wake_at_us=500, priority=9),
        ]
    )

    order = [run_id(number) for number in (5, 3, 2, 6, 1, 4)]
    assert await claimed(store, claim(node, limit=4)) == order[:4]
    assert await claimed(store, claim(node, limit=4)) == order[4:]


async def test_runs_that_are_free_in_different_ways_share_one_order(store: Store) -> None:
    dead, node = await store.join("d"), await store.join("n")
    await store.commit(
        [
            start(1, wake_at_us=40),
            start(2, wake_at_us=None),
            start(3, wake_at_us=70),
            start(4, owner=dead, wake_at_us=None),
            start(5, owner=dead, wake_at_us=50),
            start(6, owner=dead, wake_at_us=60, priority=1),
            start(7, wake_at_us=90),
        ]
    )
    # What counts is the oldest, in whichever order they came.
    await store.send([mail(2, "a", at_us=44), mail(2, "b", at_us=55), mail(7, "a", at_us=95)])
    await store.send([mail(3, "a", at_us=80), mail(3, "b", at_us=30)])
    await store.declare_dead(dead)

    got = await store.claim(claim(node, now_us=100))

    assert [each.run.run_id for each in got] == [run_id(number) for number in (6, 4, 3, 1, 2, 5, 7)]
    assert [each.lost for each in got] == [True, True, False, False, False, True, False]


@pytest.mark.parametrize("free_by", ["being due", "mail", "the death of its node", "parking"])
async def test_a_node_gets_only_what_it_asked_for(store: Store, free_by: str) -> None:
    dead, node = await store.join("d"), await store.join("n")
    owner = dead if free_by in ("the death of its node", "parking") else None
    wake_at_us = None if free_by == "mail" else 0
    other = Namespace("other")
    await store.commit(
        [
            start(1, owner=owner, wake_at_us=wake_at_us),
            start(2, owner=owner, wake_at_us=wake_at_us, queue="another"),
            start(3, owner=owner, wake_at_us=wake_at_us, workflow="another"),
            start(4, owner=owner, wake_at_us=wake_at_us, namespace=other),
            start(5, owner=owner, wake_at_us=wake_at_us, format=2),
        ]
    )
    if free_by == "mail":
        await store.send([mail(number, "m") for number in range(1, 6)])
    if free_by == "parking":
        await store.commit([release(number, dead, 2, wake_at_us=10**9, error="boom") for number in range(1, 6)])
    await store.declare_dead(dead)
    parked = free_by == "parking"

    assert await claimed(store, claim(node, queues=[], parked=parked)) == []
    assert await claimed(store, claim(node, workflows=[], parked=parked)) == []
    assert await claimed(store, claim(node, max_format=0, parked=parked)) == []
    assert await claimed(store, claim(node, limit=0, parked=parked)) == []
    assert await claimed(store, claim(node, parked=parked)) == [run_id(1)]
    assert await claimed(store, claim(node, queues=["another", "x", "another"], parked=parked)) == [run_id(2)]
    assert await claimed(store, claim(node, workflows=["another"], parked=parked)) == [run_id(3)]
    assert await claimed(store, claim(node, namespace=other, parked=parked)) == [run_id(4)]
    assert await claimed(store, claim(node, max_format=2, parked=parked)) == [run_id(5)]


async def test_a_parked_run_can_be_asked_for_before_it_is_due(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(number, owner=node) for number in range(1, 5)])
    await store.commit(
        [
            release(1, node, 2, wake_at_us=10**9, error="boom"),
            release(2, node, 2, wake_at_us=None, error="boom"),
            release(3, node, 2, wake_at_us=10**9),
            release(4, node, 2, wake_at_us=20, error="boom"),
        ]
    )

    assert await claimed(store, claim(node, limit=1)) == [run_id(4)]
    assert await claimed(store, claim(node)) == []
    assert await claimed(store, claim(node, parked=True)) == [run_id(1), run_id(2)]


async def test_a_run_that_recovered_is_parked_no_more(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, owner=node)])
    await store.commit([release(1, node, 2, wake_at_us=0, error="boom")])
    await store.claim(claim(node))
    await store.commit([turn(1, node, 2)])
    await store.commit([release(1, node, 3, wake_at_us=10**9)])

    assert await claimed(store, claim(node, parked=True)) == []


async def test_a_closed_run_is_never_claimed(store: Store) -> None:
    dead, node = await store.join("d"), await store.join("n")
    await store.commit([start(1, owner=dead), start(2, owner=dead)])
    await store.commit([turn(1, dead, 2, status=RunStatus.CANCELLED)])
    await store.commit([release(2, dead, 2, error="boom", wake_at_us=0)])
    await store.claim(claim(dead))
    await store.commit([turn(2, dead, 2, status=RunStatus.FAILED)])
    await store.declare_dead(dead)

    assert await claimed(store, claim(node, parked=True)) == []


@pytest.mark.parametrize("free_by", ["being due", "mail", "the death of its node"])
async def test_the_first_of_very_many_free_runs_are_the_most_urgent(store: Store, free_by: str) -> None:
    dead, node = await store.join("d"), await store.join("n")
    await store.commit(
        [
            start(
                number,
                owner=dead if free_by == "the death of its node" else None,
                wake_at_us=None if free_by == "mail" else 1_000 - number,
                priority=number % 3,
            )
            for number in range(1, 301)
        ]
    )
    if free_by == "mail":
        await store.send([mail(number, "m", at_us=1_000 - number) for number in range(1, 301)])
    await store.declare_dead(dead)

    got = await claimed(store, claim(node, now_us=2_000, limit=60))

    expected = sorted(range(1, 301), key=lambda number: (-(number % 3), 1_000 - number))
    assert got == [run_id(number) for number in expected[:60]]


async def test_a_run_whose_claim_came_to_nothing_before_its_node_died_is_claimed_alone(store: Store) -> None:
    dead, node = await store.join("d"), await store.join("n")
    await store.commit([start(number, wake_at_us=number) for number in range(1, 5)])
    assert len(await store.claim(claim(dead, limit=3))) == 3
    await store.commit([turn(2, dead, 2)])
    await store.declare_dead(dead)

    assert await claimed(store, claim(node)) == [run_id(2), run_id(4)], "one has made progress, one was not claimed"
    (first,) = await store.claim(claim(node, suspect=True))
    assert (first.run.run_id, first.run.owner, first.run.claims, first.lost) == (run_id(1), node, 2, True)
    assert await claimed(store, claim(node, suspect=True)) == [run_id(3)]
    assert await claimed(store, claim(node, suspect=True)) == []
    assert await claimed(store, claim(node)) == []


async def test_suspects_with_few_claims_are_claimed_before_those_with_many(store: Store) -> None:
    await store.commit([start(1, wake_at_us=1, priority=9), start(2, wake_at_us=2), start(3, wake_at_us=3)])
    first, second, third, last = [await store.join("n") for _ in range(4)]
    await claimed(store, claim(first))
    await store.declare_dead(first)
    assert await claimed(store, claim(second, suspect=True)) == [run_id(1)], "the most urgent"
    await store.declare_dead(second)

    assert await claimed(store, claim(third, suspect=True, limit=10)) == [run_id(2)]
    assert await claimed(store, claim(third, suspect=True)) == [run_id(3)]
    assert await claimed(store, claim(third, suspect=True)) == [run_id(1)]
    await store.declare_dead(third)
    for unwanted in (
        claim(last, suspect=True, limit=0),
        claim(last, suspect=True, queues=["another"]),
        claim(last, suspect=True, workflows=["another"]),
        claim(last, suspect=True, max_format=0),
        claim(last, suspect=True, namespace=Namespace("another")),
        claim(third, suspect=True),
    ):
        assert await claimed(store, unwanted) == []


async def test_a_parked_run_is_no_suspect_since_it_gave_its_claim_back(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, wake_at_us=1)])
    await store.claim(claim(node))
    await store.commit([release(1, node, 2, wake_at_us=5, error="boom")])

    assert await claimed(store, claim(node, suspect=True)) == []
    assert await claimed(store, claim(node)) == [run_id(1)]


# --- one run ----------------------------------------------------------------------------------------------------------


async def test_a_run_that_nobody_owns_can_be_taken_though_it_is_not_due(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, wake_at_us=2**50, workflow="hosted nowhere")])

    got = await store.take(node, run_id(1))

    assert got is not None
    assert got.run == await row(store, 1)
    assert (got.run.owner, got.run.claims, got.lost) == (node, 1, False)
    assert await commit_one(store, turn(1, node, 2)) is Answer.COMMITTED


async def test_a_parked_run_can_be_taken_with_the_mail_that_waits(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, owner=node)])
    await commit_one(store, release(1, node, 2, None, error="boom"))
    await store.send([mail(1, "m")])

    got = await store.take(other, run_id(1))

    assert got is not None
    assert got.run.error == "boom"
    assert [each.message_id for each in await store.mail_of(other, 10)] == ["m"]
    assert await store.claim(claim(node, parked=True)) == []


async def test_a_suspect_of_a_dead_node_can_be_taken(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1)])
    await store.claim(claim(node))
    await store.declare_dead(node)

    got = await store.take(other, run_id(1))

    assert got is not None
    assert (got.run.owner, got.run.claims, got.lost) == (other, 2, True)
    assert await commit_one(store, turn(1, node, 2)) is Answer.FENCED


async def test_a_run_of_a_live_node_cannot_be_taken_nor_can_a_closed_one_or_none(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, owner=node), start(2, status=RunStatus.COMPLETED)])

    assert await store.take(other, run_id(1)) is None
    assert await store.take(node, run_id(1)) is None
    assert await store.take(other, run_id(2)) is None
    assert await store.take(other, run_id(3)) is None
    assert (await row(store, 1)).owner == node


async def test_a_dead_node_takes_nothing(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1)])
    await store.declare_dead(node)

    assert await store.take(node, run_id(1)) is None
    assert (await row(store, 1)).owner is None
    assert (await row(store, 1)).claims == 0


async def test_a_run_that_mail_has_woken_is_claimed_by_nobody_after_it_was_taken(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, wake_at_us=None)])
    await store.send([mail(1, "m")])
    assert await store.take(node, run_id(1)) is not None

    assert await store.claim(claim(other)) == []
    await store.declare_dead(node)
    (got,) = await store.claim(claim(other, suspect=True))
    assert got.run.owner == other
