"""Claims of runs and tasks on SQLite, inside a transaction that the caller has begun.

Runs are free in several ways (due, with mail, lost by a dead node, parked). For each way one statement finds the
best candidates; here they are merged, and the best of all are taken. A suspect is claimed by a statement of its own.

Most claims find nothing: each write of another process is a reason to make one. So whoever claims first *looks*, on a
connection that reads, by one statement made of the same ones; only if that finds something does he take the write lock,
for which all processes of the file stand in line.
"""

from __future__ import annotations

import sqlite3

from outlast.model.ids import NodeId, RunId
from outlast.store import sqlite_sql as sql
from outlast.store.api import Claim, Claimed, Task, TaskClaim
from outlast.store.sqlite_rows import Candidate, Value, as_json, decode_candidates, decode_runs, decode_tasks


def claim_runs(db: sqlite3.Connection, claim: Claim) -> list[Claimed]:
    if not _is_alive(db, claim.node):
        return []
    chosen = _best(_candidates(db, claim), claim.limit)
    if not chosen:
        return []
    return _take_all(db, claim.node, chosen)


def take_run(db: sqlite3.Connection, node: NodeId, run_id: RunId) -> Claimed | None:
    found = db.execute(sql.FREE_RUN, (run_id,)).fetchone() if _is_alive(db, node) else None
    return None if found is None else _take_all(db, node, {run_id: found[0]})[0]


def _take_all(db: sqlite3.Connection, node: NodeId, chosen: dict[RunId, NodeId | None]) -> list[Claimed]:
    """`chosen` tells the owner until now of each run."""
    taken: dict[str, Value] = {"node": node, "run_ids": as_json(list(chosen))}
    db.execute(sql.TAKE_RUNS, taken)
    db.execute(sql.TAKE_MAIL, taken)
    db.execute(sql.FORGET_WOKEN, taken)
    (text,) = db.execute(sql.RUNS_BY_ID, taken).fetchone()
    rows = {run.run_id: run for run in decode_runs(text)}
    return [Claimed(rows[run_id], lost=owner is not None) for run_id, owner in chosen.items()]


def _candidates(db: sqlite3.Connection, claim: Claim) -> list[Candidate]:
    wanted = _wanted_runs(claim, claim.limit)
    found: list[Candidate] = []
    for way in _ways_of_runs(claim):
        (text,) = db.execute(way, wanted).fetchone()
        found += decode_candidates(text)
    return found


def look_for_runs(claim: Claim) -> tuple[str, dict[str, Value]]:
    """A SELECT of "1" if there is something to claim, else "0"; and its values."""
    return sql.finds_any(_ways_of_runs(claim)), _wanted_runs(claim, min(claim.limit, 1))


def _ways_of_runs(claim: Claim) -> tuple[str, ...]:
    if claim.suspect:
        return (sql.SUSPECT_RUN,)
    ways = (sql.LOST_RUNS, sql.DUE_RUNS, sql.WOKEN_RUNS)
    return (*ways, sql.PARKED_RUNS) if claim.parked else ways


def _wanted_runs(claim: Claim, limit: int) -> dict[str, Value]:
    return {
        "namespace": claim.namespace,
        "queues": as_json(sorted(set(claim.queues))),
        "workflows": as_json(sorted(set(claim.workflows))),
        "max_format": claim.max_format,
        "now_us": claim.now_us,
        "limit": limit,
    }


def _best(candidates: list[Candidate], limit: int) -> dict[RunId, NodeId | None]:
    """The owner until now of each run to be taken. A run that is free in two ways counts by the more urgent one."""
    chosen: dict[RunId, NodeId | None] = {}
    for run_id, _, _, owner in sorted(candidates, key=_urgency):
        if len(chosen) == limit:
            break
        chosen.setdefault(run_id, owner)
    return chosen


def _urgency(candidate: Candidate) -> tuple[int, int, RunId]:
    run_id, priority, due_us, _ = candidate
    return (-priority, due_us, run_id)


def claim_tasks(db: sqlite3.Connection, claim: TaskClaim) -> list[Task]:
    """The lost ones first: their runs have waited longest."""
    if not _is_alive(db, claim.node):
        return []
    tasks: list[Task] = []
    for way in _ways_of_tasks(claim):
        (text,) = db.execute(way, _wanted_tasks(claim, claim.limit - len(tasks))).fetchone()
        tasks += decode_tasks(text)
    db.executemany(sql.TAKE_TASK, [(claim.node, task.lost, task.run_id, task.activity_id) for task in tasks])
    return tasks


def look_for_tasks(claim: TaskClaim) -> tuple[str, dict[str, Value]]:
    """Like `look_for_runs`."""
    return sql.finds_any(_ways_of_tasks(claim)), _wanted_tasks(claim, min(claim.limit, 1))


def _ways_of_tasks(claim: TaskClaim) -> tuple[str, ...]:
    return (sql.LOST_TASKS, sql.FREE_TASKS) if claim.held is None else (sql.LOST_TASKS, sql.OWN_TASKS, sql.FREE_TASKS)


def _wanted_tasks(claim: TaskClaim, limit: int) -> dict[str, Value]:
    return {
        "node": claim.node,
        "held": as_json(claim.held),
        "namespace": claim.namespace,
        "queues": as_json(sorted(set(claim.queues))),
        "activities": as_json(claim.activities),
        "now_us": claim.now_us,
        "limit": limit,
    }


def _is_alive(db: sqlite3.Connection, node: NodeId) -> bool:
    return db.execute(sql.IS_ALIVE, (node,)).fetchone() is not None
