"""kill -9, for real: a worker process is killed again and again, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

import outlast
from outlast.model.events import ActivityAttemptLost, ActivityCompleted, WorkflowExecutionCompleted
from processes import WorkerProcess, lines_of

APP = Path(__file__).with_name("app.py")


class App(WorkerProcess):
    """A worker process of `app.py`."""

    def __init__(self, url: str, marks: Path, *, wait: bool = True) -> None:
        super().__init__(APP, url, str(marks), wait=wait)


async def killed_again_and_again(folder: Path, runs: int, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    url, marks = f"sqlite:///{folder}/k.db", folder / "marks"
    import app  # the workflow's declaration; hosted by the other process only

    total = runs * (8 + 3)
    async with outlast.connect(url) as client:
        handles = [await client.start(app.chain, 8, id=f"run-{n}") for n in range(runs)]
        for number in range(kills):
            worker = App(url, marks)
            # By progress and not by time, so that every machine kills in the middle.
            goal = min(total - 1, lines_of(marks) + rng.randrange(1, total // kills))
            while lines_of(marks) < goal:
                await asyncio.sleep(0.001)
            worker.kill()
            assert lines_of(marks) > 0, number
        worker = App(url, marks)
        results = await asyncio.gather(*(handle.result() for handle in handles))
        assert worker.end() == 0
        assert results == [10] * runs
        executed = Counter(line.rsplit(" ", 1)[0] for line in marks.read_text().splitlines())
        distinct = set(marks.read_text().splitlines())
        assert len(distinct) == sum(executed.values()), "an attempt ran twice"
        for handle in handles:
            await check_run(handle, executed)


async def check_run(handle: outlast.Handle[int], executed: Counter[str]) -> None:
    history = await handle.history()
    assert [each.position for each in history] == list(range(1, len(history) + 1))
    assert isinstance(history[-1].event, WorkflowExecutionCompleted)
    completed = [each.event for each in history if isinstance(each.event, ActivityCompleted)]
    lost = Counter(each.event.activity_id for each in history if isinstance(each.event, ActivityAttemptLost))
    assert len({each.activity_id for each in completed}) == len(completed) == 11
    for event in completed:
        # An attempt that was lost may not have begun; one that is recorded ran exactly once.
        assert event.attempt == lost[event.activity_id] + 1
        assert 1 <= executed[f"{handle.run_id}/{event.activity_id}"] <= event.attempt


async def test_killed_in_the_middle_nothing_is_lost_and_no_attempt_runs_twice(tmp_path: Path) -> None:
    await killed_again_and_again(tmp_path, runs=40, kills=4, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_killed_many_times(tmp_path: Path, seed: int) -> None:
    await killed_again_and_again(tmp_path, runs=150, kills=12, seed=seed)
