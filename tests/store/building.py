"""Commits, mail and claims with as few words as possible, for the tests of the stores."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import EllipsisType

from outlast.model.ids import ActivityId, MessageId, Namespace, NodeId, RunId, TurnId, WorkflowId
from outlast.store.api import (
    Answer,
    Claim,
    Commit,
    Fence,
    IdReuse,
    NewMail,
    NewReply,
    NewRun,
    NewTask,
    Release,
    RunRow,
    RunStatus,
    Store,
    Task,
    TaskClaim,
)

NAMESPACE = Namespace("default")
QUEUE = "orders"
WORKFLOW = "fulfil_order"
ACTIVITY = "charge_payment"
CANCEL = b'{"type":"CancelRequested"}'


def run_id(number: int) -> RunId:
    return RunId(f"{number:032x}")


def events(count: int, mark: object = "") -> bytes:
    return ("[" + ",".join(f'{{"type":"Something","mark":"{mark}"}}' for _ in range(count)) + "]").encode()


def start(
    number: int,
    *,
    workflow_id: str | None = None,
    owner: NodeId | None = None,
    wake_at_us: int | None = 0,
    priority: int = 0,
    queue: str = QUEUE,
    workflow: str = WORKFLOW,
    namespace: Namespace = NAMESPACE,
    format: int = 1,
    id_reuse: IdReuse = IdReuse.AFTER_CLOSE,
    at_us: int = 1,
    count: int = 1,
    turn_id: int | None = None,
    status: RunStatus | None = None,
    add_tasks: Sequence[NewTask] = (),
    mail: Sequence[str] = (),
) -> Commit:
    """`mail`: message ids."""
    new = NewRun(
        namespace,
        WorkflowId(f"order-{number}" if workflow_id is None else workflow_id),
        workflow,
        queue,
        owner,
        wake_at_us,
        priority,
        format=format,
        id_reuse=id_reuse,
        mail=tuple((MessageId(message_id), CANCEL) for message_id in mail),
    )
    turn = None if turn_id is None else TurnId(turn_id)
    return Commit(
        run_id(number), turn, at_us, events(count), count, create=new, status=status, add_tasks=tuple(add_tasks)
    )


_turn_ids = itertools.count(1_000)


def turn(
    number: int,
    owner: NodeId,
    next_event: int,
    *,
    count: int = 1,
    turn_id: int | EllipsisType | None = ...,
    at_us: int = 2,
    status: RunStatus | None = None,
    release: Release | None = None,
    consume: Sequence[int] = (),
    add_tasks: Sequence[NewTask] = (),
    drop_tasks: Sequence[str] = (),
    replies: Mapping[str, bytes] | None = None,
) -> Commit:
    """Without a `turn_id`, it is newer than all before it."""
    if turn_id is ...:
        turn_id = next(_turn_ids)
    return Commit(
        run_id(number),
        None if turn_id is None else TurnId(turn_id),
        at_us,
        events(count, turn_id) if count else b"",
        count,
        fence=Fence(owner, next_event),
        status=status,
        release=release,
        consume=tuple(consume),
        add_tasks=tuple(add_tasks),
        drop_tasks=tuple(ActivityId(each) for each in drop_tasks),
        replies=tuple(NewReply(MessageId(message_id), body) for message_id, body in (replies or {}).items()),
    )


def release(
    number: int, owner: NodeId, next_event: int, wake_at_us: int | None = None, error: str | None = None
) -> Commit:
    return turn(number, owner, next_event, count=0, release=Release(wake_at_us, error))


def mail(number: int, message_id: str, at_us: int = 5, body: bytes = CANCEL) -> NewMail:
    return NewMail(run_id(number), MessageId(message_id), at_us, body)


def task(
    activity_id: str = "1",
    *,
    activity: str = ACTIVITY,
    queue: str = QUEUE,
    attempt: int = 1,
    visible_at_us: int = 0,
    body: bytes = b'{"args":[1]}',
) -> NewTask:
    return NewTask(ActivityId(activity_id), activity, queue, attempt, visible_at_us, body)


def claim(
    node: NodeId,
    *,
    now_us: int = 100,
    limit: int = 10,
    queues: Sequence[str] = (QUEUE,),
    workflows: Sequence[str] = (WORKFLOW,),
    namespace: Namespace = NAMESPACE,
    max_format: int = 1,
    parked: bool = False,
    suspect: bool = False,
) -> Claim:
    return Claim(node, namespace, tuple(queues), tuple(workflows), max_format, now_us, limit, parked, suspect)


def task_claim(
    node: NodeId,
    *,
    now_us: int = 100,
    limit: int = 10,
    queues: Sequence[str] = (QUEUE,),
    activities: Sequence[str] = (ACTIVITY,),
    namespace: Namespace = NAMESPACE,
    held: Iterable[Task] | None = None,
) -> TaskClaim:
    names = None if held is None else tuple((each.run_id, each.activity_id, each.attempt) for each in held)
    return TaskClaim(node, namespace, tuple(queues), tuple(activities), now_us, limit, names)


async def commit_one(store: Store, commit: Commit) -> Answer:
    (answer,) = await store.commit([commit])
    return answer


async def claimed(store: Store, wanted: Claim) -> list[RunId]:
    return [each.run.run_id for each in await store.claim(wanted)]


async def row(store: Store, number: int) -> RunRow:
    found = await store.run(run_id(number))
    assert found is not None
    return found


async def marks(store: Store, number: int) -> list[tuple[int, int, int | None]]:
    """The history as (first_event, count, turn_id)."""
    return [(each.first_event, each.count, each.turn_id) for each in await store.history(run_id(number))]


async def committed(store: Store, *batch: Commit) -> list[Answer]:
    """What `store.commit` answers; for callers that are not on the loop themselves."""
    return await store.commit(batch)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Wait until it holds; the time is far beyond what it takes."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)
