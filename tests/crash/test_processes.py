"""Several real processes on one SQLite file: what one leaves behind, another takes up; what kills one ends."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import app
import pytest
from test_kill import App, check_run

import outlast
from outlast import Handle
from outlast.engine.invariants import check_history
from outlast.model.events import ActivityAttemptLost
from processes import PATIENCE_S, Supervised, lines_of, results_of, until


async def losses_of(handle: Handle[Any]) -> list[tuple[int, str]]:
    history = await handle.history()
    check_history(history)
    return [(each.at_us, each.event.reason) for each in history if isinstance(each.event, ActivityAttemptLost)]


def supervised(url: str, marks: Path) -> Supervised:
    return Supervised(lambda: App(url, marks, wait=False))  # it may be dead before it is ready


async def test_a_killed_worker_s_runs_go_on_in_the_other_without_waiting_for_its_lease(tmp_path: Path) -> None:
    url, marks = f"sqlite:///{tmp_path}/k.db", tmp_path / "marks"
    async with outlast.connect(url) as client:
        first = App(url, marks)
        handles = [await client.start(app.lingering, 3_600.0) for _ in range(10)]
        await until(lambda: lines_of(marks) == 10)
        second = App(url, marks)
        killed_us = time.time_ns() // 1_000
        first.kill()
        assert await results_of(handles) == ["done"] * 10
        assert second.end() == 0
        for handle in handles:
            ((lost_us, _),) = await losses_of(handle)
            assert lost_us - killed_us < 8_000_000, "noticed by its lock, not by its lease of 10 s"


async def test_a_worker_that_is_stopped_hands_over(tmp_path: Path) -> None:
    url, marks = f"sqlite:///{tmp_path}/k.db", tmp_path / "marks"
    async with outlast.connect(url) as client:
        first = App(url, marks)
        handles = [await client.start(app.lingering, 3_600.0) for _ in range(10)]
        await until(lambda: lines_of(marks) == 10)
        second = App(url, marks)
        assert first.end() == 0
        assert await results_of(handles) == ["done"] * 10
        assert second.end() == 0
        for handle in handles:
            assert [reason for _, reason in await losses_of(handle)] == ["its worker was stopped"]
        assert lines_of(marks) == 20


async def test_an_activity_that_kills_its_process_every_time_ends_by_its_policy(tmp_path: Path) -> None:
    url, marks = f"sqlite:///{tmp_path}/k.db", tmp_path / "marks"
    async with outlast.connect(url) as client:
        workers = supervised(url, marks)
        bystanders = [await client.start(app.chain, 8) for _ in range(20)]
        doomed = await client.start(app.doomed, id="doomed")
        assert await results_of([doomed]) == ["lost"]
        assert await results_of(bystanders) == [10] * 20
        await workers.end()
        assert workers.deaths == 3, "one for each attempt"
        lines = [line for line in marks.read_text().splitlines() if line.startswith(doomed.run_id)]
        assert [line.split()[1] for line in lines] == ["1", "2", "3"]
        assert len(await losses_of(doomed)) == 2


async def test_a_workflow_whose_code_kills_its_process_is_put_into_quarantine(tmp_path: Path) -> None:
    url, marks = f"sqlite:///{tmp_path}/k.db", tmp_path / "marks"
    async with outlast.connect(url) as client:
        deadly = await client.start(app.deadly, id="deadly")
        workers = supervised(url, marks)
        bystanders = [await client.start(app.chain, 8) for _ in range(4)]
        assert await results_of(bystanders) == [10] * 4
        async with asyncio.timeout(PATIENCE_S):
            while (await deadly.describe()).row.error is None:
                await asyncio.sleep(0.05)
        row = (await deadly.describe()).row
        assert row.error is not None
        assert "died before it made progress" in row.error
        late = [await client.start(app.chain, 3) for _ in range(5)]
        assert await results_of(late) == [5] * 5, "they are not taken down for ever"
        await workers.end()
        assert 3 <= workers.deaths <= 12


@pytest.mark.parametrize("runs", [200])
async def test_two_workers_and_a_starter_share_two_hundred_runs(tmp_path: Path, runs: int) -> None:
    url, marks = f"sqlite:///{tmp_path}/k.db", tmp_path / "marks"
    async with outlast.connect(url) as client:
        workers = [App(url, marks), App(url, marks)]
        handles = list(await asyncio.gather(*(client.start(app.chain, 8, id=f"run-{n}") for n in range(runs))))
        assert await results_of(handles) == [10] * runs
        assert [worker.end() for worker in workers] == [0, 0]
        lines = marks.read_text().splitlines()
        assert len(set(lines)) == len(lines) == runs * 11, "nothing ran twice, nobody having died"
        executed = Counter(line.rsplit(" ", 1)[0] for line in lines)
        for handle in handles:
            await check_run(handle, executed)
