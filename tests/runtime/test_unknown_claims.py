"""Claims of which nobody knows: the connection is cut while a node claims runs or tasks. What the node has in hand goes
on undisturbed, what the claim has taken is found, and nothing runs twice; also when the claim lands late.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from test_late_writes import LateStore
from world import HOSTED, executed, membership_of, names, note, nothing_is_left, until

from outlast import CommitUnknown, Limits, Retry, StoreUnavailable, activity, workflow
from outlast.model.ids import DEFAULT_NAMESPACE
from outlast.runtime.strays import LATE_S, LOOK_S
from outlast.sdk.client import Client
from outlast.sdk.handle import Handle
from outlast.store.api import Claim, Store, Task, TaskClaim
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual

LONG_S = 100.0
"""An attempt of this length runs from before the cut until long after everything has been looked for."""


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 3_600))


def now() -> float:
    return asyncio.get_running_loop().time()


@activity(retry=Retry.never())
async def once(seconds: float) -> str:
    note()
    await asyncio.sleep(seconds)
    return "done"


@activity(queue="far", retry=Retry.never())
async def once_far(seconds: float) -> str:
    note()
    await asyncio.sleep(seconds)
    return "done"


@workflow
async def call_once(seconds: float) -> str:
    return await once(seconds)


@workflow
async def call_far(seconds: float) -> str:
    return await once_far(seconds)


@workflow
async def call_far_for(patience_s: float) -> str:
    try:
        async with asyncio.timeout(patience_s):
            return await once_far(LONG_S)
    except TimeoutError:
        await workflow.sleep(1)
        return "gave up"


ALL = (*HOSTED, call_once, call_far, call_far_for, once, once_far)


class Giving(LateStore):
    """Knows which tasks it has given to its node."""

    async def claim_tasks(self, claim: TaskClaim) -> list[Task]:
        tasks: list[Task] = await self._passed_on("claim_tasks", self._store.claim_tasks, claim)
        self.given += tasks
        return tasks

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.given: list[Task] = []


@asynccontextmanager
async def a_node(data: MemoryStore, limits: Limits | None = None) -> AsyncIterator[tuple[Client, Giving]]:
    store = Giving(data.connect())
    async with client_on(store) as client:  # type: ignore[arg-type]
        async with client.worker(*ALL, queue=["default", "far"], limits=limits or Limits()):
            yield client, store


@asynccontextmanager
async def a_starter(data: MemoryStore) -> AsyncIterator[Client]:
    """A client that hosts no run, so that the node has to claim them."""
    async with client_on(data.connect()) as client:
        yield client


@asynccontextmanager
async def a_sender(data: MemoryStore) -> AsyncIterator[Client]:
    """A node that hosts the workflows only: their activities become tasks."""
    async with client_on(data.connect()) as client, client.worker(call_far, call_far_for):
        yield client


async def begin_long(client: Client) -> Handle[Any]:
    handle = await client.start(call_once, LONG_S)
    await until(lambda: executed)
    return handle


async def undisturbed(handle: Handle[Any], begun: float) -> None:
    """One attempt, which was allowed only one, from its beginning to its end."""
    assert await handle.result() == "done"
    assert now() - begun < LONG_S + 1
    assert await names(handle) == [
        "WorkflowExecutionStarted", "ActivityScheduled", "ActivityCompleted", "WorkflowExecutionCompleted"
    ]  # fmt: skip


def held_by(client: Client) -> list[Any]:
    return list(membership_of(client)._tasks._held)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
def test_an_unknown_claim_of_runs_loses_no_attempt_and_strands_no_run(
    written: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "outlast")

    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_starter(data) as starter:
            begun, node = now(), membership_of(client).node
            long = await begin_long(client)
            store.fail("claim", CommitUnknown("cut"), written=written)
            handles = [await starter.start(call_once, 1.0) for _ in range(5)]
            await until(store.used_up)
            cut = now()
            assert [await each.result() for each in handles] == ["done"] * 5
            assert now() - cut < 3, "the node looks at once"
            await undisturbed(long, begun)
            assert membership_of(client).node is node
            assert set(executed.values()) == {1}
            assert len(executed) == 6
            await nothing_is_left(client)

    virtually(scenario())
    assert caplog.text.count("came by a write whose answer was lost") == (5 if written else 0)
    assert "Please report" not in caplog.text


@pytest.mark.parametrize(("late_s", "within_s"), [(0.0, 2.0), (1.0, 4.0), (30.0, LOOK_S + 2)])
def test_a_claim_of_runs_that_lands_late_is_found(
    late_s: float, within_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """What it takes was not there when the node looked at once."""
    caplog.set_level("INFO", "outlast")

    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_starter(data) as starter:
            begun = now()
            long = await begin_long(client)
            store.fail("claim", CommitUnknown("cut"))
            await until(store.used_up)
            await asyncio.sleep(late_s)
            handles = await started_and_claimed_unheard(client, store, starter, 5)
            landed = now()
            assert [await each.result() for each in handles] == ["done"] * 5
            assert now() - landed < within_s
            await undisturbed(long, begun)
            assert set(executed.values()) == {1}
            await nothing_is_left(client)

    virtually(scenario())
    assert caplog.text.count("came by a write whose answer was lost") == 5
    assert "Please report" not in caplog.text


async def started_and_claimed_unheard(client: Client, store: Giving, starter: Client, count: int) -> list[Handle[Any]]:
    """Runs that a claim by this node takes, whose answer nobody hears."""
    gate = store.gate("claim")
    await gate.reached.wait()
    handles = [await starter.start(call_once, 1.0) for _ in range(count)]
    node = membership_of(client).node
    wanted = Claim(node.node_id, DEFAULT_NAMESPACE, ("default",), ("call_once",), 1, node.clock.now_us(), 100)
    assert len(await starter.service.store.claim(wanted)) == count
    gate.open()
    return handles


def test_more_runs_than_a_page_are_looked_through_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outlast.runtime.strays.PAGE", 10)

    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (_, store), a_starter(data) as starter:
            for _ in range(30):
                await starter.start(call_once, LONG_S)
            await until(lambda: len(executed) == 30)
            handles = [await starter.start(call_once, LONG_S) for _ in range(30)]
            store.fail("claim", CommitUnknown("cut"), written=True)
            await until(lambda: len(executed) == 60, within_s=2)
            assert [await each.result() for each in handles] == ["done"] * 30
            assert store.used_up()
            assert set(executed.values()) == {1}

    virtually(scenario())


def test_a_look_that_fails_is_made_again_as_soon_as_the_database_answers() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_starter(data) as starter:
            store.fail("claim", CommitUnknown("cut"), written=True)
            store.fail("runs", StoreUnavailable("away"), times=3)
            begun = now()
            assert await (await starter.start(call_once, 1.0)).result() == "done"
            assert now() - begun < 4
            assert store.used_up()
            assert client.service.membership is not None

    virtually(scenario())


def test_a_stray_without_an_unknown_claim_is_called_a_bug_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "outlast")

    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_starter(data) as starter:
            store.fail("claim", CommitUnknown("cut"))
            await until(store.used_up)
            await asyncio.sleep(LATE_S + 3 * LOOK_S)
            (handle,) = await started_and_claimed_unheard(client, store, starter, 1)
            assert await handle.result() == "done"

    virtually(scenario())
    assert "answer was lost" not in caplog.text
    assert caplog.text.count("Please report") == 1


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
def test_an_unknown_claim_of_tasks_loses_no_attempt_and_strands_no_task(written: bool) -> None:
    """Neither those of the node's own runs, nor those that are tasks themselves, nor those just claimed."""

    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_sender(data) as sender:
            begun, node = now(), membership_of(client).node
            long = [await begin_long(client), await sender.start(call_far, LONG_S)]
            await until(lambda: len(executed) == 2)
            store.fail("claim_tasks", CommitUnknown("cut"), written=written)
            handles = [await sender.start(call_far, 1.0) for _ in range(5)]
            await until(store.used_up)
            cut = now()
            assert [await each.result() for each in handles] == ["done"] * 5
            assert now() - cut < 3, "the next claim brings them again"
            for each in long:
                await undisturbed(each, begun)
            assert membership_of(client).node is node
            assert set(executed.values()) == {1}
            assert len(executed) == 7
            assert not data._data.tasks
            assert held_by(client) == []

    virtually(scenario())


