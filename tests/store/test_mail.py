"""What every store promises about mail: what was acknowledged waits until its owner takes it, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from outlast.model.errors import InvalidArgument
from outlast.model.ids import MessageId, NodeId
from outlast.store.api import Answer, Release, RunStatus, Sent, Store
from store.building import CANCEL, claim, claimed, commit_one, mail, release, row, run_id, start, turn
from store.conftest import Database, make_database

A, B = NodeId(1), NodeId(2)


async def test_mail_waits_for_the_owner_of_its_run(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=B), start(3)])

    sent = await store.send([mail(1, "m", at_us=9, body=b'{"n":1}'), mail(2, "m"), mail(3, "m"), mail(1, "n")])

    assert sent == [Sent.ACCEPTED] * 4
    mine = await store.mail_of(A, 10)
    assert [(each.run_id, each.message_id) for each in mine] == [(run_id(1), "m"), (run_id(1), "n")]
    assert (mine[0].at_us, mine[0].body) == (9, b'{"n":1}')
    assert [each.mail_id for each in mine] == sorted(each.mail_id for each in mine)
    assert [each.run_id for each in await store.mail_of(B, 10)] == [run_id(2)]
    assert await store.mail_of(A, 1) == mine[:1]
    assert await store.mail_for([run_id(1)]) == mine
    assert [each.run_id for each in await store.mail_for([run_id(3), run_id(2)])] == [run_id(2), run_id(3)]
    assert await store.mail_for([]) == []


async def test_mail_for_a_run_that_does_not_exist_or_is_closed_is_refused(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])
    await store.commit([turn(2, A, 2, status=RunStatus.FAILED)])

    sent = await store.send([mail(1, "a"), mail(2, "a"), mail(3, "a"), mail(1, "b")])

    assert sent == [Sent.ACCEPTED, Sent.CLOSED, Sent.NO_SUCH_RUN, Sent.ACCEPTED]
    assert [each.message_id for each in await store.mail_of(A, 10)] == ["a", "b"]


async def test_a_message_that_waits_already_is_acknowledged_and_not_put_twice(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])
    await store.send([mail(1, "m", body=b'"first"')])

    assert await store.send([mail(1, "m", body=b'"again"'), mail(2, "m"), mail(2, "m")]) == [Sent.ACCEPTED] * 3

    assert [(each.run_id, each.body) for each in await store.mail_of(A, 10)] == [
        (run_id(1), b'"first"'),
        (run_id(2), b'{"type":"CancelRequested"}'),
    ]


async def test_mail_is_consumed_by_exact_ids_and_only_of_its_own_run(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])
    await store.send([mail(1, "a"), mail(2, "a"), mail(1, "b"), mail(1, "c")])
    a, of_another, b, c = await store.mail_of(A, 10)

    taken = turn(1, A, 2, consume=[a.mail_id, c.mail_id, of_another.mail_id, 10**6])
    assert await commit_one(store, taken) is Answer.COMMITTED

    assert await store.mail_of(A, 10) == [of_another, b]


async def test_mail_follows_its_run_to_the_next_owner(store: Store) -> None:
    first, second = await store.join("first"), await store.join("second")
    await store.commit([start(1, owner=first)])
    await store.send([mail(1, "before")])
    await store.declare_dead(first)

    assert await claimed(store, claim(second)) == [run_id(1)]
    await store.send([mail(1, "after")])

    assert await store.mail_of(first, 10) == []
    assert [each.message_id for each in await store.mail_of(second, 10)] == ["before", "after"]


async def test_mail_for_a_run_without_owner_belongs_to_whoever_claims_it(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, wake_at_us=None)])
    assert await claimed(store, claim(node)) == []
    await store.send([mail(1, "m")])
    assert await store.mail_of(node, 10) == []

    assert await claimed(store, claim(node)) == [run_id(1)]

    assert [each.message_id for each in await store.mail_of(node, 10)] == ["m"]


async def test_a_run_is_parked_in_spite_of_mail_and_mail_does_not_wake_it(store: Store) -> None:
    node = await store.join("n")
    await store.commit([start(1, owner=node)])
    await store.send([mail(1, "m")])

    assert await commit_one(store, release(1, node, 2, wake_at_us=50, error="boom")) is Answer.COMMITTED

    await store.send([mail(1, "n")])
    assert await store.mail_of(node, 10) == []
    assert await claimed(store, claim(node, now_us=49)) == []
    assert await claimed(store, claim(node, now_us=50)) == [run_id(1)]
    assert [each.message_id for each in await store.mail_of(node, 10)] == ["m", "n"]


async def test_mail_that_was_taken_is_not_in_the_way_of_the_end(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])
    await store.send([mail(1, "m"), mail(2, "m")])
    one, two = await store.mail_of(A, 10)

    answers = await store.commit(
        [
            turn(1, A, 2, status=RunStatus.COMPLETED, consume=[one.mail_id]),
            turn(2, A, 2, release=Release(None), consume=[two.mail_id]),
        ]
    )

    assert answers == [Answer.COMMITTED, Answer.COMMITTED]
    assert await store.mail_for([run_id(1), run_id(2)]) == []
    assert (await row(store, 2)).owner is None


async def test_a_start_brings_its_first_messages_along(store: Store) -> None:
    await store.commit([start(9, owner=A)])
    names = ["m9", "m10", "a", "z", "b"]

    assert await commit_one(store, start(1, owner=A, at_us=7, mail=names)) is Answer.COMMITTED

    mine = await store.mail_of(A, 10)
    assert [(each.run_id, each.message_id, each.at_us) for each in mine] == [(run_id(1), name, 7) for name in names]
    assert {each.body for each in mine} == {CANCEL}
    assert await store.send([mail(1, "a", body=b'"again"'), mail(1, "later")]) == [Sent.ACCEPTED] * 2
    assert [each.message_id for each in await store.mail_for([run_id(1)])] == [*names, "later"]
    assert await commit_one(store, turn(1, A, 2, status=RunStatus.COMPLETED)) is Answer.MAIL_WAITING
    taken = [each.mail_id for each in await store.mail_for([run_id(1)])]
    assert await commit_one(store, turn(1, A, 2, status=RunStatus.COMPLETED, consume=taken)) is Answer.COMMITTED


async def test_a_start_without_an_owner_is_woken_by_the_mail_that_it_brings_along(store: Store) -> None:
    node = await store.join("n")
    await store.commit(
        [
            start(1, wake_at_us=None, at_us=30, mail=["m", "n"]),
            start(2, wake_at_us=20),
            start(3, wake_at_us=None),
            start(4, wake_at_us=90, at_us=10, mail=["m"]),
        ]
    )
    assert await store.mail_of(node, 10) == []

    assert await claimed(store, claim(node, now_us=50)) == [run_id(4), run_id(2), run_id(1)]

    assert [(each.run_id, each.message_id) for each in await store.mail_of(node, 10)] == [
        (run_id(1), "m"),
        (run_id(1), "n"),
        (run_id(4), "m"),
    ]


async def test_a_start_whose_id_is_in_use_puts_nothing_into_any_mailbox(store: Store) -> None:
    await store.commit([start(1, owner=A), start(2, owner=A)])

    answers = await store.commit(
        [
            start(1, workflow_id="new", owner=A, mail=["m"]),
            start(3, workflow_id="order-2", owner=A, mail=["m"]),
            start(4, owner=A, mail=["m"]),
            start(5, workflow_id="order-1", mail=["m"]),
        ]
    )

    assert answers == [Answer.ID_IN_USE, Answer.ID_IN_USE, Answer.COMMITTED, Answer.ID_IN_USE]
    assert [each.run_id for each in await store.mail_for([run_id(number) for number in range(9)])] == [run_id(4)]


async def test_mail_that_a_start_brings_along_comes_back_byte_for_byte(store: Store) -> None:
    text = '{"text":"Grüße \\u0000 \\" \\\\ \' 🎉 \u2028"}'.encode()
    first = start(1, owner=A, mail=['a"b\\c', "Ünï-✓-🎉"])
    assert first.create is not None
    letters = tuple((message_id, text) for message_id, _ in first.create.mail)

    await store.commit([replace(first, create=replace(first.create, mail=letters))])

    assert [(each.message_id, each.body) for each in await store.mail_of(A, 10)] == list(letters)


async def test_mail_of_a_start_that_is_not_text_is_refused_before_anything_is_written(store: Store) -> None:
    bad = start(2, owner=A, mail=["m"])
    assert bad.create is not None
    bad = replace(bad, create=replace(bad.create, mail=((MessageId("m"), b"\xff"),)))

    with pytest.raises(InvalidArgument, match="message m is not UTF-8"):
        await store.commit([start(1, owner=A, mail=["m"]), bad])

    assert await store.run(run_id(1)) is None
    assert await store.mail_of(A, 10) == []


@pytest.fixture
async def small(kind: str, tmp_path: Path) -> Database:
    return make_database(kind, tmp_path, mailbox_limit=3)


async def test_a_full_mailbox_refuses_new_messages_and_knows_the_old_ones(small: Database) -> None:
    store = await small.connect()
    await store.commit([start(1, owner=A), start(2, owner=A)])

    sent = await store.send([mail(1, name) for name in "abcde"] + [mail(1, "a"), mail(2, "a")])

    assert sent == [Sent.ACCEPTED] * 3 + [Sent.FULL] * 2 + [Sent.ACCEPTED] * 2
    waiting = await store.mail_for([run_id(1)])
    assert [each.message_id for each in waiting] == ["a", "b", "c"]
    await store.commit([turn(1, A, 2, consume=[waiting[0].mail_id])])
    assert await store.send([mail(1, "d")]) == [Sent.ACCEPTED]
    await small.close()


async def test_the_limit_of_mailboxes_does_not_count_for_the_mail_of_a_start(small: Database) -> None:
    store = await small.connect()

    assert await commit_one(store, start(1, owner=A, mail=list("abcde"))) is Answer.COMMITTED

    assert len(await store.mail_of(A, 10)) == 5
    assert await store.send([mail(1, "f"), mail(1, "a")]) == [Sent.FULL, Sent.ACCEPTED]
    await small.close()


async def test_many_messages_at_once(store: Store) -> None:
    await store.commit([start(1, owner=A)])

    sent = await store.send([mail(1 if number % 100 else 2, f"m{number}") for number in range(600)])

    assert [number for number, each in enumerate(sent) if each is not Sent.ACCEPTED] == [0, 100, 200, 300, 400, 500]
    assert len(await store.mail_of(A, 1_000)) == 594


async def test_what_has_no_sender_who_could_try_again_goes_into_a_full_mailbox(small: Database) -> None:
    store = await small.connect()
    await store.commit([start(1, owner=A)])
    await store.send([mail(1, f"m{number}") for number in range(3)])

    sent = await store.send([mail(1, "m9"), replace(mail(1, "activity/1/1"), beyond_limit=True)])

    assert sent == [Sent.FULL, Sent.ACCEPTED]
    assert [each.message_id for each in await store.mail_for([run_id(1)])] == ["m0", "m1", "m2", "activity/1/1"]
    await small.close()
