"""Who uses the system from outside: starts runs, waits for them, cancels and terminates them.

Each is a coroutine on the loop of the process that the plan names, and does what a careful user does: on an error
that says that nothing was written, or perhaps, it tries again, under the same workflow id or message id. What it was
told is held against the database at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from outlast.model.errors import (
    AlreadyStarted,
    Busy,
    CommitUnknown,
    RunClosed,
    RunNotFound,
    StoreUnavailable,
    WorkflowFailed,
)
from outlast.model.ids import MessageId, RunId
from outlast.model.inputs import CancelRequested, Message, TerminateRequested
from outlast.sdk.client import Handle
from sim.plan import Poke, RunPlan
from sim.workloads import WORKFLOWS

if TYPE_CHECKING:
    from sim.process import Process
    from sim.world import World

AGAIN_S = 0.2
UNSURE = (Busy, StoreUnavailable, CommitUnknown)


async def start(world: World, process: Process, plan: RunPlan) -> None:
    target = WORKFLOWS[plan.workflow]
    while True:
        try:
            handle = await process.client.start(target, plan.script, id=plan.workflow_id)
        except AlreadyStarted as error:
            # Ours, if an earlier try was written; or somebody else's under the same id.
            world.covered["id in use"] += 1
            run_id = error.run_id
            world.checks.expect_started(RunId(run_id))
        except UNSURE as error:
            world.covered[f"start answered {type(error).__name__}"] += 1
            await asyncio.sleep(AGAIN_S)
            continue
        else:
            run_id = handle.run_id
            world.checks.expect_started(RunId(run_id))
            world.covered["started"] += 1
        world.note(process.name, f"started {plan.name} as {run_id[-6:]}")
        world.run_ids.setdefault(plan.name, run_id)
        return


async def watch(world: World, process: Process, plan: RunPlan) -> None:
    run_id = await _known(world, plan)
    handle: Handle[object] = Handle(process.client.service, plan.workflow_id, run_id, None)
    while True:
        try:
            outcome = await process.client.service.outcome(RunId(run_id))
            world.checks.expect_outcome(RunId(run_id), outcome)
            try:
                handle.value(outcome)
            except WorkflowFailed:
                world.covered["saw a failure"] += 1
            else:
                world.covered["saw a result"] += 1
        except UNSURE:
            await asyncio.sleep(AGAIN_S)
        else:
            return


async def poke(world: World, process: Process, plan: RunPlan, what: Poke) -> None:
    run_id = RunId(await _known(world, plan))
    again = 2 if what.what == "cancel" and what.number % 2 == 0 else 0
    message_id = MessageId(f"{what.what}/{plan.name}/{what.number}")
    message: Message = (
        CancelRequested(message_id, "wanted") if what.what == "cancel" else TerminateRequested(message_id, "wanted")
    )
    while True:
        try:
            # What `cancel` and `terminate` do, with an id that stays the same when it is tried again.
            await process.client.service._send(run_id, message_id, message)
        except UNSURE as error:
            world.covered[f"message answered {type(error).__name__}"] += 1
            await asyncio.sleep(AGAIN_S)
        except RunClosed:
            world.covered["message to a closed run"] += 1
            return
        except RunNotFound:
            world.broken(f"run {run_id} was started, and is not found", None)
            return
        else:
            world.checks.expect_message(run_id, message_id)
            world.covered[f"{what.what} accepted"] += 1
            if again == 0:
                return
            # Once more: the reply was lost, as far as this client knows. It must not count twice.
            again -= 1
            await asyncio.sleep(AGAIN_S)


async def _known(world: World, plan: RunPlan) -> str:
    while (run_id := world.run_ids.get(plan.name)) is None:
        await asyncio.sleep(0.05)
    return run_id
