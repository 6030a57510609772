"""Who blocks the event loop is named."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

import outlast
from outlast import activity, workflow
from outlast.runtime import membership, watchdog

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
    monkeypatch.setattr(membership, "Watchdog", lambda: watchdog.Watchdog(patience_s=0.05))
    try:
        async with outlast.connect(f"sqlite:///{tmp_path}/a.db") as client:
            async with client.worker(target, blocks):
                assert await client.execute(target, id="w") == "done"  # type: ignore[arg-type]
    finally:
        logging.getLogger("outlast").removeHandler(ear)
    said = [each.getMessage() for each in caplog.records if "has blocked the event loop" in each.getMessage()]
    assert any(each.startswith(f"{named} has blocked") and "in block" in each for each in said)
