"""Bugs that the simulator has found, each as the smallest scenario that shows it (seeds: `sim/regressions.py`)."""

from __future__ import annotations

import asyncio

import pytest

from faults import FaultyStore
from outlast import ApplicationError, Retry, WorkflowFailed, activity, workflow
from outlast.model.errors import StoreUnavailable
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


# --- signals, queries, updates ----------------------------------------------------------------------------------------


@workflow
class Listens:
    def __init__(self) -> None:
        self.heard: list[int] = []

    @workflow.run
    async def run(self) -> int:
        await workflow.wait(lambda: 0 in self.heard)
        return len(self.heard)

    @workflow.signal
    def note(self, number: int) -> None:
        self.heard.append(number)

    @workflow.update
    async def note_later(self, number: int) -> int:
        await workflow.sleep(1)
        self.heard.append(number)
        return number

    @workflow.query
    def all_heard(self) -> list[int]:
        return self.heard


def test_a_node_that_was_declared_dead_and_does_not_know_it_yet_answers_no_query() -> None:
    """The run goes on elsewhere, and its old owner would show a state that is over."""

    async def scenario() -> list[int]:
        data = MemoryStore()
        store = FaultyStore(data.connect())
        async with client_on(store) as old, client_on(data.connect()) as new:  # type: ignore[arg-type]
            async with old.worker(Listens), new.worker(Listens):
                handle = await old.start(Listens, id="x")
                gate = store.gate("heartbeat")
                await gate.reached.wait()
                await new.service.store.declare_dead(membership_of(old).node.node_id)
                await until(lambda: handle.run_id in membership_of(new).node.hosted)
                assert handle.run_id in membership_of(old).node.hosted
                await (await new.handle("x", Listens)).signal(Listens.note, 1)
                await asyncio.sleep(1)
                asked = asyncio.ensure_future(handle.query(Listens.all_heard))
                await asyncio.sleep(0.1)
                gate.open()
                heard = await asked
                await handle.signal(Listens.note, 0)
                await handle.result()
                return heard

    assert run_virtual(scenario()) == [1]


def test_an_answer_that_the_last_owner_left_is_found_by_the_next_one() -> None:
    """Whoever waits for it has meanwhile taken the run, and will not answer what has been answered."""

    async def scenario() -> float:
        data = MemoryStore()
        store = FaultyStore(data.connect())
        async with client_on(data.connect()) as first, client_on(store) as second:  # type: ignore[arg-type]
            async with first.worker(Listens):
                handle = await first.start(Listens, id="x")
                gate = store.gate("replies")
                asked = asyncio.ensure_future((await second.handle("x", Listens)).update(Listens.note_later, 1))
                await gate.reached.wait()
                store.fail("replies", StoreUnavailable("away"), times=20)
                gate.open()
                await asyncio.sleep(1.5)  # it is done, and the answer is in the database
            async with second.worker(Listens):
                await handle.signal(Listens.note, 2)
                await until(lambda: handle.run_id in membership_of(second).node.hosted)
                begun = asyncio.get_running_loop().time()
                assert await asked == 1
                took = asyncio.get_running_loop().time() - begun
                await handle.signal(Listens.note, 0)
                await handle.result()
                return took

    assert run_virtual(scenario()) < 6


def test_two_runs_are_told_things_under_one_id_and_each_answers_for_itself() -> None:
    async def scenario(*, here: bool) -> list[int]:
        data = MemoryStore()
        async with client_on(data.connect()) as host, client_on(data.connect()) as other, host.worker(Listens):
            asker = host if here else other
            answers: list[int] = []
            for number in (1, 2):
                handle = await asker.start(Listens, id=f"x{number}")
                answers.append(await handle.with_id("payment").update(Listens.note_later, number))
            return answers

    assert run_virtual(scenario(here=True)) == [1, 2]
    assert run_virtual(scenario(here=False)) == [1, 2]


@workflow
class Opens:
    def __init__(self) -> None:
        self.is_open = False

    @workflow.run
    async def run(self) -> None:
        await workflow.sleep(3600)

    @workflow.signal
    def open(self) -> None:
        self.is_open = True

    @workflow.update
    def enter(self) -> str:
        return "entered"

    @enter.validator
    def may_enter(self) -> None:
        if not self.is_open:
            raise ApplicationError("closed")


def test_a_refusal_is_no_answer_to_who_asks_again_under_the_same_id() -> None:
    """The row that says so is still there, and what is asked now is decided anew."""

    async def scenario() -> str:
        data = MemoryStore()
        async with client_on(data.connect()) as host, client_on(data.connect()) as other, host.worker(Opens):
            await host.start(Opens, id="x")
            handle = (await other.handle("x", Opens)).with_id("entry")
            with pytest.raises(ApplicationError):
                await handle.update(Opens.enter)
            await (await other.handle("x", Opens)).signal(Opens.open)
            return await handle.update(Opens.enter)

    assert run_virtual(scenario()) == "entered"
