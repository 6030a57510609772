"""Messages: what was acknowledged is in a history exactly once, whatever its run is doing at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from world import (
    HOSTED,
    add_one,
    client_with_faults,
    executed,
    membership_of,
    names,
    nap,
    nap_then_step,
    stubborn,
    until,
)

from outlast import CommitUnknown, RunClosed, WorkflowCancelled, WorkflowTerminated, workflow
from outlast.model.ids import MessageId, RunId
from outlast.model.inputs import CancelRequested, encode_message
from outlast.sdk.client import Client
from outlast.sdk.handle import Handle
from outlast.store.api import NewMail
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 20_000))


async def send(client: Client, handle: Handle[Any], body: bytes, message_id: str) -> None:
    (sent,) = await client.service.store.send([NewMail(RunId(handle.run_id), MessageId(message_id), 0, body)])
    assert sent.value == "accepted"


@pytest.mark.parametrize("verb", ["cancel", "terminate"])
@pytest.mark.parametrize("unknown", [False, True], ids=["known", "commit unknown"])
def test_a_message_that_comes_while_its_run_closes_is_in_the_history(verb: str, unknown: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as sender:
            async with client.worker(*HOSTED):
                handle = await client.start(nap, 1)
                gate = store.gate("commit")  # the one that closes
                await gate.reached.wait()
                theirs = await sender.handle(handle.id)
                await getattr(theirs, verb)("now")
                await getattr(theirs, verb)("and again")
                if unknown:
                    store.fail("commit", CommitUnknown("cut"))
                gate.open()
                assert await handle.result() == "rested"
                assert (await names(handle))[-4:] == [
                    "TimerFired",
                    "MessageUnhandled",
                    "MessageUnhandled",
                    "WorkflowExecutionCompleted",
                ]
                assert store.used_up()
                assert data._data.mailboxes[RunId(handle.run_id)] == []
                with pytest.raises(RunClosed):
                    await getattr(theirs, verb)("too late")

    virtually(scenario())


def test_a_message_that_comes_while_its_run_is_evicted_keeps_it() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as sender:
            async with client.worker(*HOSTED):
                handle = await client.start(nap, 3600)
                gate = store.gate("commit")
                await gate.reached.wait()
                await (await sender.handle(handle.id)).cancel("stop")
                gate.open()
                claims = store.calls["histories"]
                with pytest.raises(WorkflowCancelled):
                    await asyncio.wait_for(handle.result(), 2)
                assert store.calls["histories"] == claims, "it stayed in memory"

    virtually(scenario())


def test_a_message_wakes_a_run_that_sleeps_in_the_database() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client_on(data.connect()) as sender, client.worker(*HOSTED):
            handle = await client.start(nap, 3600)
            await until(lambda: not membership_of(client).node.hosted)
            await (await sender.handle(handle.id)).terminate("enough")
            with pytest.raises(WorkflowTerminated, match="enough"):
                await asyncio.wait_for(handle.result(), 2)

    virtually(scenario())


def test_a_lost_hint_costs_a_moment_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hint ever arrives: neither between processes nor within one."""

    async def scenario() -> None:
        data = MemoryStore()
        monkeypatch.setattr(MemoryStore, "on_change", lambda self, callback: None)
        monkeypatch.setattr("outlast.runtime.membership.Membership.hint", lambda self: None)
        async with client_on(data.connect()) as client, client_on(data.connect()) as sender, client.worker(*HOSTED):
            handle = await sender.start(nap, 3600)
            waiting = asyncio.ensure_future(handle.result())
            await until(lambda: membership_of(client).node.hosted, within_s=0.5)
            await handle.cancel()
            with pytest.raises(WorkflowCancelled):
                await asyncio.wait_for(waiting, 1)

    virtually(scenario())


def test_a_message_sent_again_after_it_was_taken_is_applied_once() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED, nap_twice):
            handle = await client.start(nap_twice)
            body = encode_message(CancelRequested(MessageId("m1"), "once"))
            for _ in range(3):
                await send(client, handle, body, "m1")
                await send(client, handle, body, "m1")
                await asyncio.sleep(15)  # taken, and the run evicted
            assert await handle.result() == 1
            assert (await names(handle)).count("WorkflowExecutionCancelRequested") == 1

    virtually(scenario())


@workflow
async def nap_twice() -> int:
    cancelled = 0
    for _ in range(4):
        try:
            await workflow.sleep(60)
        except asyncio.CancelledError:
            cancelled += 1
    return cancelled


def test_mail_that_cannot_be_read_waits_and_holds_up_nobody_else() -> None:
    """From a newer release. Its run goes on with what can be read; it cannot end before a node reads that too."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client, client.worker(*HOSTED):
            handle = await client.start(nap_then_step, 5)
            await send(client, handle, b'{"type":"FromTheFuture"}', "m1")
            assert await client.execute(nap, 5) == "rested"
            await asyncio.sleep(60)
            row = await client.service.find_run(RunId(handle.run_id))
            assert row.status == "open"
            assert row.error is not None
            assert "FromTheFuture" in row.error
            # A newer node takes it:
            box = data._data.mailboxes[RunId(handle.run_id)]
            box[:] = [each for each in box if each.message_id != "m1"]
            assert await asyncio.wait_for(handle.result(), 70) == 2
            assert set(executed.values()) == {1}

    virtually(scenario())


def test_very_much_mail_that_cannot_be_read_does_not_hide_what_came_after_it() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED):
            full, other = await client.start(nap, 3_600), await client.start(stubborn)
            for n in range(5_000):
                await send(client, full, b'{"type":"FromTheFuture"}', f"m{n}")
            await other.cancel()
            assert await asyncio.wait_for(other.result(), 5) == "not cancelled"

    virtually(scenario())


def test_more_messages_than_a_turn_takes_are_all_taken_in_order() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED):
            handle = await client.start(stubborn)
            await asyncio.sleep(30)
            for n in range(1_500):
                await send(client, handle, encode_message(CancelRequested(MessageId(f"m{n}"), str(n))), f"m{n}")
            assert await handle.result() == "not cancelled"
            history = await handle.history()
            reasons = [getattr(getattr(each.event, "message", each.event), "reason", None) for each in history]
            assert [each for each in reasons if each is not None] == [str(n) for n in range(1_500)]

    virtually(scenario())


def test_a_result_that_waits_in_the_mailbox_survives_a_takeover() -> None:
    """The activity ran elsewhere and reported while its run's node was dead: it is neither lost nor run again."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as one, client_on(data.connect()) as far, client_on(data.connect()) as two:
            owner = one.worker(far_step)
            await owner.__aenter__()
            handle = await one.start(far_step)
            await until(lambda: data._data.tasks)
            membership_of(one).abandon()
            async with far.worker(add_one, queue="far"):
                await until(lambda: data._data.mailboxes.get(RunId(handle.run_id)), within_s=5)
            async with two.worker(far_step, *HOSTED):
                assert await (await two.handle(handle.id)).result() == 2
                assert await names(handle) == [
                    "WorkflowExecutionStarted",
                    "ActivityScheduled",
                    "ActivityCompleted",
                    "WorkflowExecutionCompleted",
                ]
                assert set(executed.values()) == {1}

    virtually(scenario())


@workflow
async def far_step() -> int:
    return await add_one.options(queue="far")(1)
