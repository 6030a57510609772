"""`outlast worker`: hosts what it was given, and hands it over when it is stopped."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import outlast as sdk
from cli.recording import Call, until
from outlast.model.ids import DEFAULT_QUEUE, WorkflowId
from outlast.model.payloads import Arguments, Payload
from outlast.runtime.service import StartRequest

PAYMENTS = """
from outlast import activity

@activity
def charge(amount: int) -> str:
    return f"paid {amount}"
"""

ORDERS = """
import payments
from outlast import activity, workflow

@activity
async def ship(order: str) -> str:
    return f"shipped {order}"

@workflow
async def fulfil(order: str, wait: bool = False) -> str:
    paid = payments.charge(7)
    if wait:
        await workflow.sleep("1 hour", label="wait-for-warehouse")
    return f"{paid}, {await ship(order)}"
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def shop(tmp_path: Path) -> None:
    (tmp_path / "payments.py").write_text(PAYMENTS)
    (tmp_path / "orders.py").write_text(ORDERS)


def ready(worker: subprocess.Popen[str]) -> str:
    """The line that it prints when it has joined."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    assert line, worker.communicate()
    return line


def test_it_says_what_it_hosts_and_where(start: Start) -> None:
    worker = start("worker", "orders.py", "--queue", "web", "--queue", "mail", "--db", "sqlite:///w.db")
    line = ready(worker)

    assert line.startswith("outlast worker ")
    assert line.endswith(
        f"/{worker.pid} hosts workflow fulfil and activities charge, ship on queues web, mail, sqlite:///w.db\n"
    )


def place(id_: str, *, wait: bool) -> None:
    """From another process than the worker's, which has not got the workflow's code."""
    arguments = Arguments((Payload.from_json(b'"lamp"'), Payload.from_json(b"true" if wait else b"false")))

    async def start() -> None:
        async with sdk.connect() as client:
            await client.service.start(StartRequest("fulfil", WorkflowId(id_), DEFAULT_QUEUE, arguments))

    asyncio.run(start())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_hands_its_runs_over(outlast: Call, start: Start, tmp_path: Path, number: int) -> None:
    first = start("worker", "orders.py")
    ready(first)
    place("order-1", wait=True)
    until(outlast, first, "order-1", "(step: wait-for-warehouse)")
    first.send_signal(number)
    out, err = first.communicate()

    assert (first.returncode, out) == (0, "")
    assert err.splitlines()[-1] == "outlast: stopped"
    assert "Traceback" not in err
    assert "none is running" in outlast("show", "order-1").out


def test_a_killed_worker_is_followed_by_the_next_one(outlast: Call, start: Start, tmp_path: Path) -> None:
    first = start("worker", "orders.py")
    ready(first)
    place("order-1", wait=True)
    until(outlast, first, "order-1", "(step: wait-for-warehouse)")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert "has ended" in outlast("show", "order-1").out

    second = start("worker", "orders.py")
    ready(second)
    place("order-2", wait=False)
    until(outlast, second, "order-2", "Status: Completed")
    until(outlast, second, "order-1", "Status: Running (step: wait-for-warehouse)\n")
    shown = outlast("show", "order-1").out
    assert "Waiting:" not in shown
    assert shown.count("ActivityScheduled") == 1


STUBBORN = """
import asyncio
from outlast import activity, workflow

@activity
async def hold_on() -> None:
    print("holding on", flush=True)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@workflow
async def fulfil(order: str, wait: bool) -> None:
    await hold_on()
"""


def test_a_second_signal_ends_a_worker_at_once(start: Start, tmp_path: Path, outlast: Call) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    worker = start("worker", "stubborn.py")
    ready(worker)
    place("order-1", wait=True)
    assert ready(worker) == "holding on\n"
    assert worker.stderr is not None

    worker.send_signal(signal.SIGINT)
    assert worker.stderr.readline().startswith("outlast: stopping; ")
    worker.send_signal(signal.SIGINT)

    assert worker.wait() == -signal.SIGINT


@pytest.mark.slow
def test_an_activity_that_never_gives_way_does_not_keep_the_worker_from_ending(
    start: Start, tmp_path: Path, outlast: Call
) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    worker = start("worker", "stubborn.py")
    ready(worker)
    place("order-1", wait=True)
    assert ready(worker) == "holding on\n"

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=60) == 0
    assert worker.stderr is not None
    assert "outlast: stopped\n" in worker.stderr.read()


@pytest.mark.parametrize(
    ("targets", "part"),
    [
        (["orders.py:fulfil"], "a worker hosts whole modules"),
        (["oders.py"], "there is no file oders.py; there is orders.py"),
        (["nothing.py"], "nothing at its top level"),
    ],
)
def test_a_wrong_call_is_explained(outlast: Call, tmp_path: Path, targets: list[str], part: str) -> None:
    (tmp_path / "nothing.py").write_text("")
    status, out, err = outlast("worker", *targets)

    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert part in err
    assert not list(tmp_path.glob("outlast.db*"))


def test_two_things_under_one_name_are_refused(outlast: Call, tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text(ORDERS)
    status, _, err = outlast("worker", "orders.py", "more.py")

    assert status == 2
    assert "two different things are called" in err
    assert "orders.py:" in err
    assert "more.py:" in err
