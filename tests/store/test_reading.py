"""What every store promises about reading: what was committed before is seen, in the order that is promised."""

from __future__ import annotations

from outlast.model.ids import Namespace, NodeId, RunId, WorkflowId
from outlast.store.api import RunFilter, RunStatus, Store
from store.building import NAMESPACE, mail, row, run_id, start, turn

A = NodeId(1)


async def test_what_does_not_exist_is_not_found(store: Store) -> None:
    assert await store.run(run_id(1)) is None
    assert await store.find(NAMESPACE, WorkflowId("w")) is None
    assert await store.runs(RunFilter(NAMESPACE)) == []
    assert await store.history(run_id(1)) == []
    assert await store.histories([run_id(1)]) == {run_id(1): []}
    assert await store.histories([]) == {}
    assert await store.mail_of(A, 10) == []
    assert await store.tasks_of([run_id(1)]) == {}
    assert await store.closed_of([run_id(1)]) == []
    assert await store.nodes() == []


async def test_the_open_run_of_a_workflow_id_is_found_before_later_closed_ones(store: Store) -> None:
    workflow_id = WorkflowId("w")
    await store.commit([start(5, workflow_id="w", owner=A), start(1, workflow_id="v", owner=A)])
    await store.commit([turn(5, A, 2, status=RunStatus.FAILED)])
    await store.commit([start(3, workflow_id="w", owner=A)])
    await store.commit([turn(3, A, 2, status=RunStatus.COMPLETED)])

    latest = await store.find(NAMESPACE, workflow_id)
    assert latest == await row(store, 5)

    await store.commit([start(4, workflow_id="w")])
    assert await store.find(NAMESPACE, workflow_id) == await row(store, 4)
    assert await store.find(Namespace("other"), workflow_id) is None


async def test_runs_are_listed_newest_first_and_in_pages(store: Store) -> None:
    await store.commit([start(number) for number in (2, 5, 1, 4, 3)])

    first = await store.runs(RunFilter(NAMESPACE, limit=2))
    second = await store.runs(RunFilter(NAMESPACE, limit=2, before=first[-1].run_id))
    third = await store.runs(RunFilter(NAMESPACE, limit=2, before=second[-1].run_id))

    assert [each.run_id for each in first + second + third] == [run_id(number) for number in (5, 4, 3, 2, 1)]
    assert await store.runs(RunFilter(NAMESPACE, limit=2, before=third[-1].run_id)) == []
    assert first[0] == await row(store, 5)


async def test_runs_are_listed_by_what_is_asked_for(store: Store) -> None:
    await store.commit(
        [
            start(1, workflow_id="w", owner=A),
            start(2, workflow_id="v", owner=A, workflow="another"),
            start(3, workflow_id="u", owner=A, namespace=Namespace("other")),
            start(4, workflow_id="t", owner=A),
        ]
    )
    await store.commit([turn(1, A, 2, status=RunStatus.FAILED), turn(4, A, 2, status=RunStatus.COMPLETED)])
    await store.commit([start(5, workflow_id="w", owner=A)])

    async def listed(wanted: RunFilter) -> list[int]:
        return [int(each.run_id, 16) for each in await store.runs(wanted)]

    assert await listed(RunFilter(NAMESPACE)) == [5, 4, 2, 1]
    assert await listed(RunFilter(Namespace("other"))) == [3]
    assert await listed(RunFilter(NAMESPACE, workflow_id=WorkflowId("w"))) == [5, 1]
    assert await listed(RunFilter(NAMESPACE, workflow="another")) == [2]
    assert await listed(RunFilter(NAMESPACE, status=RunStatus.OPEN)) == [5, 2]
    assert await listed(RunFilter(NAMESPACE, status=RunStatus.FAILED)) == [1]
    assert await listed(RunFilter(NAMESPACE, status=RunStatus.CANCELLED)) == []
    both = RunFilter(NAMESPACE, workflow_id=WorkflowId("w"), status=RunStatus.FAILED, before=run_id(5))
    assert await listed(both) == [1]


async def test_closed_runs_among_others(store: Store) -> None:
    await store.commit([start(number, owner=A) for number in (1, 2, 3)])
    await store.commit([turn(3, A, 2, status=RunStatus.FAILED), turn(1, A, 2, status=RunStatus.COMPLETED)])

    found = await store.closed_of([run_id(number) for number in (3, 2, 1, 9, 3)])

    assert found == [await row(store, 1), await row(store, 3)]


async def test_a_history_is_read_from_the_row_in_which_the_event_is(store: Store) -> None:
    await store.commit([start(1, owner=A, count=2), start(2, owner=A)])
    await store.commit([turn(1, A, 3, count=3), turn(2, A, 2)])
    await store.commit([turn(1, A, 6)])

    async def first_events(from_event: int) -> list[int]:
        return [each.first_event for each in await store.history(run_id(1), from_event)]

    assert [await first_events(number) for number in range(9)] == [
        [1, 3, 6],
        [1, 3, 6],
        [1, 3, 6],
        [3, 6],
        [3, 6],
        [3, 6],
        [6],
        [],
        [],
    ]


async def test_several_histories_are_read_at_once(store: Store) -> None:
    await store.commit([start(number, owner=A, count=number) for number in (1, 2, 3)])
    await store.commit([turn(2, A, 3), turn(1, A, 2)])

    found = await store.histories([run_id(2), RunId("none"), run_id(1)])

    assert found == {
        run_id(2): await store.history(run_id(2)),
        RunId("none"): [],
        run_id(1): await store.history(run_id(1)),
    }
    assert [each.first_event for each in found[run_id(2)]] == [1, 3]


async def test_what_was_acknowledged_is_seen_by_the_next_read(store: Store) -> None:
    await store.commit([start(1, owner=A)])
    for next_event in range(2, 60):
        await store.commit([turn(1, A, next_event)])
        assert (await row(store, 1)).next_event == next_event + 1
        await store.send([mail(1, str(next_event))])
        assert len(await store.mail_of(A, 100)) == next_event - 1
