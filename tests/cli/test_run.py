"""`outlast run`: a workflow in a file, from the shell."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.recording import Call, until

SHOP = """
from __future__ import annotations
import asyncio, os, sys
from dataclasses import dataclass
from outlast import Retry, activity, workflow

@dataclass
class Order:
    id: str
    amount: int = 7

@dataclass
class Receipt:
    order: str
    paid: int

class CardRefused(Exception):
    pass

@activity
async def charge(order: Order) -> int:
    with open("charges.log", "a") as log:
        log.write(order.id + "\\n")
    return order.amount

@activity(retry=Retry.never())
async def refuse(order: Order) -> int:
    raise CardRefused("no funds")

@workflow
async def fulfil_order(order: Order, extra: int = 0) -> Receipt:
    return Receipt(order.id, await charge(order) + extra)

@workflow
async def fail(order: Order) -> int:
    try:
        return await refuse(order)
    except CardRefused as error:
        raise ValueError("cannot fulfil") from error

@workflow
async def wait(order: Order) -> int:
    await charge(order)
    await workflow.sleep("1 hour", label="wait-for-warehouse")
    return 1

@workflow(name="renamed")
def plain(number: int) -> int:
    return -number

@workflow
async def broken() -> int:
    await workflow.sleep(0.001)
    workflow.sleep(1)
    return 1

not_a_workflow = 7
if __name__ == "__main__":
    sys.exit("must not be run as a program")
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)


def test_the_result_is_json_on_stdout_and_nothing_else(outlast: Call) -> None:
    assert outlast("run", "shop.py:fulfil_order", '{"id": "a"}', "--id", "order-1") == (
        0,
        '{"order":"a","paid":7}\n',
        "",
    )


def test_the_same_id_again_gives_the_recorded_result(outlast: Call, tmp_path: Path) -> None:
    first = outlast("run", "shop.py:fulfil_order", '{"id": "a"}', "--id", "order-1")
    again = outlast("run", "shop.py:fulfil_order", '{"id": "a"}', "--id", "order-1")

    assert again.out == first.out
    assert "already finished: fulfil_order/order-1" in again.err
    assert (tmp_path / "charges.log").read_text() == "a\n"


def test_without_an_id_one_is_made_and_told(outlast: Call) -> None:
    status, _, err = outlast("run", "shop.py:fulfil_order", '{"id": "a"}')
    assert status == 0
    id_ = err.removeprefix("outlast: running fulfil_order/").strip()
    assert f"Workflow: fulfil_order/{id_}" in outlast("show", id_).out


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        (['{"id": "a", "amount": 5}', "3"], '{"order":"a","paid":8}\n'),
        (['{"id": "a", "amount": 5}', "-3"], '{"order":"a","paid":2}\n'),
        (["--kwargs", '{"order": {"id": "a"}, "extra": 1}'], '{"order":"a","paid":8}\n'),
    ],
)
def test_arguments_go_by_position_or_by_name(outlast: Call, arguments: list[str], result: str) -> None:
    assert outlast("run", "shop.py:fulfil_order", *arguments, "--id", "x").out == result


def test_a_workflow_is_found_by_its_name_in_the_file_and_in_the_history(outlast: Call) -> None:
    assert outlast("run", "shop.py:plain", "7", "--id", "x").out == "-7\n"
    assert outlast("run", "shop.py:renamed", "8", "--id", "y").out == "-8\n"


