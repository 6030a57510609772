"""DBOS under load: async workflows and steps on its SQLite system database, as its documentation shows them.

A run is a direct call of the workflow under a workflow id: the fastest way that DBOS has, without a queue and
without polling for the result. Journal mode and synchronous setting are DBOS' own; they are read back and reported.
Runs inside the environment that `envs.py` makes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from importlib.metadata import version
from pathlib import Path
from sqlite3 import connect

from dbos import DBOS, DBOSConfig, SetWorkflowID

from bench.load import Subject, main, step_result

SYNCHRONOUS = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}


@DBOS.step()
async def step(index: int) -> str:
    return step_result(index)


@DBOS.workflow()
async def chain(activities: int) -> str:
    last = ""
    for index in range(activities):
        last = await step(index)
    return last


async def run_once(workflow_id: str, activities: int) -> str:
    with SetWorkflowID(workflow_id):
        return await chain(activities)


def settings_of(dbos: DBOS) -> dict[str, str | float]:
    """What DBOS' own connections use."""
    with dbos._sys_db.engine.connect() as connection:
        (mode,) = connection.exec_driver_sql("PRAGMA journal_mode").fetchone()
        (synchronous,) = connection.exec_driver_sql("PRAGMA synchronous").fetchone()
    return {"version": version("dbos"), "journal mode": mode.upper(), "synchronous": SYNCHRONOUS[synchronous]}


def check_database(path: Path, done: int, activities: int) -> None:
    with closing(connect(path)) as db:
        (ended,) = db.execute("SELECT count(*) FROM workflow_status WHERE status = 'SUCCESS'").fetchone()
        (steps,) = db.execute("SELECT count(*) FROM operation_outputs").fetchone()
    if (ended, steps) != (done, done * activities):
        raise AssertionError(f"DBOS holds {ended} runs and {steps} steps, expected {done} and {done * activities}")


@asynccontextmanager
async def open_dbos(folder: Path, runs: int) -> AsyncIterator[Subject]:
    path = folder / "dbos.db"
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": f"sqlite:///{path}",
        "log_level": "ERROR",
        "run_admin_server": False,
    }
    dbos = DBOS(config=config)
    DBOS.launch()

    async def check(done: int, activities: int) -> None:
        check_database(path, done, activities)

    try:
        yield Subject(run_once, check, notes=settings_of(dbos))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main(open_dbos)
