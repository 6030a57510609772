"""Races on PostgreSQL: each rule that keeps something from getting lost, on the stage, and without the rule.

Each test sets up one race, with one side stopped in the middle of its transaction. The last test takes the rule away
that the others are about, by replacing a function of the schema, and sees that they fail: so none of them passes
because the race never happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

import postgres
from outlast.model.errors import InternalError
from outlast.model.ids import MessageId, NodeId
from outlast.store import postgres_sql as sql
from outlast.store.api import Answer, IdReuse, Release, RunStatus, Sent, Store
from store.building import claim, claimed, commit_one, mail, marks, release, row, run_id, start, turn, until
from store.staging import Stage, end, staged
from store.staging import claim as claim_over
from store.staging import commit as commit_over
from store.staging import send as send_over

A, B = NodeId(1_000), NodeId(2_000)


@pytest.fixture
def url() -> Iterator[str]:
    url = postgres.require(postgres.fresh_database)
    yield url
    postgres.drop_database(url)


@pytest.fixture
async def stage(url: str) -> AsyncIterator[Stage]:
    async with staged(url) as stage:
        yield stage


# --- mail and the edges of ownership ------------------------------------------------------------------------------


async def _mail_beside_a_leaving(stage: Stage, leaving: Callable[[], object]) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A), start(2, owner=A)])
    sender = await stage.transaction()
    assert await send_over(sender, mail(1, "m")) == "accepted"

    answers = await stage.at_once(store.commit([leaving(), turn(2, A, 2)]))  # type: ignore[list-item]
    await end(sender)

    assert [each.message_id for each in await store.mail_for([run_id(1)])] == ["m"]
    assert answers == [Answer.MAIL_WAITING, Answer.COMMITTED], "a run has left with mail that was acknowledged"
    assert await commit_one(store, leaving()) is Answer.MAIL_WAITING  # type: ignore[arg-type]
    assert (await row(store, 1)).owner == A


async def test_mail_that_is_on_its_way_when_a_run_ends_is_not_lost_and_does_not_stop_the_batch(stage: Stage) -> None:
    await _mail_beside_a_leaving(stage, lambda: turn(1, A, 2, status=RunStatus.COMPLETED))


async def test_mail_that_is_on_its_way_when_a_run_is_given_back_is_not_lost(stage: Stage) -> None:
    await _mail_beside_a_leaving(stage, lambda: release(1, A, 2))


async def test_mail_that_is_on_its_way_when_a_run_is_parked_is_not_lost(stage: Stage) -> None:
    """Otherwise than mail that is there, it makes the release wait: it would be stamped with an owner who is gone."""
    store = await stage.store()
    node = await store.join("n")
    await store.commit([start(1, owner=A)])
    sender = await stage.transaction()
    assert await send_over(sender, mail(1, "m")) == "accepted"

    answers = await stage.at_once(store.commit([turn(1, A, 2, release=Release(0, "boom"))]))
    await end(sender)
    again = await commit_one(store, turn(1, A, 2, release=Release(0, "boom")))

    assert await claimed(store, claim(node)) == [run_id(1)]
    assert [each.message_id for each in await store.mail_of(node, 10)] == ["m"], "its owner never sees the mail"
    assert (answers, again) == ([Answer.MAIL_WAITING], Answer.COMMITTED)


async def test_a_sender_waits_for_the_end_of_a_run_and_hears_of_it(stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    owner = await stage.transaction()
    assert await commit_over(owner, [turn(1, A, 2, status=RunStatus.COMPLETED)]) == {}

    sending = await stage.waits(store.send([mail(1, "m")]))
    await end(owner)

    assert await sending == [Sent.CLOSED]
    assert await store.mail_for([run_id(1)]) == []


async def test_mail_for_a_run_that_is_just_given_back_wakes_it(stage: Stage) -> None:
    store = await stage.store()
    node = await store.join("n")
    await store.commit([start(1, owner=node)])
    owner = await stage.transaction()
    assert await commit_over(owner, [turn(1, node, 2, release=Release(None))]) == {}

    sending = await stage.waits(store.send([mail(1, "m")]))
    await end(owner)

    assert await sending == [Sent.ACCEPTED]
    assert await claimed(store, claim(node)) == [run_id(1)]
    assert [each.message_id for each in await store.mail_of(node, 10)] == ["m"]


async def test_mail_for_a_run_that_is_just_claimed_goes_to_its_new_owner(stage: Stage) -> None:
    store = await stage.store()
    node = await store.join("n")
    await store.commit([start(1)])
    claimer = await stage.transaction()
    assert await claim_over(claimer, claim(node)) == [run_id(1)]

    sending = await stage.waits(store.send([mail(1, "m")]))
    await end(claimer)

    assert await sending == [Sent.ACCEPTED]
    assert [each.message_id for each in await store.mail_of(node, 10)] == ["m"]


async def test_a_claim_leaves_a_run_alone_to_which_mail_is_on_its_way(stage: Stage) -> None:
    store = await stage.store()
    node = await store.join("n")
    await store.commit([start(1), start(2)])
    sender = await stage.transaction()
    assert await send_over(sender, mail(1, "m")) == "accepted"

    first = await stage.at_once(claimed(store, claim(node)))
    await end(sender)

    second = await claimed(store, claim(node))
    assert [each.message_id for each in await store.mail_of(node, 10)] == ["m"], "its owner never sees the mail"
    assert (first, second) == ([run_id(2)], [run_id(1)])


async def test_a_run_that_is_just_taken_by_its_id_is_not_taken_twice_and_its_mail_goes_along(stage: Stage) -> None:
    store = await stage.store()
    one, two = await store.join("one"), await store.join("two")
    await store.commit([start(1, wake_at_us=None)])
    taker = await stage.transaction()
    assert len(await taker.fetch(sql.TAKE_RUN, one, run_id(1))) == 1

    sending = stage.begin(store.send([mail(1, "m")]))
    taking = stage.begin(store.take(two, run_id(1)))

    async def settled() -> bool:
        return await stage.blocked() + sum(task.done() for task in (sending, taking)) == 2

    await until(settled)
    await end(taker)

    assert await sending == [Sent.ACCEPTED]
    assert await taking is None
    assert (await row(store, 1)).owner == one
    assert [each.message_id for each in await store.mail_of(one, 10)] == ["m"], "its owner never sees the mail"


async def test_a_sender_does_not_stop_the_turns_of_a_run(stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    sender = await stage.transaction()
    assert await send_over(sender, mail(1, "m")) == "accepted"

    assert await stage.at_once(store.commit([turn(1, A, 2)])) == [Answer.COMMITTED]

    await end(sender)
    assert [each.message_id for each in await store.mail_of(A, 10)] == ["m"]


async def test_a_turn_does_not_stop_the_senders_to_its_run(stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    owner = await stage.transaction()
    assert await commit_over(owner, [turn(1, A, 2)]) == {}

    assert await stage.at_once(store.send([mail(1, "m")])) == [Sent.ACCEPTED]

    await end(owner)
    assert [each.message_id for each in await store.mail_of(A, 10)] == ["m"]


async def test_mail_that_is_committed_out_of_order_is_not_consumed_unseen(stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    slow = await stage.transaction()
    assert await send_over(slow, mail(1, "first")) == "accepted"
    assert await store.send([mail(1, "second")]) == [Sent.ACCEPTED]
    seen = await store.mail_of(A, 10)
    assert [each.message_id for each in seen] == ["second"]
    await end(slow)

    assert await commit_one(store, turn(1, A, 2, consume=[seen[0].mail_id])) is Answer.COMMITTED

    left = await store.mail_of(A, 10)
    assert [each.message_id for each in left] == ["first"], "mail was consumed that nobody has seen"
    assert left[0].mail_id < seen[0].mail_id


# --- the fence ----------------------------------------------------------------------------------------------------


async def test_an_owner_from_before_a_restore_writes_nothing(stage: Stage) -> None:
    """The journal alone is no fence: after a restore nothing is at the place to which the old owner appends."""
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    for next_event in (2, 3, 4):
        await store.commit([turn(1, A, next_event, turn_id=next_event)])
    restore = await stage.connection()
    await restore.execute("DELETE FROM outlast.journal WHERE first_event >= 3")
    await restore.execute("UPDATE outlast.runs SET next_event = 3, turn_id = 2")

    answer = await commit_one(store, turn(1, A, 5, turn_id=5))

    assert await marks(store, 1) == [(1, 1, None), (2, 1, 2)], "a hole in the history"
    assert answer is Answer.FENCED


async def test_a_node_whose_run_is_being_taken_waits_and_writes_nothing(stage: Stage) -> None:
    store = await stage.store()
    old, new = await store.join("old"), await store.join("new")
    await store.commit([start(1, owner=old)])
    await store.declare_dead(old)
    claimer = await stage.transaction()
    assert await claim_over(claimer, claim(new)) == [run_id(1)]

    writing = await stage.waits(store.commit([turn(1, old, 2)]))
    await end(claimer)

    answers = await writing
    assert await marks(store, 1) == [(1, 1, None)], "somebody wrote into a run that was not his any more"
    assert answers == [Answer.FENCED]


async def test_of_two_commits_for_one_turn_one_is_written(stage: Stage) -> None:
    """As when a commit is made again, whose connection has broken while the server was still at work on it."""
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    first = await stage.transaction()
    assert await commit_over(first, [turn(1, A, 2, turn_id=7)]) == {}

    again = await stage.waits(store.commit([turn(1, A, 2, turn_id=7)]))
    await end(first)

    answers = await again
    assert await marks(store, 1) == [(1, 1, None), (2, 1, 7)]
    assert answers == [Answer.FENCED]
    assert (await row(store, 1)).turn_id == 7


async def test_the_journal_itself_refuses_a_second_row_for_one_event(stage: Stage) -> None:
    """The backstop, if the row of a run is behind its history: nothing is overwritten, and nobody else is failed."""
    store = await stage.store()
    await store.commit([start(1, owner=A), start(2, owner=A)])
    await store.commit([turn(1, A, 2, turn_id=1)])
    await (await stage.connection()).execute("UPDATE outlast.runs SET next_event = 2, turn_id = NULL")

    with pytest.raises(InternalError, match="UniqueViolation"):
        await store.commit([turn(1, A, 2, turn_id=2), turn(2, A, 2, turn_id=3)])

    assert await marks(store, 1) == [(1, 1, None), (2, 1, 1)]
    assert await marks(store, 2) == [(1, 1, None)]
    assert await commit_one(store, turn(2, A, 2, turn_id=4)) is Answer.COMMITTED


# --- claims -------------------------------------------------------------------------------------------------------


async def test_a_claim_does_not_wait_for_another_one_and_takes_what_that_leaves(stage: Stage) -> None:
    store = await stage.store()
    one, two = await store.join("one"), await store.join("two")
    await store.commit([start(number, wake_at_us=number) for number in range(1, 5)])
    claimer = await stage.transaction()
    assert await claim_over(claimer, claim(one, limit=2)) == [run_id(1), run_id(2)]

    others = await stage.at_once(claimed(store, claim(two)))
    await end(claimer)

    assert others == [run_id(3), run_id(4)]
    assert [(await row(store, number)).owner for number in range(1, 5)] == [one, one, two, two]


async def test_nodes_that_claim_at_once_never_get_the_same_run(stage: Stage) -> None:
    stores = [await stage.store() for _ in range(4)]
    nodes = [await store.join("n") for store in stores]
    await stores[0].commit([start(number, wake_at_us=number % 7) for number in range(200)])
    got: dict[NodeId, list[str]] = {node: [] for node in nodes}

    async def take(store: Store, node: NodeId) -> None:
        while more := await claimed(store, claim(node, limit=7)):
            got[node] += more

    await asyncio.gather(*[take(store, node) for store, node in zip(stores, nodes, strict=True)])
    # What one claim has skipped because another one was looking at it.
    await take(stores[0], nodes[0])

    everything = [each for some in got.values() for each in some]
    assert sorted(everything) == [run_id(number) for number in range(200)]
    for node, some in got.items():
        assert {(await row(stores[0], int(each, 16))).owner for each in some} <= {node}


# --- starts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "answer"), [("COMMIT", Answer.ID_IN_USE), ("ROLLBACK", Answer.COMMITTED)])
async def test_who_starts_a_run_waits_for_another_one_with_the_same_id(
    stage: Stage, ending: str, answer: Answer
) -> None:
    store = await stage.store()
    other = await stage.transaction()
    assert await commit_over(other, [start(1, workflow_id="w")]) == {}

    starting = await stage.waits(store.commit([start(2, workflow_id="w")]))
    await end(other, ending)

    assert await starting == [answer]
    assert (await store.run(run_id(2)) is None) == (answer is Answer.ID_IN_USE)


async def test_an_id_that_may_not_come_back_does_not_when_its_run_ends_at_this_moment(stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, workflow_id="w", owner=A)])
    owner = await stage.transaction()
    assert await commit_over(owner, [turn(1, A, 2, status=RunStatus.COMPLETED)]) == {}

    starting = await stage.waits(store.commit([start(2, workflow_id="w", id_reuse=IdReuse.NEVER)]))
    await end(owner)

    assert await starting == [Answer.ID_IN_USE], "the id was used before"
    assert await store.run(run_id(2)) is None
    assert await store.history(run_id(2)) == []


async def test_of_two_runs_with_one_id_that_end_with_their_first_turn_one_is_written(stage: Stage) -> None:
    store = await stage.store()
    other = await stage.transaction()

    def done(number: int) -> object:
        return start(number, workflow_id="w", id_reuse=IdReuse.NEVER, status=RunStatus.COMPLETED, owner=A)

    assert await commit_over(other, [done(1)]) == {}  # type: ignore[list-item]
    starting = await stage.waits(store.commit([done(2)]))  # type: ignore[list-item]
    await end(other)

    assert await starting == [Answer.ID_IN_USE], "the id was used before"
    assert await store.run(run_id(2)) is None
    assert (await row(store, 1)).status is RunStatus.COMPLETED


async def test_an_id_is_used_once_in_a_batch_even_if_its_runs_end_with_their_first_turn(stage: Stage) -> None:
    store = await stage.store()

    answers = await store.commit(
        [
            start(number, workflow_id="w", id_reuse=IdReuse.NEVER, status=RunStatus.COMPLETED, owner=A)
            for number in (1, 2, 3)
        ]
    )

    assert answers == [Answer.COMMITTED, Answer.ID_IN_USE, Answer.ID_IN_USE]


# --- replies ------------------------------------------------------------------------------------------------------


async def test_batches_that_reply_to_the_same_messages_do_not_wait_for_each_other_in_a_circle(stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A), start(2, owner=A)])
    other = await stage.transaction()
    assert await commit_over(other, [turn(1, A, 2, replies={"a": b"1"})]) == {}

    replying = await stage.waits(store.commit([turn(2, A, 2, replies={"b": b"2", "a": b"2"})]))
    assert await commit_over(other, [turn(1, A, 3, replies={"b": b"1"})]) == {}
    await end(other)

    assert await replying == [Answer.COMMITTED]
    assert await store.replies([MessageId("a"), MessageId("b")]) == {"a": b"2", "b": b"2"}


async def test_a_reply_that_is_just_being_replaced_is_not_waited_for_and_not_forgotten(stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    await store.commit([turn(1, A, 2, at_us=5, replies={"a": b"1", "b": b"1"})])
    other = await stage.transaction()
    assert await commit_over(other, [turn(1, A, 3, at_us=50, replies={"a": b"2"})]) == {}

    assert await stage.at_once(store.forget_replies(before_us=10, limit=10)) == 1
    await end(other)

    assert await store.forget_replies(before_us=10, limit=10) == 0
    assert await store.replies([MessageId("a"), MessageId("b")]) == {"a": b"2"}


# --- without the rules --------------------------------------------------------------------------------------------

_FENCE = """runs.run_id = turn.run_id AND runs.owner = turn.owner AND runs.next_event = turn.next_event
           AND texteq(runs.status, 'open') AND outlast.is_newer_1(turn.turn_id, runs.turn_id)
           AND (turn"""

PLANTED = [
    # (which promise breaks, in which function, what is replaced, by what, how the test finds it)
    (
        test_mail_that_is_on_its_way_when_a_run_ends_is_not_lost_and_does_not_stop_the_batch,
        "commit_turns_1", "FOR UPDATE OF runs SKIP LOCKED", "", "left with mail",
    ),
    (
        test_mail_that_is_on_its_way_when_a_run_is_given_back_is_not_lost,
        "commit_turns_1", "FOR UPDATE OF runs SKIP LOCKED", "", "left with mail",
    ),
    (
        test_mail_that_is_on_its_way_when_a_run_ends_is_not_lost_and_does_not_stop_the_batch,
        "commit_turns_1", "FOR UPDATE OF runs SKIP LOCKED", "FOR UPDATE OF runs", "waits for somebody",
    ),
    (test_a_sender_waits_for_the_end_of_a_run_and_hears_of_it, "send_mail_1", "FOR KEY SHARE", "", "did not wait"),
    (test_mail_for_a_run_that_is_just_given_back_wakes_it, "send_mail_1", "FOR KEY SHARE", "", "did not wait"),
    (
        test_mail_for_a_run_that_is_just_claimed_goes_to_its_new_owner,
        "claim_runs_1", "FOR UPDATE OF runs SKIP LOCKED", "FOR NO KEY UPDATE OF runs SKIP LOCKED", "did not wait",
    ),
    (
        test_a_claim_leaves_a_run_alone_to_which_mail_is_on_its_way,
        "claim_runs_1", "FOR UPDATE OF runs SKIP LOCKED", "FOR NO KEY UPDATE OF runs SKIP LOCKED", "never sees",
    ),
    (
        test_a_run_that_is_just_taken_by_its_id_is_not_taken_twice_and_its_mail_goes_along,
        "take_run_1", "FOR UPDATE", "FOR NO KEY UPDATE", "never sees",
    ),
    (test_a_sender_does_not_stop_the_turns_of_a_run, "send_mail_1", "FOR KEY SHARE", "FOR SHARE", "waits for"),
    (
        test_mail_that_is_committed_out_of_order_is_not_consumed_unseen,
        "commit_turns_1", "WHERE mailbox.mail_id = used.mail_id", "WHERE mailbox.mail_id <= used.mail_id", "nobody",
    ),
    (
        test_an_owner_from_before_a_restore_writes_nothing,
        "commit_turns_1", _FENCE, "runs.run_id = turn.run_id AND runs.owner = turn.owner AND (turn", "a hole",
    ),
    (
        test_a_node_whose_run_is_being_taken_waits_and_writes_nothing,
        "commit_turns_1",
        _FENCE, "runs.run_id = turn.run_id AND runs.next_event = turn.next_event AND (turn", "not his",
    ),
    (
        test_a_claim_does_not_wait_for_another_one_and_takes_what_that_leaves,
        "claim_runs_1", "FOR UPDATE OF runs SKIP LOCKED", "", "waits for",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("promise", "function", "what", "instead", "found"),
    PLANTED,
    ids=[f"{promise.__name__.removeprefix('test_')}-{number}" for number, (promise, *_) in enumerate(PLANTED)],
)
async def test_without_its_rule_the_promise_is_seen_to_break(
    stage: Stage, promise: Callable[[Stage], Awaitable[None]], function: str, what: str, instead: str, found: str
) -> None:
    await stage.spoil(function, what, instead)

    with pytest.raises(AssertionError, match=found):
        await promise(stage)
