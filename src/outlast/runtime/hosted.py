"""A run in the memory of the node that owns it."""

from __future__ import annotations

from enum import Enum

from outlast.engine.program import Program
from outlast.engine.run import PendingActivity, RunState
from outlast.model.ids import ActivityId, Namespace, RunId
from outlast.model.inputs import Input, Message
from outlast.runtime.ports import Attempt, AttemptEnd


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
        """Mail that is here already, up to the commit that consumes it: the mailbox is read again and again."""
        self.running: set[ActivityId] = set()
        """Activities whose attempt runs in this process, or waits in it for a slot or for its time."""
        self.remote: set[ActivityId] = set()
        """Activities that have a row in `tasks`."""
        self.ends: dict[ActivityId, AttemptEnd] = {}
        """How attempts of this process ended, until that is committed. Should the turn that takes one fail, it goes
        into the mailbox: the activity has run, and must not run again for a mistake in the workflow's code."""
        self.error: BaseException | None = None
        """Why its last turn failed."""
        self.failures = 0
        """Claims in a row that led to no commit (`RunRow.claims`)."""
        self.idle_since = 0.0

    @property
    def run_id(self) -> RunId:
        return self.state.run_id

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
