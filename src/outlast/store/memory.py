"""The store in memory: for tests, and the reference that says what the other stores must answer.

As plain as it can be: every rule of `store.api` stands here once, as a condition on Python values, so that it can be
checked by reading. The differential test compares the other stores with this one. Nothing survives the process.

`MemoryStore()` makes new data; `connect` gives another store object on the same data, as a second process would
have. A store that is closed has gone with all nodes that joined through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice

from msgspec.structs import replace

from outlast.model.errors import StoreUnavailable
from outlast.model.ids import TURN_BITS, ActivityId, MessageId, Namespace, NodeId, RunId, TurnId, WorkflowId
from outlast.store.api import (
    MAILBOX_LIMIT,
    Answer,
    Claim,
    Claimed,
    Commit,
    HeldTask,
    IdReuse,
    JournalRow,
    Mail,
    NewMail,
    NewRun,
    NewTask,
    NodeRow,
    RunFilter,
    RunRow,
    RunStatus,
    Sent,
    Task,
    TaskClaim,
)
from outlast.store.contract import as_text, check_batch, check_delivery, check_text


@dataclass(slots=True)
class _Node:
    name: str
    alive: bool = True
    counter: int = 0
    gone: bool = False


@dataclass(slots=True)
class _StoredTask:
    task: NewTask
    namespace: Namespace
    node: NodeId | None = None
    lost: bool = False


@dataclass(slots=True)
class Data:
    """The tables. Shared by the stores that are connected to them."""

    runs: dict[RunId, RunRow] = field(default_factory=dict[RunId, RunRow])
    run_ids: dict[tuple[Namespace, WorkflowId], list[RunId]] = field(
        default_factory=dict[tuple[Namespace, WorkflowId], list[RunId]]
    )
    """Of all runs that had a workflow id."""
    journal: dict[RunId, list[JournalRow]] = field(default_factory=dict[RunId, list[JournalRow]])
    mailboxes: dict[RunId, list[Mail]] = field(default_factory=dict[RunId, list[Mail]])
    mail_ids: int = 0
    tasks: dict[tuple[RunId, ActivityId], _StoredTask] = field(
        default_factory=dict[tuple[RunId, ActivityId], _StoredTask]
    )
    replies: dict[MessageId, tuple[int, bytes]] = field(default_factory=dict[MessageId, tuple[int, bytes]])
    """`at_us` and body."""
    nodes: dict[NodeId, _Node] = field(default_factory=dict[NodeId, _Node])
    node_ids: int = 0
    stores: list[MemoryStore] = field(default_factory=list["MemoryStore"])

    def runs_of(self, namespace: Namespace, workflow_id: WorkflowId) -> list[RunRow]:
        return [self.runs[run_id] for run_id in self.run_ids.get((namespace, workflow_id), [])]

    def mail_waiting_for(self, run_id: RunId) -> list[Mail]:
        return self.mailboxes.get(run_id, [])

    def all_mail(self) -> list[Mail]:
        return sorted((mail for box in self.mailboxes.values() for mail in box), key=lambda mail: mail.mail_id)

    def is_alive(self, node: NodeId) -> bool:
        return node in self.nodes and self.nodes[node].alive

    def busy_nodes(self) -> set[NodeId | None]:
        """Those that own open runs or hold tasks."""
        owners = {run.owner for run in self.runs.values() if run.status is RunStatus.OPEN}
        return owners | {stored.node for stored in self.tasks.values()}

    def put(self, mail: NewMail) -> None:
        """A message id that waits already is not put there twice."""
        if all(waiting.message_id != mail.message_id for waiting in self.mail_waiting_for(mail.run_id)):
            self.mail_ids += 1
            stored = Mail(self.mail_ids, mail.run_id, mail.message_id, mail.at_us, mail.body)
            self.mailboxes.setdefault(mail.run_id, []).append(stored)


# --- commits ----------------------------------------------------------------------------------------------------


def _commit(data: Data, commit: Commit) -> Answer:
    answer = _create(data, commit) if commit.create is not None else _advance(data, commit)
    if answer is Answer.COMMITTED:
        _write_journal(data, commit)
        _write_tasks(data, commit)
        _write_messages(data, commit)
    return answer


def _create(data: Data, commit: Commit) -> Answer:
    new = commit.create
    assert new is not None
    if commit.run_id in data.runs or _id_in_use(data, new):
        return Answer.ID_IN_USE
    closed = commit.status is not None
    data.run_ids.setdefault((new.namespace, new.workflow_id), []).append(commit.run_id)
    data.runs[commit.run_id] = RunRow(
        run_id=commit.run_id,
        namespace=new.namespace,
        workflow_id=new.workflow_id,
        workflow=new.workflow,
        queue=new.queue,
        status=commit.status or RunStatus.OPEN,
        owner=None if closed else new.owner,
        next_event=1 + commit.count,
        turn_id=commit.turn_id,
        wake_at_us=new.wake_at_us,
        claims=0,
        priority=new.priority,
        kind=new.kind,
        format=new.format,
        started_at_us=commit.at_us,
        closed_at_us=commit.at_us if closed else None,
        error=None,
    )
    return Answer.COMMITTED


def _id_in_use(data: Data, new: NewRun) -> bool:
    return any(
        run.status is RunStatus.OPEN or new.id_reuse is IdReuse.NEVER
        for run in data.runs_of(new.namespace, new.workflow_id)
    )


def _advance(data: Data, commit: Commit) -> Answer:
    fence = commit.fence
    assert fence is not None
    run = data.runs.get(commit.run_id)
    if run is None or run.status is not RunStatus.OPEN:
        return Answer.FENCED
    if run.owner != fence.owner or run.next_event != fence.next_event or _is_written(run, commit.turn_id):
        return Answer.FENCED
    release, parks = commit.release, commit.release is not None and commit.release.error is not None
    left = [mail for mail in data.mail_waiting_for(commit.run_id) if mail.mail_id not in commit.consume]
    if left and not parks and (release is not None or commit.status is not None):
        return Answer.MAIL_WAITING
    data.mailboxes[commit.run_id] = left
    run = replace(
        run,
        next_event=run.next_event + commit.count,
        turn_id=run.turn_id if commit.turn_id is None else commit.turn_id,
        claims=run.claims if parks and not commit.count else 0,
        error=None if commit.count else run.error,
    )
    if release is not None:
        run = replace(run, owner=None, wake_at_us=release.wake_at_us, error=release.error)
    if commit.status is not None:
        run = replace(run, owner=None, wake_at_us=None, error=None, status=commit.status, closed_at_us=commit.at_us)
    data.runs[commit.run_id] = run
    return Answer.COMMITTED


def _is_written(run: RunRow, turn_id: TurnId | None) -> bool:
    """This turn, or a later one of its node. The turn ids of one node only grow."""
    if turn_id is None or run.turn_id is None:
        return False
    return turn_id >> TURN_BITS == run.turn_id >> TURN_BITS and turn_id <= run.turn_id


def _write_journal(data: Data, commit: Commit) -> None:
    rows = data.journal.setdefault(commit.run_id, [])
    if commit.count:
        first_event = data.runs[commit.run_id].next_event - commit.count
        rows.append(JournalRow(commit.run_id, first_event, commit.count, commit.turn_id, commit.at_us, commit.events))


def _write_tasks(data: Data, commit: Commit) -> None:
    for activity_id in commit.drop_tasks:
        data.tasks.pop((commit.run_id, activity_id), None)
    for task in commit.add_tasks:
        data.tasks[commit.run_id, task.activity_id] = _StoredTask(task, data.runs[commit.run_id].namespace)
    if commit.status is not None:
        for key in [key for key in data.tasks if key[0] == commit.run_id]:
            del data.tasks[key]


def _write_messages(data: Data, commit: Commit) -> None:
    """Those that a start brings along, and those that the owner answers with."""
    if commit.create is not None:
        for message_id, body in commit.create.mail:
            data.put(NewMail(commit.run_id, message_id, commit.at_us, body))
    for reply in commit.replies:
        data.replies[reply.message_id] = (commit.at_us, reply.body)


# --- mail and claims --------------------------------------------------------------------------------------------


def _send(data: Data, mail: NewMail, mailbox_limit: int) -> Sent:
    run = data.runs.get(mail.run_id)
    if run is None:
        return Sent.NO_SUCH_RUN
    if run.status is not RunStatus.OPEN:
        return Sent.CLOSED
    waiting = data.mail_waiting_for(mail.run_id)
    is_full = len(waiting) >= mailbox_limit and not mail.beyond_limit
    if is_full and all(each.message_id != mail.message_id for each in waiting):
        return Sent.FULL
    data.put(mail)
    return Sent.ACCEPTED


def _due_since(data: Data, run: RunRow, claim: Claim) -> int | None:
    """Since when the run is free to be claimed, for the order; None if it is not."""
    if run.owner is not None:
        return None if data.is_alive(run.owner) else run.wake_at_us or 0
    reasons: list[int] = []
    if run.wake_at_us is not None and run.wake_at_us <= claim.now_us:
        reasons.append(run.wake_at_us)
    if run.error is None:
        reasons += [mail.at_us for mail in data.mail_waiting_for(run.run_id)]
    elif claim.parked:
        reasons.append(claim.now_us)
    return min(reasons, default=None)


def _claim(data: Data, claim: Claim) -> Iterator[Claimed]:
    free: list[tuple[int, int, int, RunId]] = []
    for run in data.runs.values():
        due_us = _due_since(data, run, claim)
        is_suspect = run.owner is not None and run.claims > 0
        if (
            due_us is not None
            and is_suspect == claim.suspect
            and run.status is RunStatus.OPEN
            and run.namespace == claim.namespace
            and run.queue in claim.queues
            and run.workflow in claim.workflows
            and run.format <= claim.max_format
        ):
            free.append((run.claims if is_suspect else 0, -run.priority, due_us, run.run_id))
    for _, _, _, run_id in sorted(free)[: min(claim.limit, 1) if claim.suspect else claim.limit]:
        run = data.runs[run_id]
        data.runs[run_id] = replace(run, owner=claim.node, claims=run.claims + 1)
        yield Claimed(data.runs[run_id], lost=run.owner is not None)


def _take(data: Data, node: NodeId, run_id: RunId) -> Claimed | None:
    run = data.runs.get(run_id)
    if run is None or run.status is not RunStatus.OPEN or not data.is_alive(node):
        return None
    if run.owner is not None and data.is_alive(run.owner):
        return None
    data.runs[run_id] = replace(run, owner=node, claims=run.claims + 1)
    return Claimed(data.runs[run_id], lost=run.owner is not None)


def _claim_tasks(data: Data, claim: TaskClaim) -> Iterator[Task]:
    free: list[tuple[_Free, int, tuple[RunId, ActivityId]]] = []
    for key, stored in data.tasks.items():
        why = _why_free(data, stored, (*key, stored.task.attempt), claim)
        if (
            why is not None
            and stored.namespace == claim.namespace
            and stored.task.queue in claim.queues
            and stored.task.activity in claim.activities
            and stored.task.visible_at_us <= claim.now_us
        ):
            free.append((why, stored.task.visible_at_us, key))
    for why, _, (run_id, activity_id) in sorted(free)[: claim.limit]:
        stored = data.tasks[run_id, activity_id]
        stored.node = claim.node
        stored.lost = stored.lost or why is _Free.LOST
        task = stored.task
        yield Task(run_id, activity_id, task.activity, task.queue, task.attempt, task.body, stored.lost)


class _Free(IntEnum):
    """Why a task may be taken; in this order they are."""

    LOST = 0
    OWN = 1
    UNCLAIMED = 2


def _why_free(data: Data, stored: _StoredTask, task: HeldTask, claim: TaskClaim) -> _Free | None:
    if stored.node is None:
        return _Free.UNCLAIMED
    if stored.node == claim.node:
        return None if claim.held is None or task in claim.held else _Free.OWN
    return None if data.is_alive(stored.node) else _Free.LOST


def _deliver(data: Data, node: NodeId, task: Task, mail: NewMail) -> bool:
    stored = data.tasks.get((task.run_id, task.activity_id))
    if stored is None or stored.node != node or stored.task.attempt != task.attempt:
        return False
    del data.tasks[task.run_id, task.activity_id]
    data.put(mail)
    return True


# --- the store --------------------------------------------------------------------------------------------------


class MemoryStore:
    """The `Store` protocol on plain Python values, for one event loop."""

    def __init__(self, data: Data | None = None, *, mailbox_limit: int = MAILBOX_LIMIT) -> None:
        self._data = Data() if data is None else data
        self._mailbox_limit = mailbox_limit
        self._open = False
        self._joined: list[NodeId] = []
        self._callbacks: list[Callable[[], None]] = []

    @property
    def poll_s(self) -> float:
        return 0.25

    async def now_us(self) -> None:
        return None

    def connect(self) -> MemoryStore:
        """Another store on the same data."""
        return MemoryStore(self._data, mailbox_limit=self._mailbox_limit)

    async def open(self) -> None:
        assert not self._open, "opened twice"
        self._open = True
        self._data.stores.append(self)

    async def close(self) -> None:
        if self._open:
            self._open = False
            self._data.stores.remove(self)
            for node in self._joined:
                if node in self._data.nodes:
                    self._data.nodes[node].gone = True

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def _reading(self) -> Data:
        if not self._open:
            raise StoreUnavailable("the store is not open, or is closed. Nothing was written.")
        return self._data

    def _writing(self) -> Data:
        data = self._reading()
        loop = asyncio.get_running_loop()
        for store in data.stores:
            if store is not self:
                for callback in store._callbacks:
                    loop.call_soon(callback)
        return data

    async def join(self, name: str) -> NodeId:
        data = self._writing()
        busy = data.busy_nodes()
        data.nodes = {each: row for each, row in data.nodes.items() if row.alive or each in busy}
        data.node_ids += 1
        node = NodeId(data.node_ids)
        data.nodes[node] = _Node(name)
        self._joined.append(node)
        return node

    async def heartbeat(self, node: NodeId) -> bool:
        data = self._writing()
        if not data.is_alive(node):
            return False
        data.nodes[node].counter += 1
        return True

    async def nodes(self) -> list[NodeRow]:
        data = self._reading()
        busy = data.busy_nodes()
        return [
            NodeRow(node_id, node.name, node.alive, node.counter, node.gone)
            for node_id, node in data.nodes.items()
            if node.alive or node_id in busy
        ]

    async def declare_dead(self, node: NodeId) -> bool:
        data = self._writing()
        if not data.is_alive(node):
            return False
        data.nodes[node].alive = False
        return True

    async def commit(self, batch: Sequence[Commit]) -> list[Answer]:
        check_batch(batch)
        for commit in batch:
            check_text(commit)
        data = self._writing()
        return [_commit(data, commit) for commit in batch]

    async def claim(self, claim: Claim) -> list[Claimed]:
        data = self._reading()
        claimed = list(_claim(data, claim)) if data.is_alive(claim.node) else []
        if claimed:
            self._writing()  # or two nodes that find nothing would hint each other for ever
        return claimed

    async def take(self, node: NodeId, run_id: RunId) -> Claimed | None:
        return _take(self._writing(), node, run_id)

    async def mail_of(self, node: NodeId, limit: int) -> list[Mail]:
        data = self._reading()
        mine = [mail for mail in data.all_mail() if data.runs[mail.run_id].owner == node]
        return mine[:limit]

    async def mail_for(self, run_ids: Sequence[RunId]) -> list[Mail]:
        return [mail for mail in self._reading().all_mail() if mail.run_id in run_ids]

    async def send(self, mail: Sequence[NewMail]) -> list[Sent]:
        for each in mail:
            as_text(each.body, f"message {each.message_id}")
        data = self._writing()
        return [_send(data, each, self._mailbox_limit) for each in mail]

    async def replies(self, message_ids: Sequence[MessageId]) -> dict[MessageId, bytes]:
        found = self._reading().replies
        return {message_id: found[message_id][1] for message_id in message_ids if message_id in found}

    async def forget_replies(self, before_us: int, limit: int) -> int:
        data = self._reading()
        old = sorted((at_us, message_id) for message_id, (at_us, _) in data.replies.items() if at_us < before_us)
        for _, message_id in old[:limit]:
            del data.replies[message_id]
        return len(old[:limit])

    async def claim_tasks(self, claim: TaskClaim) -> list[Task]:
        data = self._reading()
        tasks = list(_claim_tasks(data, claim)) if data.is_alive(claim.node) else []
        if tasks:
            self._writing()
        return tasks

    async def deliver(self, node: NodeId, task: Task, mail: NewMail) -> bool:
        check_delivery(task, mail)
        as_text(mail.body, f"message {mail.message_id}")
        return _deliver(self._writing(), node, task, mail)

    async def tasks_of(self, run_ids: Sequence[RunId]) -> dict[RunId, list[ActivityId]]:
        found: dict[RunId, list[ActivityId]] = {}
        for run_id, activity_id in sorted(self._reading().tasks):
            if run_id in run_ids:
                found.setdefault(run_id, []).append(activity_id)
        return found

    async def backlog(self, namespace: Namespace, queue: str, now_us: int, limit: int) -> int:
        waiting = (
            run
            for run in self._reading().runs.values()
            if run.status is RunStatus.OPEN and run.owner is None and run.namespace == namespace and run.queue == queue
            if run.wake_at_us is not None and run.wake_at_us <= now_us
        )
        return sum(1 for _ in islice(waiting, limit))

    async def run(self, run_id: RunId) -> RunRow | None:
        return self._reading().runs.get(run_id)

    async def closed_of(self, run_ids: Sequence[RunId]) -> list[RunRow]:
        runs = self._reading().runs
        found = [runs[run_id] for run_id in sorted(set(run_ids)) if run_id in runs]
        return [run for run in found if run.status is not RunStatus.OPEN]

    async def find(self, namespace: Namespace, workflow_id: WorkflowId) -> RunRow | None:
        found = self._reading().runs_of(namespace, workflow_id)
        return max(found, key=lambda run: (run.status is RunStatus.OPEN, run.run_id), default=None)

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        found = [
            run
            for run in self._reading().runs.values()
            if run.namespace == wanted.namespace
            and wanted.workflow_id in (None, run.workflow_id)
            and wanted.workflow in (None, run.workflow)
            and wanted.status in (None, run.status)
            and wanted.owner in (None, run.owner)
            and (wanted.before is None or run.run_id < wanted.before)
        ]
        return sorted(found, key=lambda run: run.run_id, reverse=True)[: wanted.limit]

    async def history(self, run_id: RunId, from_event: int = 1) -> list[JournalRow]:
        rows = self._reading().journal.get(run_id, [])
        return [row for row in rows if row.first_event + row.count > from_event]

    async def histories(self, run_ids: Sequence[RunId]) -> dict[RunId, list[JournalRow]]:
        journal = self._reading().journal
        return {run_id: list(journal.get(run_id, [])) for run_id in run_ids}
