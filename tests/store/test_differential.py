"""The same random operations on the memory store, SQLite and PostgreSQL: equal answers, equal data.

The world is small on purpose (few runs, ids, nodes, queues), so that the operations meet. Over all seeds together
every outcome of every operation must have occurred, or the comparison says less than it seems to.

Two things the protocol leaves open, and the stores do differently; the walk does not go there. In one batch, the turns
come before the starts, and those in order of their run ids: which of two commits has its way that want the same
workflow id at once is open. And batches that are handed over at once may be written in any order: SQLite gets them so,
PostgreSQL one after the other.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from outlast.model.ids import MessageId, Namespace, NodeId, WorkflowId
from outlast.store.api import (
    Answer,
    Commit,
    IdReuse,
    Mail,
    NewTask,
    Release,
    RunFilter,
    RunStatus,
    Store,
    Task,
)
from store.building import NAMESPACE, claim, mail, run_id, start, task, task_claim, turn
from store.conftest import make_database

RUNS = 9
MAILBOX_LIMIT = 4
QUEUES = ["orders", "others"]
WORKFLOWS = ["fulfil_order", "another"]
ACTIVITIES = ["charge_payment", "ship_order"]
MESSAGES = [f"m{number}" for number in range(6)]
NAMESPACES = [NAMESPACE, Namespace("other")]
STEPS = 300

EXPECTED = {
    *(f"commit {name}" for name in ("COMMITTED", "FENCED", "MAIL_WAITING", "ID_IN_USE")),
    *(f"send {name}" for name in ("ACCEPTED", "NO_SUCH_RUN", "CLOSED", "FULL")),
    *(
        f"{name} {hit}"
        for name in ("claim", "claim lost", "claim suspect", "claim parked", "claim tasks", "take", "backlog")
        for hit in ("some", "none")
    ),
    *(f"{name} {answer}" for name in ("heartbeat", "declare dead", "deliver", "find") for answer in (True, False)),
    *("claim task again some", "claim task again none", "claim lost task again"),
    *("claim task lost", "closed at once", "parked with mail"),
    *(f"commit with replies {name}" for name in ("COMMITTED", "FENCED", "MAIL_WAITING")),
    *(f"start with mail {name}" for name in ("COMMITTED", "ID_IN_USE")),
    *(f"{name} {hit}" for name in ("replies", "forget replies") for hit in ("some", "none")),
}

T = TypeVar("T")


class Subject:
    """A store that is compared with the reference."""

    def __init__(self, kind: str, store: Store) -> None:
        self.kind = kind
        self.store = store
        self.mail_ids: dict[int, int] = {}
        """Ids of mail grow in every store, but not alike: this store's id for each of the reference."""

    def translated(self, commit: Commit) -> Commit:
        return replace(commit, consume=tuple(self.mail_ids[mail_id] for mail_id in commit.consume))

    async def commit(self, calls: list[list[Commit]]) -> list[list[Answer]]:
        batches = [[self.translated(each) for each in batch] for batch in calls]
        if self.kind == "sqlite":
            return await asyncio.gather(*[self.store.commit(batch) for batch in batches])
        return [await self.store.commit(batch) for batch in batches]


