"""Dispatched activities: attempts that the owner of a run could not run itself, taken by a node that can.

A task is a row until its outcome is delivered: the row is removed and the outcome is put into the run's mailbox in
one transaction. A node that dies leaves its tasks claimed; whoever finds them claimed by a dead node delivers that
the attempt is lost, and the run's own retry policy decides what comes next.

A round takes one batch (see `membership`). If there may be more, the next round comes as soon as a task is delivered
or a slot is free; who stands in line here has precedence.
"""

from __future__ import annotations

import logging
from functools import partial

from outlast.model.ids import Namespace
from outlast.model.inputs import AttemptLost, encode_message
from outlast.runtime.attempts import end_id
from outlast.runtime.clock import APART_US
from outlast.runtime.node import Node
from outlast.runtime.patience import patiently
from outlast.runtime.ports import AttemptEnd, Host, decode_attempt
from outlast.store.api import NewMail, Store, Task, TaskClaim

logger = logging.getLogger("outlast")

TASK_BATCH = 50
"""Tasks claimed at a time."""


class Tasks:
    def __init__(self, store: Store, node: Node, host: Host, namespace: Namespace) -> None:
        self._store = store
        self._node = node
        self._host = host
        self._namespace = namespace
        names = host.activity_names()
        self._threaded = tuple(name for name in names if host.needs_thread(name))
        self._others = tuple(name for name in names if not host.needs_thread(name))
        self.again = False
        """More may be waiting than there was room for."""

    async def claim(self) -> None:
        """Take no more than can begin at once: what waits for a slot can wait in the table, where others find it."""
        self.again = False
        names: tuple[str, ...] = ()
        room = TASK_BATCH
        for kind, threaded in ((self._others, False), (self._threaded, True)):
            free = self._node.attempts.room(threaded=threaded)
            if kind and free > 0:
                names += kind
                room = min(room, free)
            elif kind:
                self.again = True
        if names:
            now_us = self._node.clock.now_us() + APART_US
            claim = TaskClaim(self._node.node_id, self._namespace, self._host.queues, names, now_us, room)
            tasks = await self._store.claim_tasks(claim)
            for task in tasks:
                self._begin(task)
            self.again = self.again or len(tasks) == room

    def _begin(self, task: Task) -> None:
        if task.lost:
            reason = "the process that ran it is gone"
            lost = AttemptLost(task.activity_id, task.attempt, reason, self._node.entropy.jitter())
            self._node.background(self._deliver(task, lost))
            return
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
