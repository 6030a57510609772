"""Several processes share the work: queues, bursts, and whoever only asks for it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

import outlast
from cluster import programs
from cluster.databases import Database
from cluster.marks import begun, read_marks
from cluster.nodes import Cluster
from cluster.oracle import judge
from outlast import Client, Handle, RunClosed, WorkflowCancelled, WorkflowTerminated
from outlast.model.ids import RunId
from processes import results_of, until, until_true

FOR_EVER_S = 3_600.0

BURST = 400
LARGEST_SHARE = 0.6
"""Of four workers. An even share would be a quarter; a worker that is let run first by the machine gets more."""


async def test_an_activity_of_a_queue_that_is_hosted_elsewhere_runs_there(cluster: Cluster, client: Client) -> None:
    here, there = await asyncio.gather(cluster.start(), cluster.start("--queue", programs.AWAY))
    handles = [await client.start(programs.order, n, 0.0, id=f"order-{n}") for n in range(20)]
    assert await results_of(handles) == [programs.result_of_order(n) for n in range(20)]
    await judge(client, cluster.marks, [handle.id for handle in handles])
    where = Counter(mark.pid for mark in read_marks(cluster.marks) if mark.phase == "begin")
    # Where the workflow is: three of `step`, two of `flaky`, one of `threaded`.
    assert where == {there.pid: 20, here.pid: 20 * 6}


async def test_an_activity_of_a_queue_that_nobody_hosts_waits_for_somebody(cluster: Cluster, client: Client) -> None:
    await cluster.start()
    handle = await client.start(programs.one_away, 1)
    await until_true(lambda: has_tasks(client, handle))
    late = await cluster.start("--queue", programs.AWAY)
    assert await results_of([handle]) == [2]
    assert {mark.pid for mark in read_marks(cluster.marks)} == {late.pid}


async def has_tasks(client: Client, handle: Handle[int]) -> bool:
    return await client.service.store.tasks_of([RunId(handle.run_id)]) != {}


async def test_a_burst_spreads_over_all_workers(cluster: Cluster, client: Client) -> None:
    workers = await asyncio.gather(*(cluster.start() for _ in range(4)))
    handles = await asyncio.gather(*(client.start(programs.short, n, id=f"burst-{n}") for n in range(BURST)))
    assert await results_of(list(handles)) == list(range(BURST))
    hosts = {mark.run_id: mark.pid for mark in read_marks(cluster.marks) if mark.phase == "begin"}
    share = Counter({worker.pid: 0 for worker in workers})
    share.update(hosts.values())
    assert share.total() == BURST
    assert max(share.values()) <= LARGEST_SHARE * BURST, share
    assert min(share.values()) > 0, share


async def test_any_process_starts_watches_cancels_and_terminates(
    cluster: Cluster, client: Client, database: Database
) -> None:
    await cluster.start()
    async with outlast.connect(database.url) as other:
        done = await client.start(programs.plain_order, 1, 0.05, id="done")
        cancelled = await client.start(programs.lingering, FOR_EVER_S, id="cancelled")
        terminated = await other.start(programs.lingering, FOR_EVER_S, id="terminated")
        await until(lambda: len({mark.run_id for mark in begun(cluster.marks, 1)}) == 3)
        # Whoever has not started them finds them by their ids.
        seen = {row.workflow_id: row.status for row in await other.runs()}
        assert seen.keys() == {"done", "cancelled", "terminated"}
        assert await (await other.handle("done", programs.plain_order)).result() == 4
        assert await done.result() == 4
        await (await other.handle("cancelled")).cancel("enough")
        with pytest.raises(WorkflowCancelled):
            await cancelled.result()
        await (await client.handle("terminated")).terminate("enough")
        with pytest.raises(WorkflowTerminated, match="enough"):
            await terminated.result()
        with pytest.raises(RunClosed):
            await cancelled.cancel()
        statuses = {row.workflow_id: str(row.status) for row in await client.runs()}
        assert statuses == {"done": "completed", "cancelled": "cancelled", "terminated": "terminated"}
