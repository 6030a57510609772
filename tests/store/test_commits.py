"""What every store promises about commits: the fence, all or nothing, and winners beside losers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from outlast.model.errors import InvalidArgument
from outlast.model.ids import MessageId, Namespace, NodeId, TurnId, WorkflowId
from outlast.store.api import (
    Answer,
    Commit,
    Fence,
    IdReuse,
    JournalRow,
    NewReply,
    Release,
    RunRow,
    RunStatus,
    Sent,
    Store,
)
from store.building import (
    NAMESPACE,
    QUEUE,
    WORKFLOW,
    claim,
    claimed,
    commit_one,
    events,
    mail,
    marks,
    release,
    row,
    run_id,
    start,
    task,
    task_claim,
    turn,
)

A, B = NodeId(1), NodeId(2)


async def test_a_start_writes_the_row_and_its_first_events(store: Store) -> None:
    first = start(1, workflow_id="order-1", owner=A, wake_at_us=7, priority=3, format=2, at_us=11, count=2, turn_id=5)

    assert await commit_one(store, first) is Answer.COMMITTED

    assert await store.run(run_id(1)) == RunRow(
        run_id=run_id(1),
        namespace=NAMESPACE,
        workflow_id=WorkflowId("order-1"),
        workflow=WORKFLOW,
        queue=QUEUE,
        status=RunStatus.OPEN,
        owner=A,
        next_event=3,
        turn_id=TurnId(5),
        wake_at_us=7,
        claims=0,
        priority=3,
        kind="python",
        format=2,
        started_at_us=11,
        closed_at_us=None,
        error=None,
    )
    assert await store.history(run_id(1)) == [JournalRow(run_id(1), 1, 2, TurnId(5), 11, events(2))]


async def test_a_run_may_be_created_and_closed_by_one_commit(store: Store) -> None:
    await store.commit([start(1, owner=A, status=RunStatus.COMPLETED, at_us=4)])

    closed = await row(store, 1)
    assert (closed.status, closed.owner, closed.closed_at_us) == (RunStatus.COMPLETED, None, 4)
    assert await commit_one(store, start(2, workflow_id="order-1")) is Answer.COMMITTED


async def test_the_owner_appends_where_it_stands(store: Store) -> None:
    await store.commit([start(1, owner=A)])

    assert await commit_one(store, turn(1, A, 2, count=3, turn_id=8)) is Answer.COMMITTED
    assert await commit_one(store, turn(1, A, 5, turn_id=9)) is Answer.COMMITTED

    after = await row(store, 1)
    assert (after.next_event, after.turn_id, after.owner) == (6, 9, A)
    assert await marks(store, 1) == [(1, 1, None), (2, 3, 8), (5, 1, 9)]


@pytest.mark.parametrize("fence", [Fence(B, 2), Fence(A, 1), Fence(A, 3)], ids=["another owner", "behind", "ahead"])
async def test_a_commit_whose_fence_does_not_hold_writes_nothing(store: Store, fence: Fence) -> None:
    await store.commit([start(1, owner=A)])
    await store.send([mail(1, "m")])
    (letter,) = await store.mail_for([run_id(1)])
    before = await row(store, 1)

    for status, back in [(None, None), (RunStatus.FAILED, None), (None, Release(9, "boom"))]:
        zombie = turn(
            1, fence.owner, fence.next_event, status=status, release=back, consume=[letter.mail_id], add_tasks=[task()]
        )
        assert await commit_one(store, zombie) is Answer.FENCED

    assert await row(store, 1) == before
    assert await marks(store, 1) == [(1, 1, None)]
    assert await store.mail_for([run_id(1)]) == [letter]
    assert await store.tasks_of([run_id(1)]) == {}


async def test_a_commit_without_events_passes_the_same_fence(store: Store) -> None:
    await store.commit([start(1, owner=A)])

    assert await commit_one(store, turn(1, B, 2, count=0)) is Answer.FENCED
    assert await commit_one(store, turn(1, A, 2, count=0, turn_id=4)) is Answer.COMMITTED

    after = await row(store, 1)
    assert (after.next_event, after.turn_id) == (2, 4)
    assert await marks(store, 1) == [(1, 1, None)]


async def test_nobody_commits_to_a_run_without_owner_a_closed_run_or_none_at_all(store: Store) -> None:
    await store.commit([start(1), start(2, owner=A)])
    await store.commit([turn(2, A, 2, status=RunStatus.COMPLETED)])

    answers = await store.commit([turn(1, A, 2), turn(2, A, 3), turn(3, A, 1)])

    assert answers == [Answer.FENCED] * 3
    assert await store.run(run_id(3)) is None
    assert await store.history(run_id(3)) == []


@pytest.mark.parametrize("size", [1, 2, 7, 65, 300])
async def test_losers_write_nothing_and_fail_nobody_else(store: Store, size: int) -> None:
    await store.commit([start(number, owner=A) for number in range(size)])
    lost = {0, size // 2, size - 1}

    answers = await store.commit([turn(number, B if number in lost else A, 2) for number in range(size)])

    assert answers == [Answer.FENCED if number in lost else Answer.COMMITTED for number in range(size)]
    assert [(await row(store, number)).next_event for number in range(size)] == [
        2 if number in lost else 3 for number in range(size)
    ]
    assert [len(await store.history(run_id(number))) for number in range(size)] == [
        1 if number in lost else 2 for number in range(size)
    ]


async def test_an_empty_batch_is_answered(store: Store) -> None:
    assert await store.commit([]) == []
    assert await store.send([]) == []


async def test_every_kind_of_answer_in_one_batch(store: Store) -> None:
    await store.commit([start(number, owner=A) for number in range(5)])
    await store.send([mail(2, "m")])

    answers = await store.commit(
        [
            turn(0, A, 2, add_tasks=[task()]),
            turn(1, B, 2, add_tasks=[task()]),
            turn(2, A, 2, status=RunStatus.COMPLETED),
            start(9, workflow_id="order-0"),
            turn(3, A, 2, status=RunStatus.FAILED),
            start(10, workflow_id="order-10"),
            release(4, A, 2),
        ]
    )

    assert answers == [
        Answer.COMMITTED,
        Answer.FENCED,
        Answer.MAIL_WAITING,
        Answer.ID_IN_USE,
        Answer.COMMITTED,
        Answer.COMMITTED,
        Answer.COMMITTED,
    ]
    assert await store.tasks_of([run_id(number) for number in range(5)]) == {run_id(0): ["1"]}


async def test_a_workflow_id_is_taken_while_its_run_is_open(store: Store) -> None:
    await store.commit([start(1, workflow_id="w", owner=A)])

    assert await commit_one(store, start(2, workflow_id="w")) is Answer.ID_IN_USE
    assert await store.run(run_id(2)) is None
    assert await store.history(run_id(2)) == []

    await store.commit([turn(1, A, 2, status=RunStatus.COMPLETED)])
    assert await commit_one(store, start(2, workflow_id="w")) is Answer.COMMITTED


async def test_a_workflow_id_may_be_refused_for_ever(store: Store) -> None:
    await store.commit([start(1, workflow_id="w", owner=A)])
    never = start(2, workflow_id="w", id_reuse=IdReuse.NEVER)

    assert await commit_one(store, never) is Answer.ID_IN_USE
    await store.commit([turn(1, A, 2, status=RunStatus.COMPLETED)])
    assert await commit_one(store, never) is Answer.ID_IN_USE
    assert await commit_one(store, start(3, workflow_id="v", id_reuse=IdReuse.NEVER)) is Answer.COMMITTED


async def test_two_starts_with_one_workflow_id_in_one_batch(store: Store) -> None:
    answers = await store.commit([start(1, workflow_id="w"), start(2, workflow_id="w"), start(3, workflow_id="v")])

    assert answers == [Answer.COMMITTED, Answer.ID_IN_USE, Answer.COMMITTED]


async def test_a_run_id_is_used_once(store: Store) -> None:
    await store.commit([start(1, workflow_id="w", owner=A), start(2, owner=A, status=RunStatus.COMPLETED)])

    assert await commit_one(store, start(1, workflow_id="v")) is Answer.ID_IN_USE
    assert await commit_one(store, start(2, workflow_id="v")) is Answer.ID_IN_USE
    assert (await row(store, 1)).workflow_id == "w"
    assert await marks(store, 1) == [(1, 1, None)]


async def test_namespaces_do_not_share_workflow_ids(store: Store) -> None:
    other = Namespace("other")
    answers = await store.commit([start(1, workflow_id="w"), start(2, workflow_id="w", namespace=other)])

    assert answers == [Answer.COMMITTED, Answer.COMMITTED]


async def test_closing_frees_the_run_and_removes_its_tasks(store: Store) -> None:
    await store.commit([start(1, owner=A, wake_at_us=5, add_tasks=[task("1"), task("2")])])

    last = turn(1, A, 2, status=RunStatus.TERMINATED, at_us=77, add_tasks=[task("3")])
    assert await commit_one(store, last) is Answer.COMMITTED

    closed = await row(store, 1)
    assert (closed.status, closed.owner, closed.wake_at_us) == (RunStatus.TERMINATED, None, None)
    assert (closed.closed_at_us, closed.next_event) == (77, 3)
    assert await store.tasks_of([run_id(1)]) == {}
    node = await store.join("n")
    assert await claimed(store, claim(node)) == []
    assert await store.claim_tasks(task_claim(node)) == []


async def test_a_released_run_waits_until_it_is_due(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, owner=node)])

    assert await commit_one(store, release(1, node, 2, wake_at_us=50)) is Answer.COMMITTED

    after = await row(store, 1)
    assert (after.owner, after.wake_at_us, after.status) == (None, 50, RunStatus.OPEN)
    assert await claimed(store, claim(node, now_us=49)) == []
    assert await claimed(store, claim(node, now_us=50)) == [run_id(1)]


async def test_the_error_of_a_failed_turn_stays_until_the_next_good_one(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, owner=node)])

    await store.commit([release(1, node, 2, wake_at_us=0, error="boom")])
    assert (await row(store, 1)).error == "boom"
    await store.claim(claim(node))
    assert (await row(store, 1)).error == "boom"
    await store.commit([turn(1, node, 2, count=0)])
    assert (await row(store, 1)).error == "boom"
    await store.commit([release(1, node, 2, wake_at_us=0, error="bang")])
    assert (await row(store, 1)).error == "bang"
    await store.claim(claim(node))
    await store.commit([turn(1, node, 2)])
    assert (await row(store, 1)).error is None


async def test_a_release_without_an_error_clears_it(store: Store) -> None:
    """Else the run would count as parked for ever, and no mail would wake it."""
    node = await store.join("n")
    await store.commit([start(1, owner=node)])
    await store.commit([release(1, node, 2, wake_at_us=0, error="boom")])
    await store.claim(claim(node))

    await store.commit([release(1, node, 2)])

    assert (await row(store, 1)).error is None
    await store.send([mail(1, "m")])
    assert await claimed(store, claim(node)) == [run_id(1)]


async def test_claims_are_counted_while_the_run_is_only_parked(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1)])
    for expected in (1, 2):
        await store.claim(claim(node))
        assert (await row(store, 1)).claims == expected
        await store.commit([release(1, node, 2, wake_at_us=0, error="boom")])
        assert (await row(store, 1)).claims == expected


@pytest.mark.parametrize("count", [1, 0], ids=["events", "no events"])
@pytest.mark.parametrize("released", [False, True], ids=["kept", "given back"])
async def test_claims_are_forgotten_when_a_run_makes_progress(store: Store, count: int, released: bool) -> None:
    """To be given back in order is progress; so is a commit that had nothing to write but passed the fence."""
    node = await store.join("n")
    await store.commit([start(1), start(2)])
    await store.claim(claim(node))

    given_back = Release(7) if released else None
    await store.commit([turn(1, node, 2, count=count, release=given_back)])

    assert [(await row(store, n)).claims for n in (1, 2)] == [0, 1]


async def test_the_turn_of_the_last_commit_is_to_be_seen(store: Store) -> None:
    """After CommitUnknown this is how a node finds out; so a release shows its turn too."""
    await store.commit([start(1, owner=A)])
    assert (await row(store, 1)).turn_id is None

    await store.commit([turn(1, A, 2, turn_id=2**62)])
    assert (await row(store, 1)).turn_id == 2**62
    await store.commit([turn(1, A, 3, turn_id=None)])
    assert (await row(store, 1)).turn_id == 2**62
    await store.commit([turn(1, A, 4, count=0, turn_id=44, release=Release(None))])
    assert (await row(store, 1)).turn_id == 44


@pytest.mark.parametrize("workflow_id", ['a"b\\c', "Ünï-✓-🎉", "x" * 5_000, " ", "a'b", "%s{}\n\t"])
async def test_any_text_is_a_workflow_id(store: Store, workflow_id: str) -> None:
    await store.commit([start(1, workflow_id=workflow_id, owner=A)])

    assert (await row(store, 1)).workflow_id == workflow_id
    assert await commit_one(store, start(2, workflow_id=workflow_id)) is Answer.ID_IN_USE


async def test_what_is_not_text_is_refused_before_anything_is_written(store: Store) -> None:
    bad = Commit(run_id(1), None, 1, b"\xff", 1, create=start(1).create)

    with pytest.raises(InvalidArgument, match="not UTF-8"):
        await store.commit([start(2), bad])
    with pytest.raises(InvalidArgument, match="message m"):
        await store.send([mail(1, "m", body=b"\xff")])

    assert await store.run(run_id(1)) is None
    assert await store.run(run_id(2)) is None


async def test_events_come_back_byte_for_byte(store: Store) -> None:
    text = '[{"type":"X","text":"Grüße \\u0000 \\" \\\\ 🎉 \u2028"}]'.encode()
    await store.commit([Commit(run_id(1), None, 1, text, 1, create=start(1).create)])

    (only,) = await store.history(run_id(1))
    assert only.events == text


BROKEN: list[Callable[[], Commit]] = [
    lambda: Commit(run_id(1), None, 1, b"[]", 1),
    lambda: Commit(run_id(1), None, 1, b"[]", 1, create=start(1).create, fence=Fence(A, 1)),
    lambda: Commit(run_id(1), None, 1, b"", 0, create=start(1).create),
    lambda: Commit(run_id(1), None, 1, b"", 1, fence=Fence(A, 1)),
    lambda: Commit(run_id(1), None, 1, b"[]", 0, fence=Fence(A, 1)),
    lambda: turn(1, A, 1, status=RunStatus.FAILED, release=Release(None)),
    lambda: turn(1, A, 1, status=RunStatus.OPEN),
    lambda: turn(1, A, 1, add_tasks=[task("1"), task("1")]),
    lambda: replace(start(1), replies=(NewReply(MessageId("m"), b"1"),)),
    lambda: replace(turn(1, A, 1), replies=(NewReply(MessageId("m"), b"1"), NewReply(MessageId("m"), b"2"))),
    lambda: start(1, mail=["m"], status=RunStatus.FAILED),
    lambda: start(1, mail=["m", "n", "m"]),
    lambda: start(1, priority=1 << 63),
    lambda: start(1, priority=-1 << 63),
]


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_commit_that_makes_no_sense_is_a_bug(store: Store, broken: Callable[[], Commit]) -> None:
    with pytest.raises(AssertionError):
        await store.commit([broken()])
    assert await store.run(run_id(1)) is None


async def test_a_run_occurs_once_in_a_batch(store: Store) -> None:
    await store.commit([start(1, owner=A)])

    with pytest.raises(AssertionError, match="twice"):
        await store.commit([turn(1, A, 2), turn(1, A, 3)])

    assert (await row(store, 1)).next_event == 2


async def test_mail_that_was_sent_in_time_is_not_lost_when_the_run_closes(store: Store) -> None:
    await store.commit([start(1, owner=A)])
    assert await store.send([mail(1, "m")]) == [Sent.ACCEPTED]
    (letter,) = await store.mail_of(A, 10)

    assert await commit_one(store, turn(1, A, 2, status=RunStatus.COMPLETED)) is Answer.MAIL_WAITING
    assert (await row(store, 1)).status is RunStatus.OPEN
    assert await marks(store, 1) == [(1, 1, None)]

    last = turn(1, A, 2, status=RunStatus.COMPLETED, consume=[letter.mail_id])
    assert await commit_one(store, last) is Answer.COMMITTED
    assert await store.mail_for([run_id(1)]) == []
    assert await store.send([mail(1, "late")]) == [Sent.CLOSED]


async def test_mail_that_was_sent_in_time_is_not_lost_when_the_run_is_released(store: Store) -> None:
    await store.commit([start(1, owner=A)])
    await store.send([mail(1, "m"), mail(1, "n")])
    first, second = await store.mail_of(A, 10)

    half = turn(1, A, 2, release=Release(None), consume=[first.mail_id])
    assert await commit_one(store, half) is Answer.MAIL_WAITING
    assert await store.mail_for([run_id(1)]) == [first, second]
    assert (await row(store, 1)).owner == A

    both = turn(1, A, 2, release=Release(None), consume=[first.mail_id, second.mail_id])
    assert await commit_one(store, both) is Answer.COMMITTED


async def test_a_copy_of_a_commit_without_events_that_arrives_late_is_fenced(store: Store) -> None:
    """The caller had given up on it and written it again, while the database was still at work on the first one."""
    await store.commit([start(1, owner=A)])
    dispatch = turn(1, A, 2, count=0, turn_id=7, add_tasks=[task("1")])
    assert await commit_one(store, dispatch) is Answer.COMMITTED

    assert await commit_one(store, dispatch) is Answer.FENCED
    assert await commit_one(store, turn(1, A, 2, count=0, turn_id=8, drop_tasks=["1"])) is Answer.COMMITTED
    assert await commit_one(store, dispatch) is Answer.FENCED
    assert await store.tasks_of([run_id(1)]) == {}
    assert await commit_one(store, release(1, A, 2)) is Answer.COMMITTED
