"""What every store promises about replies: one that can be read was given by a turn that is on disk."""

from __future__ import annotations

import asyncio

import pytest

from outlast.model.errors import InvalidArgument
from outlast.model.ids import MessageId, NodeId
from outlast.store.api import Answer, Release, RunStatus, Store
from store.building import commit_one, mail, run_id, start, turn
from store.conftest import TELLING, Database

A, B = NodeId(1), NodeId(2)


async def replies(store: Store, *message_ids: str) -> dict[str, bytes]:
    return {**await store.replies([MessageId(each) for each in message_ids])}


async def test_a_reply_is_found_by_the_message_that_it_answers(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])
    assert await replies(store, "a") == {}

    await store.commit([turn(1, A, 2, replies={"a": b"1", "b": b"2"}), turn(2, A, 2, replies={"c": b"3"})])

    assert await replies(store, "c", "a", "none", "a") == {"a": b"1", "c": b"3"}
    assert await replies(store, "b") == {"b": b"2"}
    assert await replies(store) == {}


ENDINGS = {
    "goes on": (None, None),
    "is given back": (None, Release(None)),
    "is parked": (None, Release(7, "boom")),
    "is closed": (RunStatus.COMPLETED, None),
}


@pytest.mark.parametrize("count", [1, 0], ids=["events", "no events"])
@pytest.mark.parametrize("how", ENDINGS)
async def test_a_reply_is_written_whatever_becomes_of_the_run_and_stays(store: Store, count: int, how: str) -> None:
    await store.commit([start(1, owner=A)])
    status, release = ENDINGS[how]

    last = turn(1, A, 2, count=count, status=status, release=release, replies={"m": b'"yes"'})
    assert await commit_one(store, last) is Answer.COMMITTED

    assert await replies(store, "m") == {"m": b'"yes"'}


@pytest.mark.parametrize("size", [1, 2, 7, 65, 300])
async def test_commits_that_do_not_hold_reply_nothing(store: Store, size: int) -> None:
    await store.commit([start(number, owner=A) for number in range(size)])
    fenced, stopped = {0, size // 2}, {size // 3, size - 1} - {0, size // 2}
    await store.send([mail(number, "m") for number in stopped])

    answers = await store.commit(
        [
            turn(
                number,
                B if number in fenced else A,
                2,
                status=RunStatus.FAILED if number in stopped else None,
                replies=None if number % 3 == 2 else {f"r{number}": b"1"},
            )
            for number in range(size)
        ]
    )

    assert answers == [
        Answer.FENCED if number in fenced else Answer.MAIL_WAITING if number in stopped else Answer.COMMITTED
        for number in range(size)
    ]
    assert set(await replies(store, *(f"r{number}" for number in range(size)))) == {
        f"r{number}" for number in range(size) if number not in fenced | stopped and number % 3 != 2
    }


async def test_replies_are_written_beside_starts_that_bring_mail(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])

    answers = await store.commit(
        [
            turn(1, A, 2, replies={"a": b"1"}),
            start(3, owner=B, mail=["m"]),
            turn(2, B, 2, replies={"b": b"1"}),
            start(4, workflow_id="order-2", owner=B, mail=["m"]),
            start(5, owner=B),
        ]
    )

    assert answers == [Answer.COMMITTED, Answer.COMMITTED, Answer.FENCED, Answer.ID_IN_USE, Answer.COMMITTED]
    assert await replies(store, "a", "b") == {"a": b"1"}
    assert [each.run_id for each in await store.mail_of(B, 10)] == [run_id(3)]


async def test_a_later_reply_to_the_same_message_takes_the_place_of_the_first(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])
    await store.commit([turn(1, A, 2, at_us=10, replies={"m": b"1"})])

    await store.commit([turn(2, A, 2, at_us=20, replies={"m": b"2"})])

    assert await replies(store, "m") == {"m": b"2"}
    assert await store.forget_replies(before_us=20, limit=10) == 0
    assert await store.forget_replies(before_us=21, limit=10) == 1


