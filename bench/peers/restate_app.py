"""Restate under load: its server on loopback, and an endpoint of its Python SDK in this process.

A run is a call of a service under an idempotency key through the ingress, over HTTP connections that are kept; its
activities are `ctx.run` steps. That is the fastest way that Restate has to run something once under an id: as a
workflow the same takes half as long again.

The server keeps everything in its own store under the folder, with its own settings: one node, replication 1, the
write-ahead log of its log server with fsync (read back below, and refused if it is off). It is a child of this
process, is ended by its pid, and its CPU time counts. Runs inside the environment that `envs.py` makes, which also
has the server's binary, from npm.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from bench.load import Setting, Subject, main, step_result
from bench.processes import end, free_port, server_cpu_seconds

SERVER_GRACE_S = 5.0
"""To end by itself; less than this process is given, so that it is there to make the server end."""

SERVER_START_S = 60.0
"""It makes its store and elects itself in about 3 s; slow disks take longer."""

chain = restate.Service("Chain")


async def step(index: int) -> str:
    return step_result(index)


@chain.handler()
async def run(ctx: restate.Context, activities: int) -> str:
    last = ""
    for index in range(activities):
        last = await ctx.run_typed("step", step, index=index)
    return last


class Addresses:
    """On loopback, each on a port that was free a moment ago."""

    def __init__(self) -> None:
        self.ingress, self.admin, self.node, self.endpoint = (f"127.0.0.1:{free_port()}" for _ in range(4))

    def environment(self, folder: Path) -> dict[str, str]:
        return {
            "RESTATE_BASE_DIR": str(folder / "restate"),
            "RESTATE_NODE_NAME": "bench",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BIND_ADDRESS": self.node,
            "RESTATE_ADVERTISED_ADDRESS": f"http://{self.node}",
            "RESTATE_INGRESS__BIND_ADDRESS": self.ingress,
            "RESTATE_ADMIN__BIND_ADDRESS": self.admin,
            "RESTATE_LOG_FILTER": "error",
            "RESTATE_DISABLE_TELEMETRY": "true",
        }


def binary() -> Path:
    """As npm has put it beside this interpreter. Raises FileNotFoundError."""
    packages = Path(sys.prefix) / "node_modules" / "@restatedev"
    for path in sorted(packages.glob("restate-server-*/bin/restate-server")):
        return path
    raise FileNotFoundError(f"no restate-server under {packages}; remove the environment, and `--peers` makes it anew")


def settings_of(program: Path, environment: dict[str, str]) -> dict[str, str | float]:
    """What the server says that it is going to use. Raises AssertionError unless it is durable."""
    said = subprocess.run(
        [program, "--dump-config"], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    dumped = tomllib.loads(said.stdout[said.stdout.index("roles") :])
    log = dumped["log-server"]
    if log["rocksdb-disable-wal-fsync"]:
        raise AssertionError("Restate's log server would not fsync")
    return {
        "version": f"restate-server {version_of(program)}, restate-sdk {version('restate-sdk')}",
        "log": str(dumped["bifrost"]["default-provider"]),
        "fsync": "on",
        "partitions": str(dumped["default-num-partitions"]),
    }


def version_of(program: Path) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[-1]


@contextmanager
def server(program: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    # Our stdout is for the result alone; what the server says goes where our own errors go.
    process = subprocess.Popen(
        [program, "--no-logo"], env={**os.environ, **environment},
        stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=sys.stderr,
    )  # fmt: skip
    try:
        yield process
    finally:
        end(process, SERVER_GRACE_S)


@asynccontextmanager
async def endpoint(address: str) -> AsyncIterator[None]:
    """The SDK's side, over HTTP/2 as the server prefers it."""
    config = Config()
    config.bind = [address]
    config.errorlog = None
    stop = asyncio.Event()
    app: Any = restate.app([chain])
    serving = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
    try:
        yield
    finally:
        stop.set()
        await serving


async def register(process: subprocess.Popen[bytes], session: aiohttp.ClientSession, addresses: Addresses) -> None:
    """Tell the server of the endpoint, as soon as it answers."""
    deadline = time.monotonic() + SERVER_START_S
    body = {"uri": f"http://{addresses.endpoint}", "force": True}
    while True:
        try:
            async with session.post(f"http://{addresses.admin}/deployments", json=body) as answer:
                if answer.status in (200, 201):
                    return
                said = f"{answer.status}: {await answer.text()}"
        except aiohttp.ClientError as error:
            said = str(error)
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Restate's server does not take the deployment; it said {said}")
        await asyncio.sleep(0.1)


async def check_server(session: aiohttp.ClientSession, addresses: Addresses, done: int, activities: int) -> None:
    """Asks the server's own tables: all runs have completed, each with as many steps in its journal."""
    # `sys_journal` has rows only while a journal is retained; that of a completed call with a key is, for a day.
    ended = await query(session, addresses, ENDED)
    steps = await query(session, addresses, STEPS)
    if (ended, steps) != (done, done * activities):
        raise AssertionError(f"Restate holds {ended} runs and {steps} steps, expected {done} and {done * activities}")


ENDED = "SELECT count(*) AS n FROM sys_invocation WHERE status = 'completed' AND completion_result = 'success'"
STEPS = "SELECT count(*) AS n FROM sys_journal WHERE entry_type = 'Command: Run'"


async def query(session: aiohttp.ClientSession, addresses: Addresses, statement: str) -> int:
    async with session.post(
        f"http://{addresses.admin}/query", json={"query": statement}, headers={"Accept": "application/json"}
    ) as answer:
        if answer.status != 200:
            raise AssertionError(f"Restate did not answer {statement!r}: {answer.status} {await answer.text()}")
        rows: list[dict[str, int]] = (await answer.json())["rows"]
        return rows[0]["n"]


@asynccontextmanager
async def open_restate(setting: Setting) -> AsyncIterator[Subject]:
    program = binary()
    addresses = Addresses()
    environment = addresses.environment(setting.folder)
    notes = settings_of(program, environment)
    # As many connections as runs, each kept: no run waits for another's.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    timeout = aiohttp.ClientTimeout(total=None)
    with server(program, environment) as process:
        async with endpoint(addresses.endpoint), aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await register(process, session, addresses)

            async def run_once(workflow_id: str, activities: int) -> str:
                url = f"http://{addresses.ingress}/Chain/run"
                key = {"idempotency-key": workflow_id}
                async with session.post(url, json=activities, headers=key) as answer:
                    if answer.status != 200:
                        raise AssertionError(f"Restate answered {answer.status}: {await answer.text()}")
                    return str(await answer.json())

            async def check(done: int, activities: int) -> None:
                await check_server(session, addresses, done, activities)

            yield Subject(run_once, check, lambda: server_cpu_seconds(process.pid), notes)


if __name__ == "__main__":
    main(open_restate)
