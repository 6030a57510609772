"""A cluster: one database, and worker processes that share it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cluster.databases import Database
from outlast import Client
from outlast.model.ids import NodeId
from processes import WorkerProcess, until_true

PROGRAM = Path(__file__).with_name("worker.py")

SHORT_LEASE_S = 4.0
"""Instead of 10 s, where a test waits for a lease to run out. Several times what lies between two rounds of a node:
who has not looked for half a lease starts to count anew."""

START_S = 60.0
"""A worker that cannot open the database (it is being restarted) ends, and is started again for so long."""

BUGS = ("please report", "Traceback (most recent call last)")
"""What no log of a worker may hold, whatever is done to it. Failures of activities are told without a traceback."""


class Cluster:
    def __init__(self, database: Database, folder: Path, lease_s: float | None = None) -> None:
        self.database = database
        self.marks = folder / "marks"
        self.workers: list[WorkerProcess] = []
        """All that were ever started."""
        self._logs = folder / "logs"
        self._logs.mkdir()
        self._lease = () if lease_s is None else ("--lease", str(lease_s))

    async def start(self, *options: str) -> WorkerProcess:
        """A new worker, ready to work."""
        worker = self.spawn(*options)
        if not await asyncio.to_thread(worker.wait_until_ready):
            raise AssertionError(f"the worker ended before it was ready\n{self.said_by(worker)}")
        return worker

    async def start_surely(self, *options: str) -> WorkerProcess:
        """As a supervisor does it: again and again, as long as the database cannot be opened."""
        deadline = time.monotonic() + START_S
        while True:
            worker = self.spawn(*options)
            if await asyncio.to_thread(worker.wait_until_ready):
                return worker
            assert worker.wait() == 3, f"{self.said_by(worker)}\nexit code 3 says that the database does not answer"
            assert time.monotonic() < deadline, self.said_by(worker)

    def spawn(self, *options: str) -> WorkerProcess:
        """A new worker, that may not even be ready."""
        log = self._logs / f"{len(self.workers)}.log"
        arguments = (self.database.url, str(self.marks), *self._lease, *options)
        worker = WorkerProcess(PROGRAM, *arguments, wait=False, log=log)
        self.workers.append(worker)
        return worker

    def stop(self, worker: WorkerProcess) -> None:
        """SIGSTOP at a moment at which the worker does not hold the database itself up.

        A process that is stopped in the middle of a SQLite transaction freezes the file for everybody until it goes
        on. That is known, and not what the tests that use this are about.
        """
        while True:
            worker.stop()
            if self.database.can_be_written():
                return
            worker.go_on()

    async def end(self, workers: Sequence[WorkerProcess]) -> None:
        """SIGTERM to processes that are alive; they must end well."""
        for worker in workers:
            assert worker.is_alive(), f"it ended by itself:\n{self.said_by(worker)}"
            worker.ask_to_end()
        for worker in workers:
            assert await asyncio.to_thread(worker.wait) == 0, self.said_by(worker)

    def said_by(self, worker: WorkerProcess) -> str:
        assert worker.log is not None
        return worker.log.read_text(errors="replace")[-3_000:]

    def check_logs(self) -> None:
        for worker in self.workers:
            assert worker.log is not None
            said = worker.log.read_text(errors="replace")
            for sign in BUGS:
                where = said.find(sign)
                assert where < 0, f"worker {worker.pid} said:\n{said[max(0, where - 500) : where + 4_000]}"

    def kill_all(self) -> None:
        for worker in self.workers:
            if worker.is_alive():
                worker.kill()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()
        if kind is None:
            self.check_logs()


async def nodes_of(client: Client, worker: WorkerProcess) -> list[NodeId]:
    """The live nodes of this worker's process. One, but for the moment in which it joins again."""
    name = f"{socket.gethostname()}/{worker.pid}"
    rows = await client.service.store.nodes()
    return [row.node_id for row in rows if row.name == name and row.alive]


async def until_dead(client: Client, node: NodeId, patience_s: float = 60.0) -> None:
    """Until somebody has declared the node dead."""

    async def is_dead() -> bool:
        return all(row.node_id != node or not row.alive for row in await client.service.store.nodes())

    await until_true(is_dead, patience_s)


class Delay:
    """How much of the time went by without this process being let run: on a machine that has other work to do, a
    bound on somebody's speed is a bound on what is left of the time."""

    TICK_S = 0.01

    def __init__(self) -> None:
        self.seconds = 0.0

    async def __aenter__(self) -> Delay:
        self._ticking = asyncio.ensure_future(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ticking.cancel()

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(self.TICK_S)
            now = time.monotonic()
            self.seconds += max(0.0, now - last - 2 * self.TICK_S)
            last = now
