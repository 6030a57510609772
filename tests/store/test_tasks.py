"""What every store promises about dispatched activities: one node has an attempt, and its outcome arrives once."""

from __future__ import annotations

import pytest

from outlast.model.ids import Namespace, NodeId
from outlast.store.api import RunStatus, Sent, Store, Task
from store.building import claim, commit_one, mail, run_id, start, task, task_claim, turn
from store.conftest import Database, make_database

A = NodeId(1)


def ids(tasks: list[Task]) -> list[tuple[int, str]]:
    return [(int(each.run_id, 16), each.activity_id) for each in tasks]


async def test_a_task_is_claimed_once_with_everything_in_it(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, owner=node, add_tasks=[task("7", attempt=3, body=b'{"args":["\xc3\xbc"]}')])])

    (got,) = await store.claim_tasks(task_claim(node))

    assert got.run_id == run_id(1)
    assert (got.activity_id, got.activity, got.queue) == ("7", "charge_payment", "orders")
    assert (got.attempt, got.body, got.lost) == (3, b'{"args":["\xc3\xbc"]}', False)
    assert await store.claim_tasks(task_claim(node)) == []
    assert await store.claim_tasks(task_claim(other)) == []
    assert await store.tasks_of([run_id(1), run_id(2)]) == {run_id(1): ["7"]}


async def test_tasks_are_claimed_as_they_became_visible(store: Store) -> None:
    node = await store.join("n")
    await store.commit(
        [
            start(1, owner=node, add_tasks=[task("1", visible_at_us=30), task("2", visible_at_us=101)]),
            start(2, owner=node, add_tasks=[task("1", visible_at_us=20), task("2", visible_at_us=20)]),
        ]
    )

    assert ids(await store.claim_tasks(task_claim(node, limit=2))) == [(2, "1"), (2, "2")]
    assert ids(await store.claim_tasks(task_claim(node))) == [(1, "1")]
    assert ids(await store.claim_tasks(task_claim(node, now_us=101))) == [(1, "2")]


async def test_a_node_gets_only_the_tasks_it_asked_for(store: Store) -> None:
    node, other = await store.join("n"), Namespace("other")
    await store.commit(
        [
            start(1, owner=node, add_tasks=[task("1"), task("2", queue="another"), task("3", activity="another")]),
            start(2, owner=node, namespace=other, add_tasks=[task("4")]),
        ]
    )

    assert await store.claim_tasks(task_claim(node, queues=[])) == []
    assert await store.claim_tasks(task_claim(node, activities=[])) == []
    assert await store.claim_tasks(task_claim(node, limit=0)) == []
    assert ids(await store.claim_tasks(task_claim(node))) == [(1, "1")]
    assert ids(await store.claim_tasks(task_claim(node, queues=["another"]))) == [(1, "2")]
    assert ids(await store.claim_tasks(task_claim(node, activities=["another"]))) == [(1, "3")]
    assert ids(await store.claim_tasks(task_claim(node, namespace=other))) == [(2, "4")]


async def test_the_attempt_of_a_dead_node_is_handed_on_as_lost(store: Store) -> None:
    first, second, third = [await store.join(name) for name in "abc"]
    await store.commit([start(1, owner=third, add_tasks=[task("1", visible_at_us=50), task("2", visible_at_us=10)])])
    await store.claim_tasks(task_claim(first, limit=2, now_us=50))
    await store.commit([turn(1, third, 2, add_tasks=[task("3", visible_at_us=5)])])
    await store.declare_dead(first)

    lost = await store.claim_tasks(task_claim(second, limit=2))
    assert [(each.activity_id, each.lost) for each in lost] == [("2", True), ("1", True)]
    fresh = await store.claim_tasks(task_claim(second))
    assert [(each.activity_id, each.lost) for each in fresh] == [("3", False)]

    await store.declare_dead(second)
    again = await store.claim_tasks(task_claim(third))
    assert [(each.activity_id, each.lost) for each in again] == [("3", True), ("2", True), ("1", True)]
    assert not await store.deliver(second, lost[0], mail(1, "m"))
    assert await store.deliver(third, again[1], mail(1, "m"))


