"""A run in the memory of the node that owns it."""

from __future__ import annotations

from collections import deque
from enum import Enum

from outlast.engine.program import Program
from outlast.engine.run import PendingActivity, RunState
from outlast.model.ids import ActivityId, MessageId, Namespace, RunId
from outlast.model.inputs import Input, Message
from outlast.runtime.attempts import AttemptOver
from outlast.runtime.ports import Attempt
from outlast.store.api import MAILBOX_LIMIT

SOON_US = 5_000_000
"""A run that has something to do within this time is not worth giving back."""


KNOWN_MAIL = MAILBOX_LIMIT
"""Consumed messages by which a run knows them again: as many as one reading of its mailbox can hold."""


class Stage(Enum):
    """What the node may do with a hosted run."""

    IDLE = "idle"
    """Nothing is on its way to the store: a turn may be taken."""
    COMMITTING = "committing"
    """A commit is on its way. Inputs wait; they will share the next one."""
    LOOKING = "looking"
    """Its commit was not answered with yes: the node reads the run's row to learn what it may assume."""
    GONE = "gone"
    """It has left memory: closed, released, or taken by another node. Whatever still refers to it does nothing."""


class Hosted:
    __slots__ = (
        "asked_here",
        "consumed",
        "ends",
        "error",
        "failures",
        "idle_since",
        "inbox",
        "mail",
        "mail_ids",
        "namespace",
        "program",
        "ready",
        "remote",
        "running",
        "stage",
        "state",
    )

    def __init__(self, namespace: Namespace, state: RunState, program: Program) -> None:
        self.namespace = namespace
        self.state = state
        self.program = program
        self.stage = Stage.IDLE
        self.ready = False
        """It stands in the node's line of runs that wait for a turn."""
        self.inbox: list[Input] = []
        self.mail: list[tuple[int, Message]] = []
        """Messages from the mailbox that wait for a turn, with their mail ids."""
        self.mail_ids: set[int] = set()
        """Mail that is here already, or was: the mailbox is read again and again, and what was read before a commit may
        get here after it. A signal would be known by its id; an update that was refused would be decided anew."""
        self.consumed: deque[int] = deque()
        """Those of them that a commit has consumed, the oldest first."""
        self.running: set[ActivityId] = set()
        """Activities whose attempt runs in this process, or waits in it for a slot or for its time."""
        self.remote: set[ActivityId] = set()
        """Activities that have a row in `tasks`."""
        self.ends: dict[ActivityId, AttemptOver] = {}
        """How attempts ended, or that they are lost, until that is committed. Should the turn that takes one fail, or
        its commit, it goes into the mailbox: the activity has run, and must not run again under the same number."""
        self.asked_here: set[MessageId] = set()
        """Queries that came from this very process, which is told the answer: no row is written for it."""
        self.error: BaseException | None = None
        """Why its last turn failed."""
        self.failures = 0
        """Claims in a row that led to no commit (`RunRow.claims`)."""
        self.idle_since = 0.0

    @property
    def run_id(self) -> RunId:
        return self.state.run_id

    def mail_is_consumed(self, mail_ids: tuple[int, ...]) -> None:
        self.consumed.extend(mail_ids)
        while len(self.consumed) > KNOWN_MAIL:
            self.mail_ids.discard(self.consumed.popleft())

    def wake_at_us(self) -> int | None:
        """When the run has to do something by itself: a timer, an attempt of its own, a deadline. None: never.

        Attempts that have a row in `tasks` are begun, retried and found lost by way of that row: the run hears of
        them by mail, and has only their schedule-to-close deadline to keep.
        """
        times = [timer.fires_at_us for timer in self.state.timers.values()]
        for activity_id, pending in self.state.activities.items():
            if activity_id not in self.remote:
                times.append(pending.not_before_us)
            deadline_us = pending.deadline_us()
            if deadline_us is not None:
                times.append(deadline_us)
        return min(times, default=None)

    def attempt(self, activity_id: ActivityId, pending: PendingActivity) -> Attempt:
        """The attempt that comes next, with all that whoever runs it needs."""
        started = self.state.started
        assert started is not None
        scheduled = pending.scheduled
        return Attempt(
            self.namespace,
            started.workflow,
            started.workflow_id,
            self.state.run_id,
            activity_id,
            scheduled.activity,
            scheduled.queue or started.queue,
            pending.attempt,
            pending.scheduled_at_us,
            scheduled.arguments,
            scheduled.retry,
            scheduled.start_to_close_us,
            pending.deadline_us(),
        )
