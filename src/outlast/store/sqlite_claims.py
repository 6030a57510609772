"""Claims of runs and tasks on SQLite, inside a transaction that the caller has begun.

Runs are free in several ways (due, with mail, lost by a dead node, parked). For each way one statement finds the
best candidates; here they are merged, and the best of all are taken. A suspect is claimed by a statement of its own.
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
    wanted: dict[str, Value] = {
        "namespace": claim.namespace,
        "queues": as_json(sorted(set(claim.queues))),
        "workflows": as_json(sorted(set(claim.workflows))),
        "max_format": claim.max_format,
        "now_us": claim.now_us,
        "limit": claim.limit,
    }
    if claim.suspect:
        ways = [sql.SUSPECT_RUN]
    else:
        ways = [sql.LOST_RUNS, sql.DUE_RUNS, sql.WOKEN_RUNS]
        if claim.parked:
            ways.append(sql.PARKED_RUNS)
    found: list[Candidate] = []
    for way in ways:
        (text,) = db.execute(way, wanted).fetchone()
        found += decode_candidates(text)
    return found


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
    ways = [sql.LOST_TASKS, sql.FREE_TASKS] if claim.held is None else [sql.LOST_TASKS, sql.OWN_TASKS, sql.FREE_TASKS]
    for way in ways:
        wanted: dict[str, Value] = {
            "node": claim.node,
            "held": as_json(claim.held),
            "namespace": claim.namespace,
            "queues": as_json(sorted(set(claim.queues))),
            "activities": as_json(claim.activities),
            "now_us": claim.now_us,
            "limit": claim.limit - len(tasks),
        }
        (text,) = db.execute(way, wanted).fetchone()
        tasks += decode_tasks(text)
    db.executemany(sql.TAKE_TASK, [(claim.node, task.lost, task.run_id, task.activity_id) for task in tasks])
    return tasks


def _is_alive(db: sqlite3.Connection, node: NodeId) -> bool:
    return db.execute(sql.IS_ALIVE, (node,)).fetchone() is not None
