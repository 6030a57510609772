"""A rolling upgrade: workers of two releases share a database, and nobody touches what he cannot read."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import programs
from cluster.nodes import Cluster
from outlast import Client, DatabaseTooNew
from outlast.model.events import EVENT_FORMAT
from outlast.model.ids import WorkflowId
from outlast.store.api import RunRow, RunStatus
from processes import WorkerProcess, lines_of, results_of, until, until_true

NEXT_RELEASE = Path(__file__).with_name("next_release.py")
NEXT_FORMAT = EVENT_FORMAT + 1


def next_release(cluster: Cluster, then: str, *ids: str) -> WorkerProcess:
    """Starts runs under these ids, then hosts (when this returns, it is ready), or leaves."""
    log = cluster.marks.with_name(f"next-{len(cluster.workers)}.log")
    arguments = (cluster.database.url, str(cluster.marks), then, *ids)
    worker = WorkerProcess(NEXT_RELEASE, *arguments, wait=then == "host", log=log)
    cluster.workers.append(worker)
    return worker


async def rows_of(client: Client, ids: list[str]) -> list[RunRow]:
    return [await client.service.find(WorkflowId(each)) for each in ids]


async def until_completed(client: Client, ids: list[str]) -> None:
    async def are_completed() -> bool:
        return all(row.status is RunStatus.COMPLETED for row in await rows_of(client, ids))

    await until_true(are_completed)


async def formats_of(client: Client, ids: list[str]) -> set[int]:
    return {row.format for row in await rows_of(client, ids)}


async def test_two_releases_share_a_database_and_everything_finishes(cluster: Cluster, client: Client) -> None:
    old_ids, next_ids = [f"old-{n}" for n in range(10)], [f"next-{n}" for n in range(10)]
    old = await cluster.start()
    handles = [await client.start(programs.short, 1, id=each) for each in old_ids]
    new = await asyncio.to_thread(next_release, cluster, "host", *next_ids)
    assert await results_of(handles) == [1] * 10
    await until_completed(client, next_ids)
    assert await formats_of(client, old_ids) == {EVENT_FORMAT}
    assert await formats_of(client, next_ids) == {NEXT_FORMAT}
    assert all(row.error is None for row in await client.runs(limit=1_000))
    await cluster.end([old, new])


async def test_what_this_release_has_begun_the_next_one_goes_on_with_so_that_this_one_can_read_it(
    cluster: Cluster, client: Client
) -> None:
    old = await cluster.start()
    handles = [await client.start(programs.lingering, 3_600.0, id=f"{n}") for n in range(3)]
    await until(lambda: lines_of(cluster.marks) == 3)
    new = await asyncio.to_thread(next_release, cluster, "host")
    await cluster.end([old])
    assert await results_of(handles) == ["attempt 2"] * 3, "read by this release"
    assert await formats_of(client, ["0", "1", "2"]) == {EVENT_FORMAT}
    await cluster.end([new])


async def test_what_the_next_release_has_started_waits_untouched_for_a_worker_of_that_release(
    cluster: Cluster, client: Client
) -> None:
    ids = [f"{n}" for n in range(3)]
    old = await cluster.start()
    assert await asyncio.to_thread(next_release(cluster, "leave", *ids).wait) == 0
    # Two of its own that it finds later show that the old worker has looked for work since.
    for _ in range(2):
        assert await results_of([await client.start(programs.short, 1)]) == [1]
    for row in await rows_of(client, ids):
        assert (row.status, row.owner, row.claims, row.error) == (RunStatus.OPEN, None, 0, None)
        assert (row.format, row.next_event) == (NEXT_FORMAT, 2)
    new = await asyncio.to_thread(next_release, cluster, "host")
    await until_completed(client, ids)
    await cluster.end([old, new])


async def test_who_looks_at_a_run_of_a_newer_release_is_told_so(cluster: Cluster, client: Client) -> None:
    new = await asyncio.to_thread(next_release, cluster, "host", "x")
    handle = await client.handle("x")
    for ask in (handle.result, handle.history, handle.describe):
        with pytest.raises(DatabaseTooNew, match=rf"short/x.* is written in event format {NEXT_FORMAT}"):
            await asyncio.wait_for(ask(), 30)
    assert [row.workflow_id for row in await client.runs()] == ["x"]
    command = [sys.executable, "-c", "from outlast.cli.main import main; main()", "list", "--db", cluster.database.url]
    listed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "short" in listed.stdout
    await cluster.end([new])
