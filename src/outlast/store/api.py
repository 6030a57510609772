"""The Store protocol: what every database must do, and nothing about how.

Theory of operation
===================
A run is a row in `runs`, its history (rows in `journal`, one per turn, in order), and its mailbox (rows in
`mailbox`, what was sent to it and not yet taken). The store is small and dumb: it decides nothing, makes no ids
but those that count rows, and reads no clock; every time comes in as `now_us`.

*The fence.* A commit for a run that exists names the `owner` and the `next_event` that the caller believes in.
Where the open run's row says the same, and no turn of the same node as new as this one, everything in the commit is
written; otherwise nothing of it is, the answer is FENCED, and the other commits of the batch are not touched by that.
All commits of one batch share one transaction, so that they share one fsync; when `commit` returns, what it reports
is on disk.

*No mail is lost at the edge.* A commit that closes or releases a run looks into its mailbox, under the same lock
under which senders look at the run: if there is mail besides what the commit consumes, nothing is written and the
answer is MAIL_WAITING (but see `Release` for runs whose turn failed). So a message that was acknowledged is either
taken by the owner, or finds its run closed.

*Senders never write `runs`.* `send` checks under lock that the run is open and inserts one mailbox row, stamped
with the run's present owner. A message id that already waits for the same run is acknowledged again and not
inserted twice. A start may bring its first messages along: they are in the mailbox when anybody can first see the run.

*Replies.* What the owner answers to a message goes into `replies`, by message id, in the commit of the turn that took
the message or of a later one: an answer that can be read was given by a turn that is on disk. Whoever asked looks for
it there. Replies belong to no run and outlive theirs; nobody takes them out, they are forgotten by age.

*Liveness.* Each node has a row with a counter that it raises; `nodes` shows them, and says `gone=True` for a node
that the kernel (or the server) knows to have ended. Who reads it decides. `declare_dead` changes one row. A run is
free to be claimed when it has no owner and is due (`wake_at_us <= now_us`), or has no owner and has mail, or its
owner is a node that is not alive.

Errors: `Busy` and `StoreUnavailable` mean that nothing was written. `CommitUnknown`, which every method that writes
may raise, means that the whole call is perhaps written: after `commit`, read each run's row; `turn_id` there tells.
Any other exception is a bug, and nothing was written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, StrEnum
from typing import Protocol, TypeAlias

from msgspec import Struct

from outlast.model.ids import ActivityId, MessageId, Namespace, NodeId, RunId, TurnId, WorkflowId


class RunStatus(StrEnum):
    OPEN = "open"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"


class RunRow(Struct, frozen=True, gc=False):
    """The row of one run. `wake_at_us` counts only while there is no owner."""

    run_id: RunId
    namespace: Namespace
    workflow_id: WorkflowId
    workflow: str
    """Name of the workflow type."""
    queue: str
    status: RunStatus
    owner: NodeId | None
    next_event: int
    """Position that the next event will get: events 1 .. next_event - 1 are in the journal."""
    turn_id: TurnId | None
    """The turn that was committed last; None if there was none yet (a start without an owner)."""
    wake_at_us: int | None
    """When an unowned run is due; None: not before it gets mail."""
    claims: int
    """Claims since the last commit that was progress: any but one that only parks the run (see `Release`)."""
    priority: int
    kind: str
    """What runs the program; "python" for the native SDK."""
    format: int
    """The newest event format that its history uses."""
    started_at_us: int
    closed_at_us: int | None
    error: str | None
    """Why the last turn failed; None again after the next commit that appended events, or released it without one."""


class JournalRow(Struct, frozen=True, gc=False):
    """One turn of one run: `count` events from position `first_event` on, as `encode_events` wrote them."""

    run_id: RunId
    first_event: int
    count: int
    turn_id: TurnId | None
    at_us: int
    events: bytes


class Mail(Struct, frozen=True, gc=False):
    """One message that waits. `mail_id` grows, but not in the order of commits: consume by exact ids, never by range.

    `body` is UTF-8 text, as `encode_message` writes it."""

    mail_id: int
    run_id: RunId
    message_id: MessageId
    at_us: int
    body: bytes


# --- commits ----------------------------------------------------------------------------------------------------


class IdReuse(StrEnum):
    """What a start does when its workflow id has been used in this namespace."""

    AFTER_CLOSE = "after_close"
    """Only an open run is in the way."""
    NEVER = "never"
    """Any run with this id is in the way."""


class NewRun(Struct, frozen=True, gc=False):
    """The row of a run to be created. With an owner it begins in that node's memory, else it waits for a claim."""

    namespace: Namespace
    workflow_id: WorkflowId
    workflow: str
    queue: str
    owner: NodeId | None
    wake_at_us: int | None
    priority: int = 0
    kind: str = "python"
    format: int = 1
    id_reuse: IdReuse = IdReuse.AFTER_CLOSE
    mail: tuple[tuple[MessageId, bytes], ...] = ()
    """Messages that are put into its mailbox in the same transaction, in this order: message id and body (UTF-8 text),
    each id once. Stamped with the run's owner and the commit's `at_us`; without an owner, they make the run free to be
    claimed, as any mail does. They are not counted against the limit of mailboxes: the start has no answer for that.
    Not together with `status`."""


