"""A node that hosts ten queues and has nothing to do: what it asks the server, and what that costs both."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

from bench.limits import Scale, place
from bench.limits.app import worker_process
from bench.load import Costs
from bench.postgres import Server, account
from bench.processes import cpu_seconds, server_cpu_seconds
from bench.verdicts import Verdict

QUEUES = 10

TARGET_STATEMENTS_PER_S = 5.0
TARGET_CPU = 0.01
"""Of one core, by the node."""

SETTLE_S = 3.0
"""After its start a node looks around; and what it has asked until then must have been handed in (see `account`)."""


def measure(folder: Path, scale: Scale, server: Server | None) -> list[Verdict]:
    if server is None:
        raise ValueError("on SQLite an idle node makes no statement that others would notice; measure with --postgres")
    url = place(folder, "idle", server)
    queues = (f"queue-{number}" for number in range(QUEUES))
    with worker_process(url, folder / "idle.effects", folder, *queues) as (process, _):
        return watch(server, url, process.pid, scale, f"an idle node with {QUEUES} queues")


def watch(server: Server, url: str, pid: int, scale: Scale, name: str) -> list[Verdict]:
    """What the node with this process id asks of its database, of which it is the only user."""
    database = urlsplit(url).path.removeprefix("/")
    time.sleep(SETTLE_S)
    costs, cpu_s, server_cpu_s, began = _look(server, database, pid)
    time.sleep(scale.idle_s)
    costs_after, cpu_after_s, server_cpu_after_s, ended = _look(server, database, pid)
    seconds = ended - began
    spent = costs_after.since(costs)
    statements_per_s = (spent.transactions - OWN_TRANSACTIONS) / seconds
    cpu = (cpu_after_s - cpu_s) / seconds
    told_cpu = "" if server.pid is None else f", the server {(server_cpu_after_s - server_cpu_s) / seconds:.2%}"
    return [
        Verdict(
            f"{name}: statements",
            f"under {TARGET_STATEMENTS_PER_S:.0f}/s",
            f"{statements_per_s:.1f}/s, {spent.wal_bytes / seconds:,.0f} bytes of WAL/s",
            statements_per_s < TARGET_STATEMENTS_PER_S,
        ),
        Verdict(f"{name}: CPU", f"under {TARGET_CPU:.0%} of a core", f"{cpu:.2%}{told_cpu}", cpu < TARGET_CPU),
    ]


OWN_TRANSACTIONS = 1
"""The one by which `account` has asked for rows, between the two looks at the number of transactions."""


def _look(server: Server, database: str, pid: int) -> tuple[Costs, float, float, float]:
    costs = account(server, database, wait=False)
    return costs, cpu_seconds(pid), 0.0 if server.pid is None else server_cpu_seconds(server.pid), time.perf_counter()
