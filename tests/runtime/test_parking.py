"""Runs whose code cannot go on: they can be ended, they end nobody else, and what they wait for is said."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from world import (
    HOSTED,
    add_one,
    client_with_faults,
    executed,
    membership_of,
    names,
    nothing_is_left,
    take_time,
    two_steps,
    until,
)

from outlast import OutlastError, WorkflowCancelled, WorkflowTerminated, workflow
from outlast.engine.replay import replay
from outlast.engine.run import Phase, RunState
from outlast.model.ids import RunId
from outlast.sdk.client import Client
from outlast.sdk.handle import Handle
from outlast.store.api import Answer, RunStatus
from outlast.store.memory import MemoryStore
from virtual import VirtualClock, client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 20_000))


def now() -> float:
    return asyncio.get_running_loop().time()


@workflow(name="changed")
async def as_recorded(n: int) -> int:
    await workflow.sleep(3600)
    return await add_one(n)


@workflow(name="changed")
async def as_deployed(n: int) -> int:
    return await add_one(n)


@workflow(name="redone")
async def as_begun() -> str:
    return await take_time(100.0)


@workflow(name="redone")
async def as_rewritten() -> str:
    with contextlib.suppress(asyncio.CancelledError):
        await add_one(1)
    return "by code that cannot follow the history"


# --- parking ----------------------------------------------------------------------------------------------------------


def test_a_run_to_which_mail_is_on_its_way_while_it_is_parked_takes_no_turn_with_what_has_failed() -> None:
    """PostgreSQL then refuses even a run that is parked: it waits for no sender."""

    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as before:
            await before.worker(as_begun, *HOSTED).__aenter__()
            await before.start(as_begun, id="x")
            await asyncio.sleep(1)
            membership_of(before).abandon()
            async with client_with_faults(data) as (client, store), client_on(data.connect()) as sender:
                handle = await sender.handle("x")

                async def mail_comes(call: Callable[[], Awaitable[object]]) -> list[Answer]:
                    await handle.cancel()
                    return [Answer.MAIL_WAITING]

                store._faults["commit"].append(mail_comes)
                async with client.worker(as_rewritten, *HOSTED):
                    await until(store.used_up)
                    await asyncio.sleep(100)
                    row = (await handle.describe()).row
                    assert (row.status, row.owner) == (RunStatus.OPEN, None)
                    assert "cannot be replayed" in str(row.error)
                    assert await names(handle) == ["WorkflowExecutionStarted", "ActivityScheduled"]
                async with client_on(data.connect()) as after, after.worker(as_begun, *HOSTED):
                    with pytest.raises(WorkflowCancelled):
                        await handle.result()
                assert await names(handle) == [
                    "WorkflowExecutionStarted",
                    "ActivityScheduled",
                    "ActivityAttemptLost",
                    "WorkflowExecutionCancelRequested",
                    "ActivityCancelled",
                    "WorkflowExecutionCancelled",
                ]

    virtually(scenario())


# --- terminate --------------------------------------------------------------------------------------------------------


async def park_by_a_change(data: MemoryStore) -> tuple[Client, Handle[Any]]:
    async with client_on(data.connect()) as before, before.worker(as_recorded, *HOSTED):
        return before, await before.start(as_recorded, 1, id="x")


def test_a_run_whose_replay_fails_can_be_terminated() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        await park_by_a_change(data)
        async with client_on(data.connect()) as client, client.worker(as_deployed, *HOSTED):
            handle = await client.handle("x")
            await asyncio.sleep(4000)
            assert "cannot be replayed" in str((await handle.describe()).row.error)
            await handle.cancel()
            await handle.terminate("enough")
            asked = now()
            with pytest.raises(WorkflowTerminated, match="enough"):
                await handle.result()
            assert now() - asked < 62, "at its next trial at the latest"
            assert await names(handle) == [
                "WorkflowExecutionStarted",
                "TimerStarted",
                "MessageUnhandled",
                "WorkflowExecutionTerminated",
            ]
            assert not executed
            await nothing_is_left(client)

    virtually(scenario())


def test_a_terminate_and_a_change_of_code_at_the_same_moment_end_the_run_at_once() -> None:
    """The wish is in the mailbox when the run is taken over: nothing is tried with the code first."""

    async def scenario() -> None:
        data = MemoryStore()
        await park_by_a_change(data)
        async with client_on(data.connect()) as client:
            handle = await client.handle("x")
            await handle.terminate()
            async with client.worker(as_deployed, *HOSTED):
                asked = now()
                with pytest.raises(WorkflowTerminated):
                    await handle.result()
                assert now() - asked < 1
            assert (await handle.describe()).row.error is None

    virtually(scenario())


def test_a_run_that_is_terminated_before_its_first_turn_can_be_replayed() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client:
            handle = await client.start(two_steps, 1)
            await handle.terminate()
            async with client.worker(*HOSTED):
                with pytest.raises(WorkflowTerminated):
                    await handle.result()
                assert await names(handle) == ["WorkflowExecutionStarted", "WorkflowExecutionTerminated"]
                assert not executed
                await replays(client, handle)

    virtually(scenario())


async def replays(client: Client, handle: Handle[Any]) -> None:
    run_id = RunId(handle.run_id)
    history = await client.service.history(run_id)
    state = RunState(run_id)
    namespace = client.service.namespace
    program = membership_of(client).node.host.program(history[0].event, run_id, namespace, history[0].at_us)
    replay(state, program, history)
    program.close()
    assert state.phase is Phase.CLOSED


def test_a_run_in_quarantine_can_be_terminated_at_once_by_a_new_worker() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client:
            handle = await client.start(two_steps, 1)
            await quarantine(data, handle)
            await handle.terminate()
            async with client.worker(*HOSTED):
                asked = now()
                with pytest.raises(WorkflowTerminated):
                    await handle.result()
                assert now() - asked < 1

    virtually(scenario())


async def quarantine(data: MemoryStore, handle: Handle[Any]) -> None:
    """Nodes die right after they took the run, before it made progress, until it is left alone."""
    while True:
        async with client_with_faults(data) as (client, store):
            gate = store.gate("histories")
            await client.worker(*HOSTED).__aenter__()
            await gate.reached.wait()
            row = await client.service.find_run(RunId(handle.run_id))
            if row.claims > 3:
                gate.open()
                await until(lambda: store.calls["commit"] > 0)
            await asyncio.sleep(0.1)
            membership_of(client).abandon()
            await client.service.store.declare_dead(membership_of(client).node.node_id)
            if row.claims > 3:
                assert "Quarantined" in str((await client.service.find_run(RunId(handle.run_id))).error)
                return


# --- code that wants to end the process -------------------------------------------------------------------------------


@workflow(name="leaves")
async def leaves(late: bool) -> str:
    if late:
        await workflow.sleep(1)
    sys.exit(3)


@workflow(name="leaves")
async def stays(late: bool) -> str:
    await workflow.sleep(1)
    return "stayed"


@workflow(name="leaves")
def leaves_blocking(late: bool) -> str:
    if late:
        workflow.sleep(1)
    sys.exit(3)


@pytest.mark.parametrize("late", [False, True], ids=["first turn", "later turn"])
@pytest.mark.parametrize("wrong", [leaves, leaves_blocking], ids=["async", "blocking"])
def test_a_workflow_that_calls_sys_exit_is_parked_and_its_worker_goes_on(wrong: Any, late: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data.connect()) as client:
            async with client.worker(wrong, *HOSTED):
                handle = await client.start(wrong, late, id="x")
                with pytest.raises(OutlastError, match="SystemExit"):
                    await client.service.outcome(RunId(handle.run_id), raise_parked=True)
                assert await client.execute(two_steps, 1) == 3
                assert "A workflow cannot end its worker" in str((await handle.describe()).row.error)
            async with client.worker(stays, *HOSTED):
                assert await handle.result() == "stayed"

    virtually(scenario())


# --- the clock --------------------------------------------------------------------------------------------------------


def test_a_clock_that_was_set_back_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        data = MemoryStore()
        clock.jump_us = 3_600_000_000
        async with client_on(data.connect(), clock) as client, client.worker(*HOSTED, as_recorded):
            await client.start(as_recorded, 1, id="x")
        async with client_on(data.connect(), clock) as client, client.worker(*HOSTED, as_recorded):
            await asyncio.sleep(2)
            clock.jump_us = 0
            await asyncio.sleep(2)
            await (await client.handle("x")).cancel()
            await asyncio.sleep(1)

    with caplog.at_level(logging.WARNING, logger="outlast"):
        virtually(scenario())
    said = [record.getMessage() for record in caplog.records]
    assert sum("was set back by 3600.0 s" in text for text in said) == 1, said
    assert sum("behind the last event of run" in text for text in said) == 1, said