async def claimed_unheard(client: Client, sender: Client) -> int:
    """A claim of tasks by this node, whose answer nobody hears, lands."""
    node = membership_of(client).node
    wanted = TaskClaim(node.node_id, DEFAULT_NAMESPACE, ("far",), ("once_far",), node.clock.now_us(), 10)
    return len(await sender.service.store.claim_tasks(wanted))


@pytest.mark.parametrize("times", [1, 3])
def test_claims_of_tasks_that_land_late_are_found(times: int) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_sender(data) as sender:
            begun = now()
            long = await sender.start(call_far, LONG_S)
            await until(lambda: executed)
            store.fail("claim_tasks", CommitUnknown("cut"), times=times)
            await until(store.used_up)
            for _ in range(times):
                await asyncio.sleep(3)  # the first claim after the cut is over
                gate = store.gate("claim_tasks")
                await gate.reached.wait()
                handle = await sender.start(call_far, 1.0)
                await until(lambda: len(data._data.tasks) == 2)
                assert await claimed_unheard(client, sender) == 1
                gate.open()
                landed = now()
                assert await handle.result() == "done"
                assert now() - landed < LOOK_S + 3
            await undisturbed(long, begun)
            assert set(executed.values()) == {1}
            assert held_by(client) == []

    virtually(scenario())


