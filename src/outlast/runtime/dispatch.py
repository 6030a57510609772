"""Dispatch: which attempts run in this process, and which become rows in `tasks`, for any node that has room.

Theory of operation
===================
*Local dispatch.* The owner of a run starts its attempts itself, and no row is written for that: the history says
which attempts are open, and whoever takes the run over reads it there. An attempt becomes a task, a row,
- with the turn that asks for it, if its activity is hosted elsewhere (`remote_tasks`);
- later, in a commit of its own without events, if it has stood in this node's line for a slot for `PATIENCE_S` while
  there are other nodes (`offer`): whoever has room claims it, this node too. How it ended comes back as mail.
An activity that has been a task stays one for its next attempts: this node had no room for it.

An attempt is never in the line and in the table at once. It leaves the line first and is noted as `remote`; then the
row is committed. What if the process dies, or the answer does not come,
- before the commit: the history has the attempt and the table has not. It never began, but nobody can know that: the
  next owner counts it as lost, like all that the dead owner may have been running.
- after the commit: the next owner finds the row and leaves the attempt to it. The row needs no owner: it can be
  claimed, run and delivered while the run changes hands.
- commit unknown: the same commit is written again (see `node`). It has no event, but the fence knows it by its turn:
  whichever of the two comes second is refused.
- the commit is fenced: another node has the run, with its history, and does as above.
- the activity is cancelled, or its run ends: the turn that says so drops the row, and what the claimer delivers is
  refused.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING

from outlast.engine.decide import Decision
from outlast.model.ids import ActivityId, RunId
from outlast.runtime.committer import Entry
from outlast.runtime.hosted import Hosted, Stage
from outlast.runtime.ports import encode_attempt
from outlast.store.api import NewTask

if TYPE_CHECKING:
    from outlast.runtime.node import Node

logger = logging.getLogger("outlast")

PATIENCE_S = 1.0
"""How long an attempt stands in line before it is offered to others: two more commits are worth that much."""

OFFERS = 200
"""Attempts offered at a time. The commits share a batch or two; what is left is offered in the next round."""


def is_local(node: Node, attempt_queue: str | None, activity: str) -> bool:
    return (attempt_queue is None or attempt_queue in node.host.queues) and node.host.hosts_activity(activity)


def remote_tasks(node: Node, hosted: Hosted, decision: Decision) -> tuple[NewTask, ...]:
    """Attempts for other nodes: rows that are written with the decision. Those for this node stay in `dispatch`."""
    tasks: list[NewTask] = []
    local: list[ActivityId] = []
    for activity_id in decision.dispatch:
        scheduled = hosted.state.activities[activity_id].scheduled
        if activity_id not in hosted.remote and is_local(node, scheduled.queue, scheduled.activity):
            local.append(activity_id)
            continue
        task = _task(hosted, activity_id)
        if task.attempt == 1 and task.queue in node.host.queues and not node.host.hosts_activity(task.activity):
            started = hosted.state.started
            assert started is not None
            logger.warning(
                "activity %s of %s/%s is not hosted by this worker; it waits for one that hosts it on queue %r",
                task.activity, started.workflow, started.workflow_id, task.queue,
            )  # fmt: skip
        tasks.append(task)
        hosted.remote.add(activity_id)
    decision.dispatch = local
    return tuple(tasks)


def ended_tasks(hosted: Hosted) -> tuple[ActivityId, ...]:
    """Tasks whose activity is over: their rows are dropped with the turn that ended it."""
    ended = tuple(each for each in hosted.remote if each not in hosted.state.activities)
    hosted.remote.difference_update(ended)
    return ended


def offer(node: Node, now: float) -> None:
    """Make tasks of attempts that have stood in line for long. `now` is the event loop's clock."""
    by_run: dict[RunId, list[ActivityId]] = {}
    for attempt in islice(node.attempts.waiting_since(now - PATIENCE_S), OFFERS):
        by_run.setdefault(attempt.run_id, []).append(attempt.activity_id)
    entries = [_offered(node, hosted, ids) for run_id, ids in by_run.items() if (hosted := node.hosted.get(run_id))]
    node.committer.submit([entry for entry in entries if entry is not None])


def _offered(node: Node, hosted: Hosted, activity_ids: list[ActivityId]) -> Entry | None:
    if hosted.stage is not Stage.IDLE:
        return None  # a commit of the run is on its way; the next round sees it again
    waiting = [each for each in activity_ids if each in hosted.running and each in hosted.state.activities]
    if not waiting:
        return None  # a task that was claimed here stands in line: it is a row already
    for activity_id in waiting:
        node.attempts.stop(hosted.run_id, activity_id)
        hosted.running.discard(activity_id)
        hosted.remote.add(activity_id)
    decision = Decision(hosted.state.next_event, node.clock.now_us())
    decision.dispatch = waiting
    return node.submit(hosted, node.commit(hosted, decision, ()), decision)


def _task(hosted: Hosted, activity_id: ActivityId) -> NewTask:
    pending = hosted.state.activities[activity_id]
    attempt = hosted.attempt(activity_id, pending)
    body = encode_attempt(attempt)
    return NewTask(activity_id, attempt.activity, attempt.queue, attempt.attempt, pending.not_before_us, body)
