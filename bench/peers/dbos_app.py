"""DBOS under load: async workflows and steps on its system database, SQLite or PostgreSQL, as its documentation shows.

A run is a direct call of the workflow under a workflow id: the fastest way that DBOS has, without a queue and
without polling for the result. Its settings are DBOS' own; what its connections use is read back and reported.
Runs inside the environment that `envs.py` makes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from bench.load import Setting, Subject, main, step_result

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


def ask(dbos: DBOS, statement: str) -> Any:
    with dbos._sys_db.engine.connect() as connection:
        return connection.exec_driver_sql(statement).scalar()


def settings_of(dbos: DBOS, on_postgres: bool) -> dict[str, str | float]:
    notes: dict[str, str | float] = {"version": version("dbos")}
    if on_postgres:
        names = ("synchronous_commit", "fsync")
        return (
            notes
            | {name: ask(dbos, f"SHOW {name}") for name in names}
            | {"connections": dbos._sys_db.engine.pool.size()}
        )
    mode = str(ask(dbos, "PRAGMA journal_mode")).upper()
    return notes | {"journal mode": mode, "synchronous": SYNCHRONOUS[ask(dbos, "PRAGMA synchronous")]}


def check_database(dbos: DBOS, schema: str, done: int, activities: int) -> None:
    ended = ask(dbos, f"SELECT count(*) FROM {schema}workflow_status WHERE status = 'SUCCESS'")
    steps = ask(dbos, f"SELECT count(*) FROM {schema}operation_outputs")
    if (ended, steps) != (done, done * activities):
        raise AssertionError(f"DBOS holds {ended} runs and {steps} steps, expected {done} and {done * activities}")


@asynccontextmanager
async def open_dbos(setting: Setting) -> AsyncIterator[Subject]:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": setting.url or f"sqlite:///{setting.folder / 'dbos.db'}",
        "log_level": "ERROR",
        "run_admin_server": False,
    }
    dbos = DBOS(config=config)
    DBOS.launch()

    async def check(done: int, activities: int) -> None:
        check_database(dbos, "dbos." if setting.url else "", done, activities)

    try:
        notes = settings_of(dbos, on_postgres=setting.url is not None)
        yield Subject(run_once, check, servers_cpu_s=setting.server_cpu_s, notes=notes)
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main(open_dbos)
