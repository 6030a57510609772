"""A process that dies, ends or hangs: its runs go on elsewhere, soon, and it does no harm when it comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster import programs
from cluster.databases import Database
from cluster.marks import Mark, begun, read_marks
from cluster.nodes import SHORT_LEASE_S, Cluster, Delay, nodes_of, until_dead
from cluster.oracle import events_of
from outlast import Client, Handle
from outlast.engine.invariants import check_history
from outlast.model.events import ActivityAttemptLost, ActivityCompleted
from outlast.model.ids import TURN_BITS, NodeId, RunId
from processes import lines_of, results_of, until, until_true

TAKEOVER_S = 2.0
HANDOVER_S = 1.0
FOR_EVER_S = 3_600.0
RUNS = 20


async def start_lingering(client: Client, count: int = RUNS) -> list[Handle[str]]:
    return list(await asyncio.gather(*(client.start(programs.lingering, FOR_EVER_S) for _ in range(count))))


async def hits(cluster: Cluster, attempt: int, count: int) -> list[Mark]:
    """Wait until so many attempts with this number have begun."""
    await until(lambda: len(begun(cluster.marks, attempt)) >= count)
    return begun(cluster.marks, attempt)


async def check_lost_once(handles: Sequence[Handle[Any]], reason: str) -> None:
    """Each attempt that was lost is recorded, once, and the next one brought the result."""
    for handle in handles:
        history = await handle.history()
        check_history(history)
        events = [each.event for each in history]
        losses = [(each.attempt, each.reason) for each in events if isinstance(each, ActivityAttemptLost)]
        assert losses == [(1, reason)]
        assert [each.attempt for each in events if isinstance(each, ActivityCompleted)] == [2]


async def seconds_until_all_go_on(cluster: Cluster, blow: Callable[[], None]) -> float:
    """From the blow until the second attempt of the last run has begun, without the time this machine was busy."""
    async with Delay() as delay:
        struck_at_s = time.monotonic()
        blow()
        marks = await hits(cluster, 2, RUNS)
    assert len(marks) == RUNS
    return max(mark.at_s for mark in marks) - struck_at_s - delay.seconds


async def test_runs_of_a_killed_process_go_on_elsewhere_within_two_seconds(cluster: Cluster, client: Client) -> None:
    first = await cluster.start()
    handles = await start_lingering(client)
    await hits(cluster, 1, RUNS)
    second = await cluster.start()
    assert await seconds_until_all_go_on(cluster, first.kill) < TAKEOVER_S
    assert await results_of(handles) == ["attempt 2"] * RUNS
    assert {mark.pid for mark in begun(cluster.marks, 2)} == {second.pid}
    await check_lost_once(handles, "the process that ran it is gone")


async def test_a_process_that_is_asked_to_end_hands_its_runs_over_at_once(cluster: Cluster, client: Client) -> None:
    first = await cluster.start()
    handles = await start_lingering(client)
    await hits(cluster, 1, RUNS)
    await cluster.start()
    assert await seconds_until_all_go_on(cluster, first.ask_to_end) < HANDOVER_S
    assert await asyncio.to_thread(first.wait) == 0
    assert await results_of(handles) == ["attempt 2"] * RUNS
    await check_lost_once(handles, "its worker was stopped")


async def test_runs_that_only_wait_do_not_notice_that_their_process_was_killed(
    cluster: Cluster, client: Client
) -> None:
    first, second = await cluster.start(), await cluster.start()
    cluster.stop(second)  # until the first has all the runs
    handles = await asyncio.gather(*(client.start(programs.napping, 1.0) for _ in range(RUNS)))
    await until_true(lambda: are_owned_by(client, handles, first.pid))
    first.kill()
    second.go_on()
    assert await results_of(list(handles)) == ["slept"] * RUNS
    marks = begun(cluster.marks, 1)
    assert [mark.pid for mark in marks] == [second.pid] * RUNS
    assert lines_of(cluster.marks) == 2 * RUNS


async def are_owned_by(client: Client, handles: Sequence[Handle[Any]], pid: int) -> bool:
    rows = [await client.service.store.run(RunId(handle.run_id)) for handle in handles]
    nodes = await client.service.store.nodes()
    owners = {node.node_id for node in nodes if node.name.endswith(f"/{pid}")}
    return all(row is not None and row.owner in owners for row in rows)


# --- stopped processes ----------------------------------------------------------------------------------------------


async def test_others_are_not_harmed_while_a_process_is_stopped(cluster: Cluster, client: Client) -> None:
    stopped, well = await cluster.start(), await cluster.start()
    cluster.stop(stopped)
    handles = [await client.start(programs.plain_order, n, 0.01) for n in range(RUNS)]
    assert await results_of(handles) == [programs.result_of_plain_order(n) for n in range(RUNS)]
    assert {mark.pid for mark in read_marks(cluster.marks)} == {well.pid}


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A folder: attempts of `programs.hold` wait for files in it."""
    folder = tmp_path / "gate"
    folder.mkdir()
    return folder


async def writers_of(client: Client, handles: Sequence[Handle[Any]], from_attempt: int) -> set[NodeId]:
    """The nodes that have written to these histories since the loss of the attempt before `from_attempt`."""
    writers: set[NodeId] = set()
    for handle in handles:
        rows = await client.service.store.history(RunId(handle.run_id))
        events = events_of(rows)
        check_history(events)
        losses = [each.position for each in events if isinstance(each.event, ActivityAttemptLost)]
        assert len(losses) == from_attempt - 1
        for row in rows:
            if row.first_event + row.count > losses[-1]:
                assert row.turn_id is not None
                writers.add(NodeId(row.turn_id >> TURN_BITS))
    return writers


async def test_a_zombie_commits_nothing_and_joins_again_as_a_new_node(
    database: Database, client: Client, tmp_path: Path, gate: Path
) -> None:
    with Cluster(database, tmp_path, SHORT_LEASE_S) as cluster:
        zombie = await cluster.start()
        handles = [await client.start(programs.held, str(gate)) for _ in range(RUNS)]
        await hits(cluster, 1, RUNS)
        other = await cluster.start()
        (old,) = await nodes_of(client, zombie)
        (heir,) = await nodes_of(client, other)
        cluster.stop(zombie)
        await until_dead(client, old)
        await hits(cluster, 2, RUNS)
        # The attempts of the zombie end well, now that it is too late; it tries to commit that and what follows.
        (gate / "first-1").touch()
        zombie.go_on()
        await until_true(lambda: has_one_new_node(client, zombie.pid, old))
        (gate / "first-2").touch()
        (gate / "second-1").touch()
        assert await results_of(handles) == [("attempt 2", "attempt 1")] * RUNS
        tried = [mark for mark in read_marks(cluster.marks) if mark.pid == zombie.pid and mark.phase == "end"]
        assert {mark.attempt for mark in tried} == {1}, "it had something to commit"
        assert await writers_of(client, handles, from_attempt=2) == {heir}
        # As a new node it works like any other.
        other.ask_to_end()
        assert await asyncio.to_thread(other.wait) == 0
        late = await client.start(programs.plain_order, 1, 0.0)
        assert await results_of([late]) == [programs.result_of_plain_order(1)]
        assert {mark.pid for mark in read_marks(cluster.marks) if mark.run_id == late.run_id} == {zombie.pid}


async def has_one_new_node(client: Client, pid: int, old: NodeId) -> bool:
    rows = [row for row in await client.service.store.nodes() if row.name.endswith(f"/{pid}") and row.alive]
    return len(rows) == 1 and rows[0].node_id > old
