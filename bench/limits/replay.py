"""Replaying a long history: what it costs to bring a run back into memory.

Two shapes: activities one after another (as many turns as activities) and all in one gather. One process does the
run; a fresh one reads its history and then decodes, folds and replays it as a node does, which is what is timed.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import outlast
from bench.limits import Scale, place
from bench.limits.app import HOSTED, fan_out
from bench.outlast_driver import chain
from bench.postgres import Server
from bench.processes import module, result_of
from bench.verdicts import Verdict
from outlast.engine.replay import replay
from outlast.engine.run import RunState
from outlast.model.events import HistoryEvent, WorkflowExecutionStarted, decode_events
from outlast.model.ids import DEFAULT_NAMESPACE, DEFAULT_QUEUE, RunId
from outlast.runtime.ports import SystemClock, SystemEntropy
from outlast.sdk.registry import Registry
from outlast.sdk.worker import UserCode
from outlast.store.api import JournalRow

TARGET_S = 0.5
"""For 10,000 activities."""

TIMES = 3
"""The first also loads code; the median of three does not."""

ROW, GATHER = SHAPES = ("one after another", "in one gather")


def measure(folder: Path, scale: Scale, server: Server | None) -> list[Verdict]:
    verdicts: list[Verdict] = []
    url = place(folder, "replay", server)
    for shape in SHAPES:
        result_of(module("bench.limits.replay", "run", url, shape, scale.replayed), timeout_s=300)
        seconds = result_of(module("bench.limits.replay", "replay", url, shape, scale.replayed), timeout_s=300)
        verdicts.append(
            Verdict(
                f"replay of {scale.replayed:,} activities {shape}",
                f"under {TARGET_S} s",
                f"{seconds:.2f} s",
                seconds < TARGET_S,
            )
        )
    return verdicts


async def _run(url: str, shape: str, activities: int) -> bool:
    async with outlast.connect(url) as client:
        async with client.worker(*HOSTED):
            if shape == ROW:
                await client.execute(chain, activities, id=shape)
            else:
                await client.execute(fan_out, activities, id=shape)
    return True


async def _replay(url: str, shape: str, activities: int) -> float:
    async with outlast.connect(url) as client:
        handle = await client.handle(shape)
        rows = await client.service.store.history(RunId(handle.run_id))
    user_code = UserCode(Registry(*HOSTED), (DEFAULT_QUEUE,), SystemClock(), SystemEntropy())
    try:
        return statistics.median(_replay_once(user_code, handle.run_id, rows, activities) for _ in range(TIMES))
    finally:
        user_code.close()


def _replay_once(user_code: UserCode, run_id: str, rows: list[JournalRow], activities: int) -> float:
    began = time.perf_counter()
    history = [
        HistoryEvent(row.first_event + index, row.at_us, event)
        for row in rows
        for index, event in enumerate(decode_events(row.events))
    ]
    started = history[0].event
    assert isinstance(started, WorkflowExecutionStarted)
    program = user_code.program(started, RunId(run_id), DEFAULT_NAMESPACE, history[0].at_us)
    state = RunState(RunId(run_id))
    replay(state, program, history)
    seconds = time.perf_counter() - began
    program.close()
    # Started, scheduled and completed per activity, completed.
    if state.next_event != 2 * activities + 3:
        raise AssertionError(f"{state.next_event - 1} events were replayed, expected {2 * activities + 2}")
    return seconds


if __name__ == "__main__":
    what, url, shape, activities = sys.argv[1:]
    print(json.dumps(asyncio.run((_run if what == "run" else _replay)(url, shape, int(activities)))))
