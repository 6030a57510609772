"""The scan reports what the code spells out, as data for a linter, and decides what needs watching call by call."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from outlast.sdk import guard
from sdk.guard_world import module

SOURCE = """
import datetime as dt
import random
import time
from dataclasses import dataclass, field

@dataclass
class Order:
    at: object = field(default_factory=time.time)

def helper():
    from random import randint as dice
    return lambda: dice(1, 6)

async def flow(order: Order):
    started = dt.datetime.now(dt.UTC)
    clock = time.monotonic
    helper()
    return started, clock(), random.Random(42), random.Random(), order.clock.now()
"""


def test_findings_name_call_place_and_certainty(tmp_path: Path) -> None:
    made = module(tmp_path, SOURCE)
    lines = {each.function: each.line for each in guard.scan(made.flow)}
    found = {(each.name, each.line, each.function, each.certain) for each in guard.scan(made.flow)}
    assert found == {
        ("datetime.datetime.now", 16, "flow", True),
        ("time.monotonic", 17, "flow", False),
        ("time.monotonic", 19, "flow", True),
        ("random.Random", 19, "flow", True),
        ("now", 19, "flow", False),
        ("random.randint", 13, "helper.<locals>.<lambda>", True),
        ("time.time", lines["Order.at"], "Order.at", False),
    }
    assert lines["Order.at"] in (0, 7, 8)  # where the class begins, if this Python tells
    assert {each.file for each in guard.scan(made.flow)} == {made.__file__}


@pytest.mark.parametrize(
    "line",
    [
        "workflow.now(); datetime.datetime(2024, 1, 1)",
        "random.Random(42).random()",
        "asyncio.sleep(1); order.payment.id",
        "time.gmtime(0)",
        "'a'.replace('a', 'b')",
        "isinstance(order, datetime.datetime)",
    ],
)
def test_clean_code_has_no_findings_and_needs_no_watching(tmp_path: Path, line: str) -> None:
    source = (
        "import asyncio, datetime, random, time\nclass W:\n    def now(self): return 0\nworkflow = W()\n"
        f"def flow(order):\n    {line}\n"
    )
    made = module(tmp_path, source)
    assert [each for each in guard.scan(made.flow) if each.certain] == []
    if "workflow.now" not in line:  # of what an object does nothing is known on 3.11
        assert guard.scan(made.flow) == []
        assert guard.prepare(made.flow, "flow") is False


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions watch by monitoring")
@pytest.mark.parametrize(
    ("line", "watched"), [("datetime.datetime.now()", True), ("random.randint(1, 2)", False), ("uuid.uuid4()", False),
                          ("order.clock.now()", True), ("getattr(datetime.datetime, 'now')()", True)]
)  # fmt: skip
def test_on_311_only_what_the_patches_miss_is_watched_call_by_call(tmp_path: Path, line: str, watched: bool) -> None:
    guard.install()
    made = module(tmp_path, f"import datetime, random, uuid\ndef flow(order):\n    {line}\n")
    assert guard.prepare(made.flow, "flow") is watched


def test_a_scan_runs_nothing_of_the_users(tmp_path: Path) -> None:
    made = module(
        tmp_path,
        """
        import time
        class Trap:
            def __getattr__(self, name): raise AssertionError(name)
            def __hash__(self): raise AssertionError
            def __eq__(self, other): raise AssertionError
            def __call__(self): raise AssertionError
            @property
            def now(self): raise AssertionError
        class Meta(type):
            def __getattr__(cls, name): raise AssertionError(name)
            def __hash__(cls): raise AssertionError
            def __eq__(cls, other): raise AssertionError
        class Odd(metaclass=Meta):
            pass
        trap, table = Trap(), [Trap(), {"a": Trap()}]
        def flow(x: Trap = trap, y: Odd = Odd):
            trap.now, table, Odd.now, trap(), time.time()
        """,
    )
    assert [each.name for each in guard.scan(made.flow) if each.certain] == ["time.time"]


def test_environment_reads_are_advice_only(tmp_path: Path) -> None:
    made = module(tmp_path, "import os\ndef flow():\n    return os.getenv('HOME')\n")
    assert [each.name for each in guard.scan(made.flow)] == ["os.getenv"]
    assert guard.prepare(made.flow, "flow") is False
