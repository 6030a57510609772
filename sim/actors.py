"""Who uses the system from outside: starts runs, waits for them, tells and asks them things, ends them.

Each is a coroutine on the loop of the process that the plan names, and does what a careful user does: on an error
that says that nothing was written, or perhaps, it tries again, under the same workflow id or message id. What it was
told is held against the database at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from outlast.model.errors import (
    AlreadyStarted,
    Busy,
    CommitUnknown,
    NotRegistered,
    RunClosed,
    RunNotFound,
    StoreUnavailable,
    WorkflowFailed,
)
from outlast.model.ids import MessageId, RunId, WorkflowId
from outlast.model.inputs import CancelRequested, Message, SignalReceived, TerminateRequested, UpdateRequested
from outlast.model.payloads import Arguments
from outlast.model.replies import Accepted, Refused, Reply
from outlast.runtime.service import StartRequest, TurnFailed
from outlast.sdk.client import workflow_of
from outlast.sdk.handle import Handle
from outlast.sdk.handlers import encode_message
from sim.plan import Poke, RunPlan
from sim.told import WORKFLOWS
from sim.workloads import QUEUE

if TYPE_CHECKING:
    from sim.process import Process
    from sim.world import World

AGAIN_S = 0.2
UNSURE = (Busy, StoreUnavailable, CommitUnknown)
ROUNDS = 3
"""How often one asker puts its question: what it is shown never goes back."""


async def start(world: World, process: Process, plan: RunPlan) -> None:
    if plan.first is not None:
        await with_start(world, process, plan, plan.first)
        return
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
    match what.what:
        case "cancel" | "terminate":
            await end(world, process, plan, what)
        case "signal":
            await signal(world, process, plan, what)
        case "update":
            await update(world, process, plan, what)
        case "query":
            await query(world, process, plan, what)
        case "signal with start" | "update with start":
            await with_start(world, process, plan, what)
        case _:
            raise ValueError(what.what)


async def end(world: World, process: Process, plan: RunPlan, what: Poke) -> None:
    run_id = RunId(await _known(world, plan))
    again = 2 if what.what == "cancel" and what.number % 2 == 0 else 0
    message_id = MessageId(f"{what.what}/{plan.name}/{what.number}")
    message: Message = (
        CancelRequested(message_id, "wanted") if what.what == "cancel" else TerminateRequested(message_id, "wanted")
    )
    while True:
        try:
            # What `cancel` and `terminate` do, with an id that stays the same when it is tried again.
            await process.client.service.messages.send(run_id, message_id, message)
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


# --- messages ---------------------------------------------------------------------------------------------------------


def _id_of(plan: RunPlan, what: Poke) -> MessageId:
    """Two runs may be told things under the same id."""
    return MessageId(f"{what.what}/{what.number}")


def _arguments(plan: RunPlan, what: Poke) -> Arguments:
    kind: Any = what.what.partition(" ")[0]
    args = (_id_of(plan, what), what.step, *((what.needs,) if kind == "update" else ()))
    _, arguments = encode_message(what.handler, args, {}, kind, workflow_of(WORKFLOWS[plan.workflow]).handlers)
    return arguments


async def signal(world: World, process: Process, plan: RunPlan, what: Poke) -> None:
    run_id, message_id = RunId(await _known(world, plan)), _id_of(plan, what)
    again = what.number % 3 == 0
    while True:
        try:
            await process.client.service.messages.signal(run_id, what.handler, _arguments(plan, what), message_id)
        except UNSURE as error:
            world.covered[f"signal answered {type(error).__name__}"] += 1
            await asyncio.sleep(AGAIN_S)
        except RunClosed:
            world.covered["signal to a closed run"] += 1
            return
        else:
            world.covered["signal acknowledged"] += 1
            world.checks.expect_message(run_id, message_id)
            world.checks.acknowledged(run_id, message_id)
            if not again:
                return
            again = False
            world.covered["signal sent twice"] += 1
            await asyncio.sleep(AGAIN_S)


async def update(world: World, process: Process, plan: RunPlan, what: Poke) -> None:
    """Ask, and ask again under the same id if it is not known what became of it."""
    run_id, message_id = RunId(await _known(world, plan)), _id_of(plan, what)
    messages, checks = process.client.service.messages, world.checks
    ask = checks.asks(run_id, message_id, world.scheduler.now_us)
    world.covered["update asked twice"] += len(checks.books[run_id].asks[message_id]) > 1
    is_asked = False
    while True:
        ask.begun_us = world.scheduler.now_us
        try:
            reply = await messages.update(
                run_id, message_id, what.handler, _arguments(plan, what), final=what.number % 2 == 0
            )
            is_asked = True
            await _hear_out(world, process, run_id, message_id, reply, ask)
        except CommitUnknown:
            ask.unknown = True
            await asyncio.sleep(AGAIN_S)
        except (*UNSURE, TurnFailed) as error:
            world.covered[f"update answered {type(error).__name__}"] += 1
            await asyncio.sleep(AGAIN_S)
        except RunClosed:
            world.covered["update and the run had ended" if is_asked else "update to a closed run"] += 1
            checks.expect_no_answer(run_id, message_id)
            ask.answer = "ended"
            return
        else:
            return


async def _hear_out(
    world: World, process: Process, run_id: RunId, message_id: MessageId, reply: Reply, ask: Any
) -> None:
    """Until the last answer."""
    checks = world.checks
    while True:
        checks.expect_reply(run_id, reply)
        world.covered[f"update {type(reply).__name__.lower()}"] += 1
        if not isinstance(reply, Refused):
            checks.acknowledged(run_id, message_id)
        if not isinstance(reply, Accepted):
            world.expect_prompt(run_id, message_id, ask.begun_us)
            ask.answer = type(reply).__name__.lower()
            return
        reply = await process.client.service.messages.outcome_of_update(run_id, message_id, final=True)


async def query(world: World, process: Process, plan: RunPlan, what: Poke) -> None:
    run_id = RunId(await _known(world, plan))
    target = workflow_of(WORKFLOWS[plan.workflow]) if what.number % 4 else None
    handle: Handle[object] = Handle(process.client.service, plan.workflow_id, run_id, target)
    for _ in range(ROUNDS):
        must_show = world.checks.known_of(run_id)
        where = _where(world, process, run_id)
        world.covered["query of a zombie"] += where == "here" and not process.is_member()
        try:
            shown = await handle.query("all_heard")
        except (*UNSURE, TurnFailed) as error:
            world.covered[f"query answered {type(error).__name__}"] += 1
        except NotRegistered:
            # Only who hosts it can rebuild it: the handle does not know its workflow.
            world.covered["query without the code"] += 1
        else:
            world.checks.expect_shown(run_id, shown, must_show)
            world.covered[f"query of a run {where}"] += 1
        await asyncio.sleep(AGAIN_S)


def _where(world: World, process: Process, run_id: RunId) -> str:
    if world.checks.books[run_id].status != "open":
        return "that has ended"
    return "here" if process.client.service.is_hosted(run_id) else "elsewhere"


async def with_start(world: World, process: Process, plan: RunPlan, what: Poke) -> None:
    """What `signal_with_start` and `update_with_start` do, with an id that stays the same when it is tried again."""
    target, client, message_id = workflow_of(WORKFLOWS[plan.workflow]), process.client, _id_of(plan, what)
    script = target.plan.encode_arguments((plan.script,), {})
    request = StartRequest(target.name, WorkflowId(plan.workflow_id), QUEUE, script)
    arguments = _arguments(plan, what)
    is_signal = what.what.startswith("signal")
    message = (SignalReceived if is_signal else UpdateRequested)(message_id, what.handler, arguments)
    while True:
        try:
            started = await client.service.messages.with_start(request, message_id, message)
        except UNSURE as error:
            world.covered[f"start with a message answered {type(error).__name__}"] += 1
            await asyncio.sleep(AGAIN_S)
        else:
            break
    run_id = started.run_id
    world.checks.expect_started(run_id)
    world.checks.expect_message(run_id, message_id)
    world.covered[f"{'signal' if is_signal else 'update'} with {'a start' if started.created else 'no start'}"] += 1
    world.note(process.name, f"started {plan.name} as {run_id[-6:]} with {message_id}")
    world.run_ids.setdefault(plan.name, run_id)
    if is_signal:
        world.checks.acknowledged(run_id, message_id)
        return
    ask = world.checks.asks(run_id, message_id, world.scheduler.now_us)
    ask.unknown = True  # an earlier try may arrive late
    while True:
        try:
            reply = await client.service.messages.outcome_of_update(run_id, message_id, final=False)
            await _hear_out(world, process, run_id, message_id, reply, ask)
        except (*UNSURE, TurnFailed):
            await asyncio.sleep(AGAIN_S)
        except RunClosed:
            world.checks.expect_no_answer(run_id, message_id)
            return
        else:
            return


async def _known(world: World, plan: RunPlan) -> str:
    while (run_id := world.run_ids.get(plan.name)) is None:
        await asyncio.sleep(0.05)
    return run_id