class Walk:
    """One random walk over all stores. Whatever it needs to know it reads from the reference."""

    def __init__(self, seed: int, reference: Store, subjects: Sequence[Subject], seen: Counter[str]) -> None:
        self.random = random.Random(seed)
        self.reference = reference
        self.subjects = subjects
        self.seen = seen
        self.nodes: list[NodeId] = []
        self.tasks: list[tuple[NodeId, Task]] = []
        self.now_us = 0
        self.serial = 0

    async def all(self, question: Callable[[Store], Awaitable[T]]) -> T:
        expected = await question(self.reference)
        for subject in self.subjects:
            assert await question(subject.store) == expected, subject.kind
        return expected

    async def all_mail(self, question: Callable[[Store], Awaitable[list[Mail]]]) -> None:
        expected = await question(self.reference)
        for subject in self.subjects:
            got = await question(subject.store)
            assert [replace(each, mail_id=0) for each in got] == [replace(each, mail_id=0) for each in expected]
            for ours, theirs in zip(expected, got, strict=True):
                assert subject.mail_ids.setdefault(ours.mail_id, theirs.mail_id) == theirs.mail_id, subject.kind

    async def step(self) -> None:
        self.now_us += self.random.randrange(5)
        moves = [
            *[self.commits] * 8,
            *[self.send] * 4,
            *[self.claim] * 3,
            *[self.claim_tasks] * 2,
            *[self.claim_tasks_again] * 2,
            *[self.deliver] * 2,
            *(self.heartbeat, self.declare_dead, self.join, self.look, self.take, self.replies, self.forget_replies),
        ]
        await self.random.choice(moves)()

    # --- moves --------------------------------------------------------------------------------------------------

    async def commits(self) -> None:
        """Several batches in the same tick, which SQLite writes as one; a run may be in more than one of them."""
        calls = [
            sorted(
                [
                    await self.one_commit(number)
                    for number in self.random.sample(range(RUNS), self.random.randint(1, 4))
                ],
                key=lambda commit: (commit.create is not None, commit.run_id),
            )
            for _ in range(self.random.choice([1, 1, 2, 3]))
        ]
        answers = [await self.reference.commit(batch) for batch in calls]
        for subject in self.subjects:
            assert await subject.commit(calls) == answers, f"{subject.kind}: {calls}"
        for batch, given in zip(calls, answers, strict=True):
            for commit, answer in zip(batch, given, strict=True):
                self.seen[f"commit {answer.name}"] += 1
                if commit.create and commit.status and answer.name == "COMMITTED":
                    self.seen["closed at once"] += 1
                if commit.release and commit.release.error and answer.name == "COMMITTED":
                    left = await self.reference.mail_for([commit.run_id])
                    self.seen["parked with mail"] += bool(left)
                if commit.replies:
                    self.seen[f"commit with replies {answer.name}"] += 1
                if commit.create and commit.create.mail:
                    self.seen[f"start with mail {answer.name}"] += 1
        await self.compare_mail()

    async def one_commit(self, number: int) -> Commit:
        self.serial += 1
        row = await self.reference.run(run_id(number))
        if row is None or self.random.random() < 0.1:
            return self.a_start(number)
        node = row.owner if row.owner is not None and self.random.random() < 0.9 else self.a_node()
        next_event = row.next_event if self.random.random() < 0.9 else row.next_event + self.random.choice([-1, 1])
        waiting = [each.mail_id for each in await self.reference.mail_for([run_id(number)])]
        consume = [mail_id for mail_id in waiting if self.random.random() < 0.7]
        ending = self.random.random()
        release = status = None
        if ending < 0.2:
            wake_at_us = self.random.choice([None, self.now_us, self.now_us + self.random.randrange(50)])
            release = Release(wake_at_us, self.random.choice([None, None, "boom"]))
        elif ending < 0.27:
            status = self.random.choice([each for each in RunStatus if each is not RunStatus.OPEN])
        return turn(
            number,
            node,
            next_event,
            count=self.random.choice([0, 1, 2]),
            turn_id=self.random.choice([None, self.serial]),
            at_us=self.now_us,
            status=status,
            release=release,
            consume=consume,
            add_tasks=self.some_tasks(),
            drop_tasks=self.random.sample(["1", "2", "3"], self.random.choice([0, 0, 1])),
            replies={
                message_id: f"{self.serial}".encode()
                for message_id in self.random.sample(MESSAGES, self.random.choice([0, 0, 1, 2]))
            },
        )

    def a_start(self, number: int) -> Commit:
        status = self.random.choice([None] * 6 + [RunStatus.FAILED])
        return start(
            number,
            workflow_id=f"w{self.random.randrange(RUNS)}",
            owner=self.random.choice([None, self.a_node()]),
            wake_at_us=self.random.choice([None, self.now_us, self.now_us + 20]),
            priority=self.random.randrange(3),
            queue=self.random.choice(QUEUES),
            workflow=self.random.choice(WORKFLOWS),
            namespace=self.random.choice([NAMESPACE, NAMESPACE, *NAMESPACES]),
            format=self.random.choice([1, 1, 2]),
            id_reuse=self.random.choice([IdReuse.AFTER_CLOSE, IdReuse.AFTER_CLOSE, IdReuse.NEVER]),
            at_us=self.now_us,
            count=self.random.randint(1, 3),
            turn_id=self.random.choice([None, self.serial]),
            status=status,
            add_tasks=self.some_tasks(),
            mail=[] if status else self.random.sample(MESSAGES, self.random.choice([0, 0, 1, 2, 5])),
        )

    def some_tasks(self) -> list[NewTask]:
        return [
            task(
                activity_id,
                activity=self.random.choice(ACTIVITIES),
                queue=self.random.choice(QUEUES),
                attempt=self.random.randint(1, 2),
                visible_at_us=self.now_us + self.random.choice([0, 0, 10]),
            )
            for activity_id in self.random.sample(["1", "2", "3"], self.random.choice([0, 0, 1, 2]))
        ]

    async def send(self) -> None:
        letters = [
            mail(self.random.randrange(RUNS), self.random.choice(MESSAGES), self.now_us)
            for _ in range(self.random.randint(1, 5))
        ]
        for sent in await self.all(lambda store: store.send(letters)):
            self.seen[f"send {sent.name}"] += 1
        await self.compare_mail()

    async def claim(self) -> None:
        wanted = claim(
            self.a_node(),
            now_us=self.now_us,
            limit=self.random.randint(1, 4),
            queues=self.some(QUEUES),
            workflows=self.some(WORKFLOWS),
            namespace=self.random.choice(NAMESPACES),
            max_format=self.random.choice([1, 2]),
            parked=self.random.random() < 0.3,
            suspect=self.random.random() < 0.3,
        )
        got = await self.all(lambda store: store.claim(wanted))
        if wanted.suspect:
            self.count("claim suspect", bool(got))
        self.count("claim", bool(got))
        self.count("claim lost", any(each.lost for each in got))
        self.count("claim parked", any(each.run.error for each in got))
        if got and self.random.random() < 0.4:  # as if one of them had killed it; else suspects would be rare
            await self.all(lambda store: store.declare_dead(wanted.node))
            await self.join()
            if self.random.random() < 0.5:
                heir = replace(wanted, node=self.nodes[-1], suspect=True)
                self.count("claim suspect", bool(await self.all(lambda store: store.claim(heir))))

    async def take(self) -> None:
        node, number = self.a_node(), self.random.randrange(RUNS)
        got = await self.all(lambda store: store.take(node, run_id(number)))
        self.count("take", got is not None)

    async def claim_tasks(self) -> None:
        node = self.a_node()
        wanted = task_claim(
            node,
            now_us=self.now_us,
            limit=self.random.randint(1, 3),
            queues=self.some(QUEUES),
            activities=self.some(ACTIVITIES),
            namespace=self.random.choice(NAMESPACES),
        )
        got = await self.all(lambda store: store.claim_tasks(wanted))
        self.count("claim tasks", bool(got))
        self.seen["claim task lost"] += any(each.lost for each in got)
        self.tasks += [(node, each) for each in got]

    async def claim_tasks_again(self) -> None:
        """When no more are free: what comes then was the node's already."""
        node = self.random.choice(self.tasks[-9:])[0] if self.tasks else self.a_node()
        wanted = task_claim(node, now_us=self.now_us, limit=100, queues=QUEUES, activities=ACTIVITIES)
        got = await self.all(lambda store: store.claim_tasks(wanted))
        self.tasks += [(node, each) for each in got]
        known = [task for owner, task in self.tasks if owner == node]
        held = task_claim(
            node,
            now_us=self.now_us,
            limit=self.random.randint(1, 3),
            queues=self.some(QUEUES),
            activities=self.some(ACTIVITIES),
            held=[task for task in known if self.random.random() < 0.3],
        )
        again = await self.all(lambda store: store.claim_tasks(held))
        assert set(again) <= set(known)
        self.count("claim task again", bool(again))
        self.seen["claim lost task again"] += any(each.lost for each in again)

    async def deliver(self) -> None:
        if self.tasks:
            node, got = self.random.choice(self.tasks)
            number = int(got.run_id, 16)
            outcome = mail(number, f"outcome of {got.activity_id}, {got.attempt}", self.now_us)
            done = await self.all(lambda store: store.deliver(node, got, outcome))
            self.seen[f"deliver {done}"] += 1
            await self.compare_mail()

    async def replies(self) -> None:
        wanted = [MessageId(each) for each in self.random.sample(MESSAGES, self.random.randint(0, 2))]
        self.count("replies", bool(await self.all(lambda store: store.replies(wanted))))

    async def forget_replies(self) -> None:
        before_us, limit = self.now_us - self.random.randrange(50), self.random.randint(1, 3)
        self.count("forget replies", bool(await self.all(lambda store: store.forget_replies(before_us, limit))))

    async def heartbeat(self) -> None:
        node = self.a_node()
        self.seen[f"heartbeat {await self.all(lambda store: store.heartbeat(node))}"] += 1

    async def declare_dead(self) -> None:
        node = self.a_node()
        self.seen[f"declare dead {await self.all(lambda store: store.declare_dead(node))}"] += 1

    async def join(self) -> None:
        self.nodes.append(await self.all(lambda store: store.join(f"node {self.serial}")))

    async def look(self) -> None:
        wanted = RunFilter(
            self.random.choice(NAMESPACES),
            workflow=self.random.choice([None, *WORKFLOWS]),
            status=self.random.choice([None, *RunStatus]),
            limit=self.random.randint(1, 5),
            before=self.random.choice([None, run_id(self.random.randrange(RUNS))]),
            owner=self.random.choice([None, None, self.a_node()]),
        )
        await self.all(lambda store: store.runs(wanted))
        queue, limit = self.random.choice(QUEUES), self.random.randint(1, 3)
        waiting = await self.all(lambda store: store.backlog(wanted.namespace, queue, self.now_us, limit))
        self.count("backlog", waiting > 0)
        from_event = self.random.randrange(12)
        number = self.random.randrange(RUNS)
        await self.all(lambda store: store.history(run_id(number), from_event))
        workflow_id = WorkflowId(f"w{number}")
        found = await self.all(lambda store: store.find(NAMESPACE, workflow_id))
        self.seen[f"find {found is not None}"] += 1

    # --- choices and comparison ---------------------------------------------------------------------------------

    def count(self, what: str, some: bool) -> None:
        self.seen[f"{what} {'some' if some else 'none'}"] += 1

    def a_node(self) -> NodeId:
        """Mostly one of the last that joined; the rest are probably dead."""
        return self.random.choice([*self.nodes[-3:], *self.nodes[-1:], self.random.choice(self.nodes)])

    def some(self, names: Sequence[str]) -> Sequence[str]:
        return self.random.choice([names, names[:1], names[1:], names])

    async def compare_mail(self) -> None:
        await self.all_mail(lambda store: store.mail_for([run_id(number) for number in range(RUNS)]))

    async def compare(self) -> None:
        numbers = [run_id(number) for number in range(RUNS)]
        for namespace in NAMESPACES:
            wanted = RunFilter(namespace, limit=RUNS)
            await self.all(lambda store, wanted=wanted: store.runs(wanted))  # type: ignore[misc]
        await self.all(lambda store: store.histories(numbers))
        await self.compare_mail()
        await self.all(lambda store: store.tasks_of(numbers))
        await self.all(lambda store: store.closed_of(numbers))
        await self.all(lambda store: store.replies([MessageId(each) for each in MESSAGES]))
        await self.all(lambda store: store.nodes())
        for node in self.nodes[-4:]:
            await self.all_mail(lambda store, node=node: store.mail_of(node, 5))  # type: ignore[misc]