def test_a_module_may_be_named_instead_of_a_file(outlast: Call, tmp_path: Path) -> None:
    (tmp_path / "boutique").mkdir()
    (tmp_path / "boutique" / "__init__.py").touch()
    (tmp_path / "boutique" / "orders.py").write_text("from shop import plain\n")
    assert outlast("run", "boutique.orders:plain", "7", "--id", "x").out == "-7\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["shop.py:fulfil_order"], ["order"]),
        (["shop.py:fulfil_order", '{"id": 5}'], ["id"]),
        (["shop.py:fulfil_order", '{"id": "a"}', "1", "2"], []),
        (["shop.py:fulfil_order", "--kwargs", '{"ordre": 1}'], ["fulfil_order"]),
        (["shop.py:fulfil_order", "--kwargs", "[1]"], ["JSON object"]),
        (["shop.py:fulfil_order", "1", "--kwargs", "{}"], ["not both"]),
        (["shop.py:fulfil_order", "order-1"], ["argument 1 is not JSON: order-1", "'\"order-1\"'"]),
        (["shop.py:fulfil_order", '{"id": "a"}', "--idd", "x"], ["--idd"]),
        (["shop.py"], ["FILE.py:WORKFLOW"]),
        (["shop.py:"], ["FILE.py:WORKFLOW"]),
        (["shop.py:fulfill_order"], ["did you mean fulfil_order?"]),
        (["shop.py:zzz"], ["it has fulfil_order, fail, wait, plain, broken"]),
        (["shop.py:not_a_workflow"], ["is not a workflow"]),
        (["shop.py:charge"], ["is not a workflow"]),
        (["shopp.py:order"], ["there is no file shopp.py", "shop.py"]),
        (["nowhere/shop.py:order"], ["there is no file nowhere/shop.py"]),
        (["shop_that_is_not:order"], ["there is no module 'shop_that_is_not'"]),
        ([".:order"], ["folder", "."]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) and ":" in value[0] else "",
)
def test_a_wrong_call_is_explained_before_anything_is_written(
    outlast: Call, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    status, out, err = outlast("run", *arguments)

    assert (status, out) == (2, "")
    assert err.startswith("outlast: error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert not list(tmp_path.glob("outlast.db*"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def order(:\n", ["SyntaxError", "bad.py, line 1"]),
        ("\nimport no_such_thing\n", ["ModuleNotFoundError", "no_such_thing", "bad.py, line 2"]),
        ("\n\nraise KeyError('x')\n", ["KeyError", "bad.py, line 3"]),
        ("import sys\nsys.exit(0)\n", ['`if __name__ == "__main__":`']),
        ("from . import shop\n", ["attempted relative import", "package.module:workflow"]),
        ("x = 1\n", ["has no workflow"]),
        ("from outlast import workflow\nf = workflow(lambda: 1)\n", ["bad.py, line 2"]),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_the_line(
    outlast: Call, tmp_path: Path, text: str, parts: list[str]
) -> None:
    (tmp_path / "bad.py").write_text(text)
    for arguments in (["run", "bad.py:order"], ["worker", "bad.py"]):
        status, out, err = outlast(*arguments)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        for part in parts if arguments[0] == "run" else parts[:1]:
            assert part in err or "nothing at its top level" in err


def test_a_file_with_the_name_of_a_loaded_module_is_refused(outlast: Call, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    status, _, err = outlast("run", "json.py:order")
    assert status == 2
    assert "a module of that name is loaded already" in err


def test_a_failed_workflow_prints_its_failure_with_the_causes(outlast: Call) -> None:
    status, out, err = outlast("run", "shop.py:fail", '{"id": "a"}', "--id", "order-1")

    assert (status, out) == (1, "")
    lines = err.splitlines()
    assert lines[0] == "outlast: error: workflow fail/order-1 failed"
    assert lines[1].startswith("  ValueError: cannot fulfil (at ")
    assert any(line.startswith("    caused by CardRefused: no funds (at ") for line in lines[2:])
    assert "Traceback" not in err


def test_a_turn_that_fails_leaves_the_run_open_and_says_so(outlast: Call) -> None:
    status, out, err = outlast("run", "shop.py:broken", "--id", "order-1")

    assert (status, out) == (1, "")
    assert "outlast: error: the run cannot go on: DurableCallError: workflow.sleep(...) at " in err
    assert "run it again with --id order-1" in err
    assert "Traceback" not in err
    assert "Status: Running (parked: its last turn failed)" in outlast("show", "order-1").out


def test_a_run_leaves_the_handling_of_signals_as_it_was(outlast: Call) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert outlast("run", "shop.py:plain", "7").status == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_is_killed_goes_on_where_it_was(
    outlast: Call, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    charges = tmp_path / "charges.log"
    killed = start("run", "shop.py:wait", '{"id": "a"}', "--id", "order-1")
    until(outlast, killed, "order-1", "(step: wait-for-warehouse)")
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    resumed = start("run", "shop.py:wait", '{"id": "a"}', "--id", "order-1")
    assert resumed.stderr is not None
    assert any("resuming wait/order-1" in line for line in resumed.stderr)  # reads up to that line
    resumed.send_signal(signal.SIGINT)
    out, err = resumed.communicate()

    assert (resumed.returncode, out) == (130, "")
    assert "the same command with --id order-1 goes on from there" in err
    assert "Traceback" not in err
    assert charges.read_text() == "a\n"
    assert outlast("show", "order-1").out.count("ActivityScheduled: charge") == 1
