"""Handover: runs leave a node that is well, because they only wait, or because the node ends.

Theory of operation
===================
A run leaves by a commit that appends no event and passes the same fence as any other: no owner any more, due when it
has something to do by itself. If mail has come meanwhile, the store refuses; the run stays, and takes the mail.

`stop` hands over everything: attempts that had begun are cancelled and journaled as lost, so that whoever takes the
run next starts them again at once, and counts them. It takes a bounded time. What the database does not take within
`HANDOVER_S` is left to takeover: the node is about to die, and its runs are then free like those after a crash.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from outlast.model.ids import ActivityId, RunId
from outlast.model.inputs import AttemptLost
from outlast.runtime.committer import Entry
from outlast.runtime.hosted import Hosted, Stage
from outlast.runtime.parking import release_of
from outlast.store.api import Release

if TYPE_CHECKING:
    from outlast.runtime.node import Node

logger = logging.getLogger("outlast")

GIVE_BACK_TRIES = 5
"""A node that stops takes mail which comes at that moment, and tries again to give the run back; but not for ever."""

HANDOVER_S = 10.0
"""Ten thousand runs are given back in about a second. Whoever stops a process kills it after 10 to 90 seconds."""


def evict(node: Node, hosted: Hosted) -> None:
    """Give back a run that only waits. If mail has come meanwhile, it stays."""
    if hosted.stage is not Stage.IDLE or hosted.inbox or hosted.mail or hosted.running:
        return
    node.committer.submit([_release(node, hosted)])


def _release(node: Node, hosted: Hosted) -> Entry:
    release = Release(hosted.wake_at_us())
    return node.submit(hosted, release_of(node, hosted, hosted.state.next_event, release), None)


async def stop(node: Node) -> None:
    """Hand everything over. Afterwards nothing of this node is on its way."""
    node.stopping = True
    begun = {
        run_id: [each for each in hosted.running if node.attempts.begun(run_id, each)]
        for run_id, hosted in node.hosted.items()
    }
    await node.attempts.stop_all()
    node.alarms.clear()
    try:
        async with asyncio.timeout(HANDOVER_S):
            await _give_all_back(node, begun)
    except TimeoutError:
        logger.warning(
            "the database did not take %d runs of node %d back within %.0f s; they are taken over like after a crash",
            len(node.hosted), node.node_id, HANDOVER_S,
        )  # fmt: skip
    await _let_go(node)


async def _give_all_back(node: Node, begun: dict[RunId, list[ActivityId]]) -> None:
    for run_id, activity_ids in begun.items():
        hosted = node.hosted.get(run_id)
        if hosted is not None:
            _lose_attempts(node, hosted, activity_ids)
    await _settle(node)
    for _ in range(GIVE_BACK_TRIES):
        idle = [hosted for hosted in node.hosted.values() if hosted.stage is Stage.IDLE]
        if not idle:
            break
        node.committer.submit([_release(node, hosted) for hosted in idle])
        await _settle(node)


def _lose_attempts(node: Node, hosted: Hosted, begun: list[ActivityId]) -> None:
    hosted.running.clear()
    for activity_id in begun:
        pending = hosted.state.activities.get(activity_id)
        if pending is not None:
            reason = "its worker was stopped"
            lost = AttemptLost(activity_id, pending.attempt, reason, node.entropy.jitter())
            hosted.ends[activity_id] = lost
            node.put(hosted, lost)


async def _settle(node: Node) -> None:
    """Until no turn waits and no commit is on its way."""
    while node.line or node.looks or any(each.stage is Stage.COMMITTING for each in node.hosted.values()):
        await node.committer.drain()
        await asyncio.sleep(0)
        if node.looks:
            await asyncio.wait(node.looks)


async def _let_go(node: Node) -> None:
    """Forget what is left, and end what is still on its way."""
    for hosted in list(node.hosted.values()):
        node.leave(hosted)
    node.committer.stop()
    await node.committer.drain()
    while node.looks:
        for task in node.looks:
            task.cancel()
        await asyncio.wait(node.looks)


def abandon(node: Node) -> None:
    """Another node has declared this one dead: forget everything at once. Nothing of it could be committed."""
    node.stopping = True
    node.alarms.clear()
    node.committer.stop()  # what looks at its row because of that ends by itself: starters wait for the answer
    for hosted in list(node.hosted.values()):
        node.leave(hosted)