def test_a_lost_task_that_came_by_an_unknown_claim_is_not_run_again() -> None:
    """The attempt had begun on a node that died: whatever happens to who claims it, its number does not run twice."""

    async def scenario() -> None:
        data = MemoryStore()
        async with a_sender(data) as sender:
            async with a_node(data) as (dying, _):
                handle = await sender.start(call_far, LONG_S)
                await until(lambda: executed)
                membership_of(dying).abandon()
            async with a_node(data) as (client, store):
                store.fail("claim_tasks", CommitUnknown("cut"), written=True)
                with pytest.raises(Exception, match="gone"):
                    await asyncio.wait_for(handle.result(), 5)
                assert store.used_up()
                assert list(executed.values()) == [1]
                assert (await names(handle)).count("ActivityCompleted") == 0
                assert not data._data.tasks
                assert held_by(client) == []

    virtually(scenario())


def test_what_stands_in_line_is_not_taken_for_unknown() -> None:
    """Slots are taken while tasks are being claimed, so that these stand in line."""

    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data, Limits(attempts=2)) as (client, store), a_sender(data) as sender:
            gate = store.gate("claim_tasks")
            await gate.reached.wait()
            handles = [await sender.start(call_far, 1.0) for _ in range(2)]
            long = [await client.start(call_once, seconds) for seconds in (LONG_S, 2 * LOOK_S)]
            await until(lambda: len(executed) == 2)
            await until(lambda: len(data._data.tasks) == 2)
            gate.open()
            await until(lambda: membership_of(client).node.attempts.waiting == 2)
            store.fail("claim_tasks", CommitUnknown("cut"), written=True)
            assert [await each.result() for each in (*handles, *long)] == ["done"] * 4
            assert store.used_up()
            assert len(store.given) == 2, "none was given again"
            assert set(executed.values()) == {1}
            assert held_by(client) == []

    virtually(scenario())


def test_an_outcome_that_waits_to_be_delivered_is_not_taken_for_unknown() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_sender(data) as sender:
            store.fail("deliver", StoreUnavailable("away"), times=20)
            handle = await sender.start(call_far, 1.0)
            await until(lambda: store.calls["deliver"] == 8)
            store.fail("claim_tasks", CommitUnknown("cut"), written=True)
            assert await handle.result() == "done"
            assert now() > 2 * LOOK_S
            assert store.used_up()
            assert len(store.given) == 1, "it was not given again"
            assert list(executed.values()) == [1]
            assert held_by(client) == []

    virtually(scenario())


def test_an_outcome_that_can_never_be_delivered_does_not_run_its_activity_again() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_sender(data) as sender:
            store.fail("deliver", ZeroDivisionError("a bug of the store"))
            await sender.start(call_far, 1.0)
            await until(lambda: executed)
            await asyncio.sleep(5 * LOOK_S)
            assert store.used_up()
            assert list(executed.values()) == [1]
            assert len(held_by(client)) == 1

    virtually(scenario())


def test_a_task_that_is_written_once_more_while_it_runs_here_does_not_run_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by a commit that arrives twice. The node claims the row again, and its one attempt is delivered."""

    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store), a_sender(data) as sender:
            handle = await sender.start(call_far, LONG_S)
            await until(lambda: executed)
            (stored,) = data._data.tasks.values()
            stored.node = None
            other = await sender.start(call_far, 1.0)
            assert await other.result() == "done"
            assert await handle.result() == "done"
            assert len(store.given) == 3
            assert set(executed.values()) == {1}
            assert len(executed) == 2
            assert held_by(client) == []

    virtually(scenario())
    assert "report this bug" not in caplog.text


def test_a_task_that_its_run_has_stopped_on_the_same_node_is_forgotten_when_its_row_is_gone() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with a_node(data) as (client, store):
            async with a_sender(data) as sender:
                handle = await sender.start(call_far_for, 60.0)
                await until(lambda: executed)
            # Its node has left: the run comes to the node that runs the task.
            assert len(held_by(client)) == 1
            assert await (await client.handle(handle.id)).result() == "gave up"
            assert not data._data.tasks
            assert not membership_of(client).node.attempts._running
            calls = store.calls["tasks_of"]
            await asyncio.sleep(2 * LOOK_S)
            assert held_by(client) == []
            assert store.calls["tasks_of"] == calls + 1
            assert list(executed.values()) == [1]

    virtually(scenario())
