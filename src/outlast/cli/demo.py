"""`outlast demo`: an order, and a worker that is really killed in the middle of it.

The story: place an order; a worker charges the payment, and then waits for the warehouse (a durable timer). There
its process gets SIGKILL, which nothing can catch. A second worker is started, finds the order in the database, and
goes on after the payment. Who was charged how often is counted in a file that the activities write, since the
database cannot be its own witness.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from outlast.cli.demo_shop import WITNESS, Order, Shipment, fulfil_order
from outlast.cli.errors import CommandFailed, say
from outlast.cli.options import common_options
from outlast.cli.showing import describe, see
from outlast.model.events import TimerStarted
from outlast.model.ids import RunId
from outlast.sdk.client import Client, connect
from outlast.sdk.handle import Handle

T = TypeVar("T")

PATIENCE_S = 60.0
"""The whole takes some five seconds; a machine that needs this long for one step is not going to."""

LOOK_S = 0.02

ORDER = Order("order-123", "ada@example.com", 4_200)


@click.command
@click.option("--keep", is_flag=True, help="Keep the database, to look at it with the other commands.")
@common_options
def demo_command(keep: bool, db: str | None) -> None:
    """Kill a process in the middle of an order, start another, and see that the customer was charged once.

    Works on a database of its own in a temporary folder.
    """
    if db is not None:
        raise click.UsageError("the demo makes a database of its own in a temporary folder; --keep keeps it")
    folder = Path(tempfile.mkdtemp(prefix="outlast-demo-"))
    try:
        asyncio.run(_Demo(folder).play())
        if keep:
            say(f"kept: outlast show {ORDER.id} --db sqlite:///{folder / 'demo.db'}")
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


async def _show(client: Client, handle: Handle[Shipment]) -> None:
    row = await client.service.find_run(RunId(handle.run_id))
    for line in describe(await see(client.service, row)):
        click.echo(f"   {line}")


def _tell(text: str) -> None:
    click.echo(f"\n{text}")


class _Demo:
    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'demo.db'}"
        self.witness = folder / "witness.log"
        self.log = folder / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None

    async def play(self) -> None:
        try:
            async with connect(self.url) as client:
                await self._until_killed(client)
                await self._until_done(client)
        finally:
            self._kill()
        self._count()

    async def _until_killed(self, client: Client) -> None:
        pid = self._start_worker()
        _tell(f"1. A worker runs as process {pid}. An order comes in: {ORDER.id}, 42.00 EUR.")
        handle = await client.start(fulfil_order, ORDER, id=ORDER.id)
        await self._within(self._timer_runs(handle), "charge the payment")
        self._kill()
        _tell(f"2. The customer is charged, the warehouse packs. Now the worker is killed: kill -9 {pid}")
        await _show(client, handle)

    async def _until_done(self, client: Client) -> None:
        handle: Handle[Shipment] = await client.handle(ORDER.id, fulfil_order)
        pid = self._start_worker()
        _tell(f"3. A new worker runs as process {pid}. It takes the order over, where it was.")
        shipment = await self._within(handle.result(), "finish the order")
        _tell(f"4. The order is done: {shipment}")
        await _show(client, handle)

    def _start_worker(self) -> int:
        command = [sys.executable, "-m", "outlast.cli.main", "worker", "outlast.cli.demo_shop", "--db", self.url]
        with self.log.open("ab") as log:
            environment = {**os.environ, WITNESS: str(self.witness)}
            self.worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        return self.worker.pid

    def _kill(self) -> None:
        """SIGKILL, and on Windows what is nearest to it."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()

    async def _timer_runs(self, handle: Handle[Shipment]) -> None:
        while not any(isinstance(item.event, TimerStarted) for item in await handle.history()):
            await asyncio.sleep(LOOK_S)

    async def _within(self, step: Coroutine[Any, Any, T], what: str) -> T:
        """Wait for a step, and see to it that the worker lives meanwhile."""
        assert self.worker is not None
        task = asyncio.ensure_future(step)
        deadline = time.monotonic() + PATIENCE_S
        while not task.done() and self.worker.poll() is None and time.monotonic() < deadline:
            await asyncio.wait([task], timeout=LOOK_S)
        if task.done():
            return task.result()
        task.cancel()
        ended = self.worker.poll()
        how = f"ended with status {ended}" if ended is not None else f"did nothing for {PATIENCE_S:.0f} s"
        raise CommandFailed(f"the worker should {what}, but it {how}. Its log:\n{self.log.read_text()}")

    def _count(self) -> None:
        lines = self.witness.read_text().splitlines()
        counts = Counter(line.split()[0] for line in lines)
        _tell("5. What the activities really did, by their own log, with the idempotency key of each:")
        for line in lines:
            click.echo(f"   {line}")
        charged = counts["charge_payment"]
        if charged != 1:
            raise CommandFailed(f"the customer was charged {charged} times, expected once; please report this")
        click.echo("\nThe process was killed between charge and ship. The customer was charged once.")
