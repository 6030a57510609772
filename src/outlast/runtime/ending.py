"""Ending: a run is terminated though no worker hosts its workflow.

Theory of operation
===================
To terminate a run needs no code (see `loading`), so any process can do it. The wish is in the run's mailbox already.
If the run has an owner that is alive, that takes it from there. If not, perhaps nobody would ever claim the run: its
workflow may be hosted nowhere any more. So whoever terminates it takes it like any owner: joins as a node that hosts
nothing, takes this one run, loads it, which ends it, and says good-bye. The run has one owner at any time, and its end
passes the fence.

If anything goes wrong on the way, the node says good-bye all the same, or its process is seen to have ended: then the
run is as free as before, with the wish in its mailbox. If a worker was faster, there is nothing left to do here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

import msgspec

from outlast.model.errors import Busy, CommitUnknown, InternalError, StoreUnavailable
from outlast.model.events import EVENT_FORMAT, TerminalEvent, WorkflowExecutionStarted
from outlast.model.ids import Namespace, NodeId, RunId
from outlast.model.inputs import TerminateRequested, decode_message
from outlast.runtime import handover, loading
from outlast.runtime.node import Node
from outlast.runtime.ports import Attempt, AttemptEnd, Clock, Entropy
from outlast.store.api import Claimed, RunStatus, Store

logger = logging.getLogger("outlast")

NAME = "terminate"
"""How the node shows up for the moment that it lives."""

PATIENCE_S = 5.0
"""The wish is safe: a database that does not answer must not keep whoever has uttered it."""


class _NoCode:
    """A host of nothing."""

    queues: tuple[str, ...] = ()
    threads = 0

    def workflow_names(self) -> Sequence[str]:
        return ()

    activity_names = workflow_names

    def hosts_activity(self, activity: str) -> bool:
        return False

    needs_thread = hosts_activity

    def program(self, started: WorkflowExecutionStarted, run_id: RunId, namespace: Namespace, at_us: int) -> NoReturn:
        raise InternalError("a run was to be terminated, and was asked to go on")

    def run_attempt(self, attempt: Attempt) -> Coroutine[Any, Any, AttemptEnd]:
        raise InternalError("a run was to be terminated, and began an attempt")


async def end_unhosted(store: Store, clock: Clock, entropy: Entropy, run_id: RunId) -> TerminalEvent | None:
    """End a run in whose mailbox is the wish to terminate it, if nobody alive owns it. None: it was left to others."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            if not await _is_free(store, run_id):
                return None
            node_id = await store.join(NAME)
            try:
                return await _end(store, clock, entropy, run_id, node_id)
            finally:
                await store.declare_dead(node_id)
    except (TimeoutError, Busy, StoreUnavailable, CommitUnknown) as error:
        logger.warning("run %s is to be terminated, but the database does not answer (%r)", run_id, error)
    return None


async def _is_free(store: Store, run_id: RunId) -> bool:
    row = await store.run(run_id)
    if row is None or row.status is not RunStatus.OPEN or row.format > EVENT_FORMAT:
        return False
    if row.owner is None:
        return True
    for each in await store.nodes():
        if each.node_id == row.owner and each.alive:
            # Perhaps nobody is there who would notice: the worker that was killed may have been the only one.
            if each.gone:
                await store.declare_dead(each.node_id)
            return each.gone
    return True


async def _end(store: Store, clock: Clock, entropy: Entropy, run_id: RunId, node_id: NodeId) -> TerminalEvent | None:
    claimed = await store.take(node_id, run_id)
    if claimed is None or not await _is_wanted(store, run_id):
        return None
    node = Node(node_id, store, _NoCode(), clock, entropy, attempt_slots=0)
    outcomes: list[TerminalEvent] = []
    left = asyncio.Event()
    node.on_closed = lambda _, outcome: outcomes.append(outcome)
    node.on_left = lambda _: left.set()
    try:
        await loading.adopt(node, [Claimed(claimed.run, claimed.lost)])
        await left.wait()  # closed; or parked, if its history cannot be read
    finally:
        await handover.stop(node)
    return outcomes[0] if outcomes else None


async def _is_wanted(store: Store, run_id: RunId) -> bool:
    """Its last owner may have taken the wish from the mailbox and ended it; a run whose mail cannot be read here is
    a newer node's matter."""
    for item in await store.mail_for([run_id]):
        try:
            message = decode_message(item.body)
        except msgspec.DecodeError:
            continue
        if isinstance(message, TerminateRequested):
            return True
    return False