async def test_of_two_replies_to_one_message_in_one_batch_one_is_kept(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])

    batch = [turn(1, A, 2, replies={"m": b"1"}), turn(2, A, 2, replies={"m": b"2"})]
    assert await store.commit(batch) == [Answer.COMMITTED] * 2

    assert (await replies(store, "m"))["m"] in (b"1", b"2")
    assert await store.forget_replies(before_us=100, limit=10) == 1


async def test_a_copy_of_a_commit_that_arrives_late_replies_nothing(store: Store) -> None:
    """The reply may have been forgotten since, or another one was given."""
    await store.commit([start(1, owner=A)])
    answering = turn(1, A, 2, count=0, turn_id=7, replies={"m": b"1"})
    assert await commit_one(store, answering) is Answer.COMMITTED
    assert await store.forget_replies(before_us=100, limit=10) == 1

    assert await commit_one(store, answering) is Answer.FENCED

    assert await replies(store, "m") == {}


async def test_replies_are_forgotten_by_their_age_the_oldest_first(store: Store) -> None:
    await store.commit([start(1, owner=A)])
    for number, at_us in enumerate([40, 10, 30, 20, 20]):
        await store.commit([turn(1, A, 2, count=0, at_us=at_us, replies={f"m{number}": b"1"})])
    everything = [f"m{number}" for number in range(5)]

    assert await store.forget_replies(before_us=10, limit=10) == 0
    assert set(await replies(store, *everything)) == set(everything)
    assert await store.forget_replies(before_us=40, limit=2) == 2
    assert set(await replies(store, *everything)) == {"m0", "m2", "m4"}
    assert await store.forget_replies(before_us=40, limit=3) == 2
    assert set(await replies(store, *everything)) == {"m0"}
    assert await store.forget_replies(before_us=40, limit=3) == 0


TEXT = '{"text":"Grüße \\u0000 \\" \\\\ \' 🎉 \u2028","n":12345678901234567890}'.encode()


@pytest.mark.parametrize("message_id", ['a"b\\c', "Ünï-✓-🎉", "x" * 500, " ", "a'b", "%s{}\n\t"])
async def test_replies_come_back_byte_for_byte_for_any_message_id(store: Store, message_id: str) -> None:
    await store.commit([start(1, owner=A)])
    large = b'"' + b"x" * 1_000_000 + b'"'

    await store.commit([turn(1, A, 2, replies={message_id: TEXT, "large": large})])

    assert await replies(store, message_id, "large") == {message_id: TEXT, "large": large}


async def test_a_reply_that_is_not_text_is_refused_before_anything_is_written(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])

    with pytest.raises(InvalidArgument, match="reply to message m is not UTF-8"):
        await store.commit([turn(1, A, 2, replies={"n": b"1"}), turn(2, A, 2, replies={"m": b"\xff"})])

    assert await replies(store, "m", "n") == {}
    assert [len(await store.history(run_id(number))) for number in (1, 2)] == [1, 1]


async def test_replies_are_seen_by_other_stores_on_the_same_data(database: Database) -> None:
    store, other = await database.connect(), await database.connect()
    await store.commit([start(1, owner=A)])

    await store.commit([turn(1, A, 2, replies={"m": b"1"})])

    assert await replies(other, "m") == {"m": b"1"}
    assert await other.forget_replies(before_us=100, limit=1) == 1
    assert await replies(store, "m") == {}


@TELLING
async def test_a_store_that_waits_for_a_reply_hears_of_it(database: Database) -> None:
    store, other = await database.connect(), await database.connect()
    await other.commit([start(1, owner=A)])
    heard = asyncio.Event()
    store.on_change(heard.set)
    assert await replies(store, "m") == {}
    heard.clear()

    await other.commit([turn(1, A, 2, replies={"m": b"1"})])

    await asyncio.wait_for(heard.wait(), 30)
    assert await replies(store, "m") == {"m": b"1"}
