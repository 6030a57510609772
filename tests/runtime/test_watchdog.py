"""Who blocks the event loop is named; who may be interrupted is, and nobody else."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import outlast
from outlast import activity, workflow
from outlast.runtime import membership, watchdog
from outlast.runtime.interrupts import LoopBlocked, attempt_here, interruptible
from outlast.runtime.watchdog import Watchdog

barked = threading.Event()


def block() -> str:
    assert barked.wait(30), "nobody has noticed"
    return "done"


@activity
async def blocks() -> str:
    return block()


@workflow
async def calls_what_blocks() -> str:
    return await blocks()


@workflow
async def computes() -> str:
    return block()


@workflow
def computes_plainly() -> str:
    return block()


class Ear(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "has blocked the event loop" in record.getMessage():
            barked.set()


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (calls_what_blocks, "activity blocks of calls_what_blocks/w"),
        (computes, "workflow computes/w"),
        (computes_plainly, "workflow computes_plainly/w"),
    ],
    ids=["async activity", "async workflow", "plain workflow"],
)
async def test_who_blocks_the_loop_is_named(
    target: object, named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    barked.clear()
    ear = Ear()
    logging.getLogger("outlast").addHandler(ear)
    monkeypatch.setattr(membership, "Watchdog", lambda _: watchdog.Watchdog(None, patience_s=0.05))
    try:
        async with outlast.connect(f"sqlite:///{tmp_path}/a.db") as client:
            async with client.worker(target, blocks):
                assert await client.execute(target, id="w") == "done"  # type: ignore[arg-type]
    finally:
        logging.getLogger("outlast").removeHandler(ear)
    said = [each.getMessage() for each in caplog.records if "has blocked the event loop" in each.getMessage()]
    assert any(each.startswith(f"{named} has blocked") and "in block" in each for each in said)


# --- what is done about it --------------------------------------------------------------------------------------------


async def blocked_for(silent_s: float, block: Callable[[Callable[[], bool]], object]) -> tuple[list[str], object]:
    """Block the loop until the watchdog has seen it silent for so long. What it has ended, and what came out."""
    ended: list[str] = []
    dog = Watchdog(0.1, patience_s=0.1, give_up_s=0.2, end=ended.append)
    await asyncio.sleep(0)
    deadline = time.monotonic() + 30
    try:
        outcome = block(lambda: dog._silent_s < silent_s and time.monotonic() < deadline)
    except LoopBlocked as error:
        outcome = error
    finally:
        dog.stop()
    assert time.monotonic() < deadline, "the watchdog has seen nothing"
    return ended, outcome


def spin(goes_on: Callable[[], bool]) -> str:
    while goes_on():
        pass
    return "to the end"


def spin_in_a_stretch(goes_on: Callable[[], bool]) -> str:
    return interruptible(spin, goes_on)


async def test_a_stretch_is_interrupted_soon_after_its_time() -> None:
    ended, outcome = await blocked_for(5.0, spin_in_a_stretch)
    assert isinstance(outcome, LoopBlocked)
    assert "blocked the event loop for over 0.1 s at " in str(outcome)
    assert "test_watchdog.py:" in str(outcome)
    assert not ended


async def test_code_of_the_program_itself_is_named_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert await blocked_for(1.0, spin) == ([], "to the end")
    assert "code outside of workflows and activities has blocked the event loop" in caplog.text


async def test_a_task_that_an_attempt_has_begun_beside_itself_ends_the_process() -> None:
    attempt_here.set("an attempt")  # type: ignore[arg-type]
    ended: list[list[str]] = []

    async def beside() -> None:
        ended.append((await blocked_for(1.0, spin))[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchdog, "who_runs", lambda frame, attempt: f"activity of {attempt}")
        await asyncio.create_task(beside())
    assert "activity of an attempt has blocked" in ended[0][0]


async def test_in_a_debugger_nothing_is_interrupted_however_long_it_takes() -> None:
    def traced(goes_on: Callable[[], bool]) -> str:
        before = sys.gettrace()
        sys.settrace(lambda frame, event, argument: trace(frame))
        try:
            return spin_in_a_stretch(goes_on)
        finally:
            sys.settrace(before)

    def trace(frame: object) -> object:
        return None if frame is None else (lambda *_: None)

    assert await blocked_for(1.0, traced) == ([], "to the end")
