"""Plans on PostgreSQL: what nodes do every few seconds costs what they have, and not what the database holds."""

from __future__ import annotations

import asyncpg
import pytest

import postgres
from outlast.model.ids import NodeId, RunId
from outlast.store.api import RunFilter, RunStatus
from outlast.store.postgres import listing
from outlast.store.postgres_connection import _SET
from store.building import NAMESPACE, run_id

RUNS = 20_000

# A fifth of them is owned, all by one node: so the planner expects a fifth for any other node too.
MANY_RUNS = f"""
INSERT INTO outlast.runs (run_id, namespace, workflow_id, workflow, queue, kind, status, owner, next_event, claims,
                          priority, format, started_at_us)
SELECT lpad(to_hex(n), 32, '0'), '{NAMESPACE}', 'w' || n, 'w', 'q', 'python', 'open', CASE WHEN n % 5 = 0 THEN 7 END,
       2, 0, 0, 1, 1
  FROM generate_series(1, {RUNS}) AS n
"""


@pytest.mark.parametrize("before", [None, run_id(RUNS // 2)])
async def test_a_node_that_looks_through_its_runs_does_not_read_those_of_others(before: RunId | None) -> None:
    with postgres.require(postgres.database) as url:
        db = await asyncpg.connect(url)
        await db.execute(_SET)
        await db.execute(MANY_RUNS)
        await db.execute("ANALYZE outlast.runs")

        wanted = RunFilter(NAMESPACE, status=RunStatus.OPEN, owner=NodeId(8), limit=500, before=before)
        statement, values = listing(wanted)
        # Prepared, as the store does it: a plan that is made for any values.
        await db.execute(f"PREPARE look AS {statement}")
        asked = ", ".join(map(repr, values))
        plan = "\n".join(line for (line,) in await db.fetch(f"EXPLAIN ANALYZE EXECUTE look({asked})"))

        await db.close()
    assert "Index Scan using runs_owned" in plan, plan
    assert "Rows Removed by Filter" not in plan, plan
