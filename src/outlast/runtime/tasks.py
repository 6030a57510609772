"""Dispatched activities: attempts that the owner of a run could not run itself, taken by a node that can.

Theory of operation
===================
A task is a row until its outcome is delivered: the row is removed and the outcome is put into the run's mailbox in
one transaction. A node that dies leaves its tasks claimed; whoever finds them claimed by a dead node delivers that
the attempt is lost, and the run's own retry policy decides what comes next.

A round takes one batch (see `membership`). If there may be more, the next round comes after a pause in which others get
theirs, or, if there is no room left, as soon as a slot is free; who stands in line here has precedence.

*A claim of which nobody knows* may have been written, or be written later: then rows say that this node has tasks of
which it has not heard. So the next claim names all that the node *holds*, and so does one now and then for ever, with
pauses that grow up to `LOOK_S`, for those that come late: the store gives every other task of this node again. No
attempt is begun twice by that:
- A task is held from the moment in which its claim was answered until the store has answered its delivery: while it
  stands in line, while it runs, while the database does not answer, and if its delivery fails for good.
- Claims follow each other. When one names what is held, every earlier one is answered or given up; an answer that was
  given up is not heard any more, whatever it says.
- An attempt that is stopped by its run, which is hosted here, delivers nothing. It is held until its row is gone.
- It is the attempt that is held, with its number: the next attempt of the same activity is another task.
"""

from __future__ import annotations

import logging
from functools import partial

from outlast.model.errors import CommitUnknown
from outlast.model.ids import Namespace
from outlast.model.inputs import AttemptLost, encode_message
from outlast.runtime.attempts import end_id
from outlast.runtime.claims import SHARE_PAUSE_S
from outlast.runtime.clock import APART_US
from outlast.runtime.node import Node
from outlast.runtime.patience import patiently
from outlast.runtime.ports import AttemptEnd, Host, decode_attempt
from outlast.runtime.strays import LOOK_S, SOON_S
from outlast.store.api import HeldTask, NewMail, Store, Task, TaskClaim

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
        self.again_s: float | None = None
        """More may be waiting, and there is room for it: in how many seconds to come back."""
        self._held: dict[HeldTask, bool] = {}
        """True: its outcome is known, and is being delivered."""
        self._look_at = node.clock.monotonic() + LOOK_S
        """When a claim shall say again what is held."""
        self._pause_s = LOOK_S

    async def claim(self) -> None:
        """Take no more than can begin at once: what waits for a slot can wait in the table, where others find it."""
        self.again, self.again_s = False, None
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
            tasks = await self._take(names, room)
            for task in tasks:
                self._begin(task)
            if len(tasks) == room:
                self.again = True
                if self._has_room():
                    self.again_s = SHARE_PAUSE_S

    def _has_room(self) -> bool:
        attempts = self._node.attempts
        return attempts.room(threaded=not self._others) > 0

    async def _take(self, names: tuple[str, ...], room: int) -> list[Task]:
        now = self._node.clock.monotonic()
        held: tuple[HeldTask, ...] | None = None
        if now >= self._look_at:
            await self._forget_stopped()
            held = tuple(self._held)
        now_us = self._node.clock.now_us() + APART_US
        claim = TaskClaim(self._node.node_id, self._namespace, self._host.queues, names, now_us, room, held)
        try:
            tasks = await self._store.claim_tasks(claim)
        except CommitUnknown:
            self._look_at = now
            self._pause_s = SOON_S
            raise
        if held is not None and len(tasks) < room:  # else there may be more of them
            self._look_at = now + self._pause_s
            self._pause_s = min(self._pause_s * 2, LOOK_S)
        return tasks

    async def _forget_stopped(self) -> None:
        """Those whose row went with the turn that stopped them."""
        attempts = self._node.attempts
        stopped = [each for each, ended in self._held.items() if not ended and not attempts.has(each[0], each[1])]
        if stopped:
            rows = await self._store.tasks_of(list(dict.fromkeys(run_id for run_id, _, _ in stopped)))
            for each in stopped:
                run_id, activity_id, _ = each
                if activity_id not in rows.get(run_id, ()):
                    del self._held[each]

    def _begin(self, task: Task) -> None:
        name = _name(task)
        if self._held.get(name) or self._node.attempts.has(task.run_id, task.activity_id):
            # The row was written once more (see `dispatch`). This node has it again, so what runs here is delivered;
            # or, if that is not this attempt, it is given again when the other has ended.
            return
        if task.lost:
            self._held[name] = True
            reason = "the process that ran it is gone"
            lost = AttemptLost(task.activity_id, task.attempt, reason, self._node.entropy.jitter())
            self._node.background(self._deliver(task, lost))
            return
        attempt = decode_attempt(task.body)
        self._held[name] = False
        self._node.attempts.start(attempt, partial(self._ended, task))

    def _ended(self, task: Task, end: AttemptEnd) -> None:
        self._held[_name(task)] = True
        self._node.background(self._deliver(task, end))

    async def _deliver(self, task: Task, message: AttemptEnd | AttemptLost) -> None:
        mail = NewMail(
            task.run_id,
            end_id(message),
            self._node.clock.now_us(),
            encode_message(message),
        )
        delivered = await patiently(lambda: self._store.deliver(self._node.node_id, task, mail))
        del self._held[_name(task)]  # if it fails for good it stays: an activity that has run must not run again
        if delivered:
            self._node.on_mail_sent()
        else:
            logger.info("attempt %d of %s is no longer wanted", task.attempt, task.activity)


def _name(task: Task) -> HeldTask:
    return (task.run_id, task.activity_id, task.attempt)