class Fence(Struct, frozen=True, gc=False):
    """What the caller believes of the row of an open run."""

    owner: NodeId
    next_event: int


class Release(Struct, frozen=True, gc=False):
    """Give the run back: no owner, due at `wake_at_us`.

    `error` says why its turn failed, if it did. Such a run is *parked*: it is released in spite of mail, and mail
    alone does not make it free to be claimed, since it cannot take any before its code or its environment changes.
    """

    wake_at_us: int | None
    error: str | None = None


class NewTask(Struct, frozen=True, gc=False):
    """An attempt of an activity, for whichever node hosts the activity on the queue. One task per (run, activity)."""

    activity_id: ActivityId
    activity: str
    queue: str
    attempt: int
    visible_at_us: int
    body: bytes
    """Everything the attempt needs, as UTF-8 text; the store does not look into it."""


class NewReply(Struct, frozen=True, gc=False):
    """What the owner of a run answers to a message."""

    message_id: MessageId
    """One for all runs of the database: see `model.replies.reply_id`."""
    body: bytes
    """UTF-8 text; replaces an earlier reply to the same message."""


class Commit(Struct, frozen=True, gc=False):
    """Everything that one turn of one run writes, or nothing of it.

    Exactly one of `create` and `fence` is given. `events` may be empty only with a fence.
    """

    run_id: RunId
    turn_id: TurnId | None
    at_us: int
    events: bytes = b""
    """As `encode_events` writes them; b"" if `count` is 0."""
    count: int = 0
    create: NewRun | None = None
    fence: Fence | None = None
    status: RunStatus | None = None
    """Closes the run: terminal status, no owner, closed_at_us = at_us. Its tasks are removed."""
    release: Release | None = None
    """Not together with `status` or `create`."""
    consume: tuple[int, ...] = ()
    """Mail to delete, by exact ids, of this run only."""
    add_tasks: tuple[NewTask, ...] = ()
    """Each replaces a task of the same activity. None of them outlives a commit that closes the run."""
    drop_tasks: tuple[ActivityId, ...] = ()
    """Dropped before the others are added."""
    replies: tuple[NewReply, ...] = ()
    """One for each of these messages at most; dated `at_us`. Also of a commit that closes or releases the run, and of
    one without events. Not together with `create`. If two commits of a batch reply to one message, one of the two
    replies is kept."""


class Answer(Enum):
    COMMITTED = "committed"
    FENCED = "fenced"
    """The run is closed, or has another owner or next_event than the fence says; or this commit, or a later turn of
    its node, is written already (turn ids of one node only grow): a copy that arrives late changes nothing, also where
    no event moves the fence. Nothing of it was written by this call."""
    MAIL_WAITING = "mail waiting"
    """The commit would close or release the run, but mail arrived that it does not consume, or is about to arrive.
    Nothing was written."""
    ID_IN_USE = "id in use"
    """The commit would create a run, but its workflow id is taken (see IdReuse), or the run id exists."""


# --- mail, claims, tasks, nodes ----------------------------------------------------------------------------------


class NewMail(Struct, frozen=True, gc=False):
    run_id: RunId
    message_id: MessageId
    at_us: int
    body: bytes
    beyond_limit: bool = False
    """A full mailbox does not count: the end of an attempt, which has no sender who could try again later."""


