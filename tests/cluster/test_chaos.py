"""A cluster under fire: whatever happens to its processes, every run finishes right and nothing is done twice."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from cluster.chaos import Storm, blows_for, drive, plan_blows, plan_orders
from cluster.databases import Database
from cluster.nodes import SHORT_LEASE_S, Cluster
from cluster.oracle import Verdict, judge
from outlast import Client


async def weather(
    cluster: Cluster,
    client: Client,
    *,
    seed: int,
    runs: int,
    slots: int,
    blows: int,
    in_flight: int,
    max_pause_s: float,
    lease_s: float,
    patience_s: float,
) -> Verdict:
    rng = random.Random(seed)
    planned = plan_blows(rng, blows_for(cluster.database), blows, runs, slots)
    orders = plan_orders(rng, runs, max_pause_s)
    print(f"chaos with seed {seed} (OUTLAST_CHAOS_SEED):", *planned, sep="\n  ")
    storm = Storm(cluster, client, planned, rng, lease_s)
    try:
        async with asyncio.timeout(patience_s), asyncio.TaskGroup() as group:
            await storm.begin(slots)
            await drive(client, orders, in_flight, lambda runs: storm.started(runs, group))
    except TimeoutError:
        stuck = await client.runs(status="open", limit=20)
        nodes = await client.service.store.nodes()
        raise AssertionError(f"not done within {patience_s} s, open are: {stuck}\nnodes: {nodes}") from None
    await storm.end()
    verdict = await judge(client, cluster.marks, [each.workflow_id for each in orders], storm.stopped)
    print(verdict)
    return verdict


def seeds(count: int) -> list[int]:
    chosen = os.environ.get("OUTLAST_CHAOS_SEED")
    return list(range(1, count + 1)) if chosen is None else [int(chosen)]


@pytest.mark.parametrize("seed", seeds(1))
async def test_nothing_is_lost_or_doubled_in_a_small_storm(
    database: Database, client: Client, tmp_path: Path, seed: int
) -> None:
    with Cluster(database, tmp_path, SHORT_LEASE_S) as cluster:
        await weather(
            cluster, client,
            seed=seed, runs=100, slots=3, blows=5, in_flight=40, max_pause_s=0.6,
            lease_s=SHORT_LEASE_S, patience_s=120,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", seeds(2))
async def test_nothing_is_lost_or_doubled_in_a_great_storm(
    database: Database, client: Client, tmp_path: Path, seed: int
) -> None:
    with Cluster(database, tmp_path) as cluster:
        verdict = await weather(
            cluster, client,
            seed=seed, runs=2_000, slots=4, blows=24, in_flight=150, max_pause_s=6.0,
            lease_s=10.0, patience_s=600,
        )  # fmt: skip
    assert verdict.lost > 0, "the blows hit nothing"
