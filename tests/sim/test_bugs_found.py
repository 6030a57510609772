"""Bugs that the simulator has found, each as the smallest scenario that shows it (seeds: `sim/regressions.py`)."""

from __future__ import annotations

import asyncio

import pytest

from faults import FaultyStore
from outlast import Retry, WorkflowFailed, activity, workflow
from outlast.model.events import WorkflowExecutionStarted, encode_events
from outlast.model.ids import DEFAULT_NAMESPACE, ActivityId, MessageId, RunId, WorkflowId, turn_id
from outlast.sdk.client import Client
from outlast.store.api import Answer, Commit, Fence, NewMail, NewRun, NewTask, Task, TaskClaim
from outlast.store.memory import MemoryStore
from runtime.world import membership_of, until
from virtual import VirtualClock, client_on, run_virtual

begun: list[tuple[str, int]] = []
"""Activities whose code was entered, and which attempt it was."""


@pytest.fixture(autouse=True)
def nothing_begun() -> None:
    begun.clear()


@activity(retry=Retry.never())
async def at_most_once() -> None:
    begun.append(("at most once", activity.info().attempt))
    await asyncio.sleep(3600)


@activity(retry=Retry(initial_interval=0))
async def slowly(name: str) -> None:
    begun.append((name, activity.info().attempt))
    await asyncio.sleep(3600 if activity.info().attempt == 1 else 0)


@activity
async def quickly() -> None:
    begun.append(("quickly", activity.info().attempt))


@workflow
async def once() -> None:
    await at_most_once()


@workflow
async def in_time() -> None:
    await slowly("slowly")


@workflow
async def side_by_side() -> None:
    await asyncio.gather(slowly("slowly"), quickly())


@activity(retry=Retry(initial_interval=1, jitter=0))
async def fails_once() -> None:
    begun.append(("fails once", activity.info().attempt))
    if activity.info().attempt == 1:
        raise ConnectionError("not yet")


@activity
async def for_a_while() -> None:
    begun.append(("for a while", activity.info().attempt))
    await asyncio.sleep(0.9)


@workflow
async def retried_beside() -> None:
    await asyncio.gather(fails_once(), for_a_while())


HOSTED = (
    once, in_time, side_by_side, retried_beside, at_most_once, slowly, quickly, fails_once, for_a_while,
)  # fmt: skip


async def die_during(client: Client, target: object, count: int = 1) -> None:
    """Host a run in a process that dies when so many activities have begun."""
    await client.worker(*HOSTED).__aenter__()
    await client.start(target, id="x")  # type: ignore[call-overload]
    await until(lambda: len(begun) == count)
    membership_of(client).abandon()


@pytest.mark.parametrize("behind_us", [200_000, 60_000_000])
def test_an_attempt_that_began_is_lost_also_for_an_owner_whose_clock_is_behind(behind_us: int) -> None:
    async def scenario() -> None:
        data, behind = MemoryStore(), VirtualClock()
        behind.jump_us = -behind_us
        async with client_on(data.connect()) as client:
            await die_during(client, once)
        async with client_on(data.connect(), behind) as client, client.worker(*HOSTED):
            with pytest.raises(WorkflowFailed):
                await (await client.handle("x")).result()

    run_virtual(scenario())
    assert begun == [("at most once", 1)]


def test_a_loss_is_not_forgotten_when_the_first_commit_of_the_new_owner_cannot_be_written() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client:
            await die_during(client, in_time)
        store = FaultyStore(data.connect())
        store.fail("commit", ZeroDivisionError("a bug in the store"))
        async with client_on(store) as client, client.worker(*HOSTED):  # type: ignore[arg-type]
            await (await client.handle("x")).result()
        assert store.used_up()

    run_virtual(scenario())
    assert begun == [("slowly", 1), ("slowly", 2)]


def test_no_attempt_begins_while_its_run_is_being_parked() -> None:
    """The commit of one activity's end has failed. While it goes to the mailbox, another one's retry is due."""

    async def scenario() -> None:
        store = FaultyStore(MemoryStore())
        async with client_on(store) as client, client.worker(*HOSTED):  # type: ignore[arg-type]
            handle = await client.start(retried_beside, id="x")
            await asyncio.sleep(0.5)  # the first attempt's failure is journaled, its retry due in half a second
            store.fail("commit", ZeroDivisionError("a bug in the store"))
            gate = store.gate("send", written=True)
            await gate.reached.wait()
            await asyncio.sleep(2)
            gate.open()
            await handle.result()
        assert store.used_up()

    run_virtual(scenario())
    assert sorted(begun) == [("fails once", 1), ("fails once", 2), ("for a while", 1)]


def test_the_end_of_an_attempt_finds_room_in_a_full_mailbox() -> None:
    async def scenario() -> None:
        store = FaultyStore(MemoryStore(mailbox_limit=1))
        async with client_on(store) as client:  # type: ignore[arg-type]
            async with client.worker(*HOSTED):
                handle = await client.start(side_by_side, id="x")
                store.fail("commit", ZeroDivisionError("a bug in the store"))  # that of the quick one's completion
                await handle.result()
        assert store.used_up()

    run_virtual(scenario())
    assert sorted(begun) == [("quickly", 1), ("slowly", 1), ("slowly", 2)]


def test_a_commit_without_events_that_arrives_twice_is_written_once() -> None:
    """The second time is the database's: it still worked on it when its caller had given up, and sent it again."""

    async def scenario() -> tuple[list[Answer], list[Answer], list[Task]]:
        store = MemoryStore()
        await store.open()
        node = await store.join("n")
        run_id, started = RunId("r"), WorkflowExecutionStarted("w", WorkflowId("x"), "q")
        new = NewRun(DEFAULT_NAMESPACE, WorkflowId("x"), "w", "q", node, None)
        await store.commit([Commit(run_id, turn_id(node, 1), 1, encode_events([started]), 1, create=new)])
        task = NewTask(ActivityId("1"), "a", "q", 1, 0, b"{}")
        dispatch = Commit(run_id, turn_id(node, 2), 2, fence=Fence(node, 2), add_tasks=(task,))
        first = await store.commit([dispatch])
        wanted = TaskClaim(node, DEFAULT_NAMESPACE, ("q",), ("a",), 3, 1)
        (claimed,) = await store.claim_tasks(wanted)
        await store.deliver(node, claimed, NewMail(run_id, MessageId("activity/1/1"), 4, b"{}"))
        second = await store.commit([dispatch])
        return first, second, await store.claim_tasks(wanted)

    first, second, again = run_virtual(scenario())
    assert (first, second, again) == ([Answer.COMMITTED], [Answer.FENCED], [])