class Sent(Enum):
    ACCEPTED = "accepted"
    """On disk. Also the answer for a message id that waits in the mailbox already."""
    NO_SUCH_RUN = "no such run"
    CLOSED = "closed"
    FULL = "full"
    """The mailbox holds `mailbox_limit` messages already."""


class Claim(Struct, frozen=True, gc=False):
    """Which runs a node would take."""

    node: NodeId
    namespace: Namespace
    queues: tuple[str, ...]
    workflows: tuple[str, ...]
    """Names of workflow types that the node hosts."""
    max_format: int
    """The newest event format that the node reads."""
    now_us: int
    limit: int
    parked: bool = False
    """Also take runs that wait only because their last turn failed (`error` is set), whether due or not."""
    suspect: bool = False
    """False: leave out *suspects*, which are runs of dead nodes that had claimed them and committed nothing since
    (`claims` > 0): perhaps it is they that kill whoever loads them. True: take one suspect, and nothing else: the one
    with the fewest claims, among those the most urgent. So no other run can share the fate of the one that kills."""


class Claimed(Struct, frozen=True, gc=False):
    run: RunRow
    """As it is after the claim: owned by the node, `claims` raised by one."""
    lost: bool
    """True if it was taken from a node that died, False if it had no owner."""


HeldTask: TypeAlias = tuple[RunId, ActivityId, int]
"""Run, activity, number of the attempt."""


class TaskClaim(Struct, frozen=True, gc=False):
    node: NodeId
    namespace: Namespace
    queues: tuple[str, ...]
    activities: tuple[str, ...]
    now_us: int
    limit: int
    held: tuple[HeldTask, ...] | None = None
    """Not None: the node holds these and no others. Any other that is claimed by this very node was given to it by a
    call whose answer it never got; it is given again, as lost if it was lost then."""


class Task(Struct, frozen=True, gc=False):
    """A dispatched attempt, claimed by a node. It stays a row until its outcome is delivered."""

    run_id: RunId
    activity_id: ActivityId
    activity: str
    queue: str
    attempt: int
    body: bytes
    lost: bool
    """True if another node had claimed this attempt and died: the attempt is lost and must not be run again;
    deliver that as its outcome. It stays lost for whoever claims it next."""


class NodeRow(Struct, frozen=True, gc=False):
    node_id: NodeId
    name: str
    alive: bool
    """False once somebody declared it dead; never true again."""
    counter: int
    gone: bool
    """The kernel or the server knows that its process has ended."""


class RunFilter(Struct, frozen=True, gc=False):
    namespace: Namespace
    workflow_id: WorkflowId | None = None
    workflow: str | None = None
    status: RunStatus | None = None
    owner: NodeId | None = None
    limit: int = 100
    before: RunId | None = None
    """Only runs that started before this one (for paging)."""


MAILBOX_LIMIT = 10_000
"""Messages that may wait for one run. A run that is this far behind is stuck; its senders are told FULL, before the
disk is."""


