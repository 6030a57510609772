"""Code that harms the process in which it runs: it ends by its retry policy, and takes no other run down."""

from __future__ import annotations

import pytest

from cluster import programs
from cluster.marks import read_marks
from cluster.nodes import Cluster
from outlast import Client
from outlast.engine.invariants import check_history
from processes import Supervised, results_of

BYSTANDERS = 20


@pytest.mark.parametrize(
    ("how", "ends_as", "attempts", "deaths"),
    [
        pytest.param("die", "ActivityLost", 3, 3, id="kills its process"),
        pytest.param("spin", "ActivityTimeout", 2, 0, id="blocks its loop"),
        pytest.param(
            "swallow", "ActivityLost", 2, 2, id="blocks its loop and cannot be interrupted", marks=pytest.mark.slow
        ),
    ],
)
async def test_an_activity_that_harms_its_process_ends_by_its_policy_and_harms_no_other_run(
    cluster: Cluster, client: Client, how: str, ends_as: str, attempts: int, deaths: int
) -> None:
    workers = [Supervised(lambda: cluster.spawn("--interrupt", "0.5")) for _ in range(2)]
    try:
        before = [await client.start(programs.plain_order, n, 0.5) for n in range(BYSTANDERS)]
        harmful = await client.start(programs.harmful, how)
        after = [await client.start(programs.plain_order, n, 0.5) for n in range(BYSTANDERS)]
        assert await results_of([harmful]) == [ends_as]
        expected = [programs.result_of_plain_order(n) for n in range(BYSTANDERS)]
        assert await results_of(before) == expected
        assert await results_of(after) == expected
    finally:
        for worker in workers:
            await worker.end()
    check_history(await harmful.history())
    begins = [mark for mark in read_marks(cluster.marks) if mark.run_id == harmful.run_id and mark.phase == "begin"]
    assert [mark.attempt for mark in begins] == list(range(1, attempts + 1))
    assert sum(worker.deaths for worker in workers) == deaths