async def walk(seed: int, folder: Path, seen: Counter[str], *, kinds: Sequence[str], compare_every: int = 1) -> None:
    databases = {kind: make_database(kind, folder, MAILBOX_LIMIT) for kind in ("memory", *kinds)}
    try:
        stores = {kind: await database.connect() for kind, database in databases.items()}
        this = Walk(seed, stores["memory"], [Subject(kind, stores[kind]) for kind in kinds], seen)
        await this.join()
        for number in range(1, STEPS + 1):
            await this.step()
            if number % compare_every == 0 or number == STEPS:
                await this.compare()
    except AssertionError as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        for database in databases.values():
            await database.close()


async def test_sqlite_answers_like_the_reference(tmp_path_factory: pytest.TempPathFactory) -> None:
    seen: Counter[str] = Counter()

    for seed in range(6):
        await walk(seed, tmp_path_factory.mktemp("walk"), seen, kinds=["sqlite"])

    assert {outcome for outcome, times in seen.items() if times} == EXPECTED


async def test_all_stores_answer_alike(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every answer is compared; all data only now and then, since a question to a server takes its time."""
    seen: Counter[str] = Counter()

    for seed in range(1_000, 1_006):
        await walk(seed, tmp_path_factory.mktemp("walk"), seen, kinds=["sqlite", "postgres"], compare_every=10)

    assert {outcome for outcome, times in seen.items() if times} == EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
async def test_sqlite_answers_like_the_reference_at_length(tmp_path: Path, seed: int) -> None:
    await walk(seed, tmp_path, Counter(), kinds=["sqlite"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2_000, 2_040))
async def test_all_stores_answer_alike_at_length(tmp_path: Path, seed: int) -> None:
    await walk(seed, tmp_path, Counter(), kinds=["sqlite", "postgres"])