# --- tasks that a node has and does not know of ---------------------------------------------------------------------


async def test_a_node_that_says_what_it_holds_is_given_the_rest_again(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, owner=A, add_tasks=[task(each, visible_at_us=9 - int(each)) for each in "1234"])])
    known, *unknown = await store.claim_tasks(task_claim(node, limit=3))
    assert ids([known, *unknown]) == [(1, "4"), (1, "3"), (1, "2")]

    assert await store.claim_tasks(task_claim(other, limit=0, held=[])) == []
    assert await store.claim_tasks(task_claim(node, activities=["another"], held=[known])) == []
    assert await store.claim_tasks(task_claim(node, limit=1, held=[known])) == unknown[:1]
    again = await store.claim_tasks(task_claim(node, held=[known]))
    assert again[:2] == unknown, "those before what is free"
    assert ids(again[2:]) == [(1, "1")]
    assert not any(each.lost for each in again)
    assert await store.claim_tasks(task_claim(node, held=[known, *again])) == []
    assert await store.claim_tasks(task_claim(other, held=[])) == [], "nobody else is given any"
    assert await store.deliver(node, again[0], mail(1, "m"))
    assert ids(await store.claim_tasks(task_claim(node, held=[]))) == [(1, "4"), (1, "2"), (1, "1")]


async def test_a_held_attempt_does_not_stand_for_the_next_one(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, owner=A, add_tasks=[task(attempt=1)]), start(2, owner=A, add_tasks=[task()])])
    first, other = await store.claim_tasks(task_claim(node))
    await store.commit([turn(1, A, 2, add_tasks=[task(attempt=2)])])
    (second,) = await store.claim_tasks(task_claim(node, held=[first, other]))
    assert (second.run_id, second.attempt) == (first.run_id, 2)

    assert await store.claim_tasks(task_claim(node, held=[first, other])) == [second]


async def test_a_lost_attempt_stays_lost_when_it_is_given_again(store: Store) -> None:
    """Or it would be run again, under the same number."""
    dying, node = await store.join("d"), await store.join("n")
    await store.commit([start(1, owner=A, add_tasks=[task("1")])])
    await store.claim_tasks(task_claim(dying))
    await store.commit([turn(1, A, 2, add_tasks=[task("2", visible_at_us=0)])])
    (held,) = await store.claim_tasks(task_claim(node))
    await store.declare_dead(dying)
    (lost,) = await store.claim_tasks(task_claim(node))
    assert lost.lost

    assert await store.claim_tasks(task_claim(node, held=[held])) == [lost]
    assert await store.claim_tasks(task_claim(node, held=[])) == [lost, held]

    await store.commit([turn(1, A, 3, add_tasks=[task("1", attempt=2)])])
    (second,) = await store.claim_tasks(task_claim(node))
    assert (second.activity_id, second.attempt, second.lost) == ("1", 2, False), "what replaces it is not"


async def test_lost_tasks_are_taken_before_those_that_a_node_has_already(store: Store) -> None:
    dying, node = await store.join("d"), await store.join("n")
    await store.commit([start(1, owner=A, add_tasks=[task("1", visible_at_us=3)])])
    await store.claim_tasks(task_claim(dying))
    await store.commit([turn(1, A, 2, add_tasks=[task("2", visible_at_us=2)])])
    await store.claim_tasks(task_claim(node))
    await store.commit([turn(1, A, 3, add_tasks=[task("3", visible_at_us=1)])])
    await store.declare_dead(dying)

    got = await store.claim_tasks(task_claim(node, held=[]))

    assert [(each.activity_id, each.lost) for each in got] == [("1", True), ("2", False), ("3", False)]


async def test_a_dead_node_gets_no_tasks(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, owner=other, add_tasks=[task()])])
    await store.declare_dead(node)

    assert await store.claim_tasks(task_claim(node)) == []
    assert ids(await store.claim_tasks(task_claim(other))) == [(1, "1")]