class Store(Protocol):
    """All methods may raise Busy or StoreUnavailable; those that write, also CommitUnknown."""

    @property
    def poll_s(self) -> float:
        """How often a node should look for what no hint has told it of, in seconds: what a lost hint may cost."""
        ...

    async def open(self) -> None:
        """Create or migrate the schema. Raises NotADatabase, DatabaseTooNew; then nothing was changed."""
        ...

    async def close(self) -> None:
        """Wait for what is under way, then let go of everything. Idempotent."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the event loop soon after another process (or another store object) has written.

        A hint that only saves latency: it may come late, twice, for nothing, or not at all.
        """
        ...

    async def now_us(self) -> int | None:
        """The database's clock, microseconds since 1970 UTC. None: it is the clock of this machine, ask that."""
        ...

    # nodes
    async def join(self, name: str) -> NodeId:
        """Add a live node. Its id is greater than every id before it.

        Dead nodes that own no open run and hold no task are forgotten at this moment.
        """
        ...

    async def heartbeat(self, node: NodeId) -> bool:
        """Raise the node's counter. False: it has been declared dead (or does not exist), and must stop hosting."""
        ...

    async def nodes(self) -> list[NodeRow]:
        """All nodes that are alive by their row, and the dead that still own open runs or claimed tasks."""
        ...

    async def declare_dead(self, node: NodeId) -> bool:
        """Mark the row. True if it was alive until now. Also how a node says good-bye."""
        ...

    # the owner's side
    def commit(self, batch: Sequence[Commit]) -> Awaitable[list[Answer]]:
        """Write the batch in one transaction; one answer per commit, in order. A run occurs at most once in a batch.

        Whether a start finds its workflow id free, if another commit of the batch gives it up, is up to the store.
        """
        ...

    async def claim(self, claim: Claim) -> list[Claimed]:
        """Become the owner of up to `limit` free runs, highest priority first, then longest due, then by run id.

        A run is due since `wake_at_us`, or since its oldest mail if that is earlier; one of a dead node since the
        `wake_at_us` it had (0 if none); a parked one that is not due, since now. A node that has been declared dead
        gets nothing. Suspects are claimed one at a time (see `Claim.suspect`).
        """
        ...

    async def take(self, node: NodeId, run_id: RunId) -> Claimed | None:
        """Become the owner of this run, whether it is due or not, parked or suspect, and whatever its workflow.

        None, and nothing is written, if it is not open, has an owner that is alive, or if the node has been declared
        dead. The caller must be able to read the run's format.
        """
        ...

    async def mail_of(self, node: NodeId, limit: int) -> list[Mail]:
        """Mail that waits for open runs which the node owns, in order of mail_id."""
        ...

    async def mail_for(self, run_ids: Sequence[RunId]) -> list[Mail]:
        """Mail that waits for these runs, in order of mail_id."""
        ...

    # the sender's side
    async def send(self, mail: Sequence[NewMail]) -> list[Sent]:
        """Put messages into mailboxes, in one transaction; one answer per message, in order."""
        ...

    async def replies(self, message_ids: Sequence[MessageId]) -> dict[MessageId, bytes]:
        """The replies to these messages; those that have none (yet, or any more) are left out.

        Who calls this is told by `on_change` of replies that are written within the next second, where a store tells
        anything: so ask again after each hint, and now and then.
        """
        ...

    async def forget_replies(self, before_us: int, limit: int) -> int:
        """Delete up to `limit` replies with an `at_us` below `before_us`, the oldest first. Returns how many.

        Fewer than `limit` does not mean that none is left: another process may be at it.
        """
        ...

    # dispatched activities
    async def claim_tasks(self, claim: TaskClaim) -> list[Task]:
        """Take up to `limit` visible tasks: first those claimed by a node that is not alive, then those that the node
        has without knowing (see `TaskClaim.held`), then those that nobody has claimed; each as they became visible.
        A node that has been declared dead gets nothing.
        """
        ...

    async def deliver(self, node: NodeId, task: Task, mail: NewMail) -> bool:
        """Remove the task and put its outcome into the run's mailbox, in one transaction.

        False, and nothing is written, if the node no longer holds this attempt (the task is gone or replaced, or
        another node has it). A full mailbox does not count here: the outcome has nowhere else to go.
        """
        ...

    async def tasks_of(self, run_ids: Sequence[RunId]) -> dict[RunId, list[ActivityId]]:
        """Activities of these runs for which a task is in the table, claimed or not. Runs without any are left out."""
        ...

    # reading; sees everything that was committed before the call
    async def backlog(self, namespace: Namespace, queue: str, now_us: int, limit: int) -> int:
        """How many open runs of the queue have no owner and are due by `wake_at_us`, counted up to `limit`."""
        ...

    async def run(self, run_id: RunId) -> RunRow | None: ...

    async def closed_of(self, run_ids: Sequence[RunId]) -> list[RunRow]:
        """Those of these runs that are closed, in order of run id."""
        ...

    async def find(self, namespace: Namespace, workflow_id: WorkflowId) -> RunRow | None:
        """The open run with this id, else the one that started last, else None."""
        ...

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        """Newest first (by run id)."""
        ...

    async def history(self, run_id: RunId, from_event: int = 1) -> list[JournalRow]:
        """Rows whose events reach `from_event` or later, in order. Empty if there is no such run."""
        ...

    async def histories(self, run_ids: Sequence[RunId]) -> dict[RunId, list[JournalRow]]:
        """The whole histories of several runs; empty for one that does not exist."""
        ...
