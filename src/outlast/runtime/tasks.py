"""Dispatched activities: attempts that the owner of a run could not run itself, taken by a node that can.

A task is a row until its outcome is delivered: the row is removed and the outcome is put into the run's mailbox in
one transaction. A node that dies leaves its tasks claimed; whoever finds them claimed by a dead node delivers that
the attempt is lost, and the run's own retry policy decides what comes next.
"""

from __future__ import annotations

import logging
from functools import partial

from outlast.model.ids import ActivityId, Namespace, RunId
from outlast.model.inputs import AttemptLost, encode_message
from outlast.runtime.attempts import end_id
from outlast.runtime.node import Node
from outlast.runtime.patience import patiently
from outlast.runtime.ports import AttemptEnd, Host, decode_attempt
from outlast.store.api import NewMail, Store, Task, TaskClaim

logger = logging.getLogger("outlast")

TASK_BATCH = 50
"""Tasks claimed at a time."""


class Tasks:
    def __init__(self, store: Store, node: Node, host: Host, namespace: Namespace, slots: int) -> None:
        self._store = store
        self._node = node
        self._host = host
        self._namespace = namespace
        self._slots = slots
        self._begun: set[tuple[RunId, ActivityId]] = set()

    async def claim(self, now_us: int) -> None:
        names = tuple(self._host.activity_names())
        # Counted anew every time: an attempt that was stopped (its run is hosted here too) reports nothing.
        self._begun = {key for key in self._begun if self._node.attempts.has(*key)}
        while names and len(self._begun) < self._slots:
            limit = min(TASK_BATCH, self._slots - len(self._begun))
            claim = TaskClaim(self._node.node_id, self._namespace, self._host.queues, names, now_us, limit)
            tasks = await self._store.claim_tasks(claim)
            for task in tasks:
                self._begin(task)
            if len(tasks) < limit:
                return

    def _begin(self, task: Task) -> None:
        if task.lost:
            reason = "the process that ran it is gone"
            lost = AttemptLost(task.activity_id, task.attempt, reason, self._node.entropy.jitter())
            self._node.background(self._deliver(task, lost))
            return
        self._begun.add((task.run_id, task.activity_id))
        self._node.attempts.start(decode_attempt(task.body), partial(self._ended, task))

    def _ended(self, task: Task, end: AttemptEnd) -> None:
        self._node.background(self._deliver(task, end))

    async def _deliver(self, task: Task, message: AttemptEnd | AttemptLost) -> None:
        mail = NewMail(
            task.run_id,
            end_id(message),
            self._node.clock.now_us(),
            encode_message(message),
        )
        if await patiently(lambda: self._store.deliver(self._node.node_id, task, mail)):
            self._node.on_mail_sent()
        else:
            logger.info("attempt %d of %s is no longer wanted", task.attempt, task.activity)