async def test_the_outcome_arrives_once(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, owner=A, add_tasks=[task()])])
    (got,) = await store.claim_tasks(task_claim(node))

    assert await store.deliver(node, got, mail(1, "outcome", at_us=70, body=b'{"ok":1}'))
    assert not await store.deliver(node, got, mail(1, "outcome again"))

    (letter,) = await store.mail_of(A, 10)
    assert (letter.message_id, letter.at_us, letter.body) == ("outcome", 70, b'{"ok":1}')
    assert await store.tasks_of([run_id(1)]) == {}


async def test_only_the_node_that_holds_the_attempt_delivers(store: Store) -> None:
    node, other = await store.join("n"), await store.join("o")
    await store.commit([start(1, owner=A, add_tasks=[task("1"), task("2")])])
    got = await store.claim_tasks(task_claim(node, limit=1))

    assert not await store.deliver(other, got[0], mail(1, "m"))
    (unclaimed,) = await store.claim_tasks(task_claim(other))
    assert not await store.deliver(node, unclaimed, mail(1, "m"))
    assert await store.mail_of(A, 10) == []
    assert await store.tasks_of([run_id(1)]) == {run_id(1): ["1", "2"]}


async def test_a_task_that_was_replaced_dropped_or_closed_takes_no_outcome(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(number, owner=A, add_tasks=[task()]) for number in (1, 2, 3)])
    replaced, dropped, closed = await store.claim_tasks(task_claim(node))

    await store.commit(
        [
            turn(1, A, 2, drop_tasks=["1"], add_tasks=[task(attempt=2)]),
            turn(2, A, 2, drop_tasks=["1", "unknown"]),
            turn(3, A, 2, status=RunStatus.COMPLETED),
        ]
    )

    for got in (replaced, dropped, closed):
        assert not await store.deliver(node, got, mail(int(got.run_id, 16), "m"))
    assert await store.mail_of(A, 10) == []
    (second,) = await store.claim_tasks(task_claim(node))
    assert (second.run_id, second.attempt, second.lost) == (run_id(1), 2, False)
    assert not await store.deliver(node, replaced, mail(1, "m")), "the outcome of the attempt before"
    assert await store.deliver(node, second, mail(1, "m"))


async def test_an_outcome_wakes_a_run_without_owner(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, wake_at_us=None, add_tasks=[task()])])
    (got,) = await store.claim_tasks(task_claim(node))
    assert await store.claim(claim(node)) == []

    await store.deliver(node, got, mail(1, "outcome"))

    assert [each.run.run_id for each in await store.claim(claim(node))] == [run_id(1)]
    assert [each.message_id for each in await store.mail_of(node, 10)] == ["outcome"]


async def test_an_outcome_arrives_even_in_a_full_mailbox(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    database: Database = make_database(kind, tmp_path_factory.mktemp("small"), mailbox_limit=1)
    store = await database.connect()
    node = await store.join("n")
    await store.commit([start(1, owner=A, add_tasks=[task()])])
    (got,) = await store.claim_tasks(task_claim(node))
    assert await store.send([mail(1, "a"), mail(1, "b")]) == [Sent.ACCEPTED, Sent.FULL]

    assert await store.deliver(node, got, mail(1, "outcome"))

    assert [each.message_id for each in await store.mail_of(A, 10)] == ["a", "outcome"]
    await database.close()


async def test_the_outcome_goes_to_the_run_of_the_task(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, owner=A, add_tasks=[task()])])
    (got,) = await store.claim_tasks(task_claim(node))

    with pytest.raises(AssertionError, match="goes to its run"):
        await store.deliver(node, got, mail(2, "m"))

    assert await store.deliver(node, got, mail(1, "m"))


async def test_a_commit_that_is_refused_leaves_the_tasks_alone(store: Store) -> None:
    await store.commit([start(1, owner=A, add_tasks=[task("1")])])

    await commit_one(store, turn(1, NodeId(2), 2, add_tasks=[task("2")], drop_tasks=["1"]))

    assert await store.tasks_of([run_id(1)]) == {run_id(1): ["1"]}
