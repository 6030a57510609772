"""Code that keeps the event loop to itself is interrupted, or its process ends; all others go on, in real processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import blocked_app as app
import pytest

import outlast
from outlast import Handle
from outlast.model.events import ActivityAttemptFailed, ActivityAttemptLost
from outlast.runtime.watchdog import EXIT_STATUS
from processes import Supervised, WorkerProcess, lines_of, results_of, until, until_true

APP = Path(__file__).with_name("blocked_app.py")


class Blocked(WorkerProcess):
    def __init__(self, folder: Path, interrupt_s: float = 0.4, *, wait: bool = True) -> None:
        url = f"sqlite:///{folder}/b.db"
        super().__init__(APP, url, str(folder / "marks"), str(interrupt_s), wait=wait, log=folder / "log")


async def kinds_of(handle: Handle[Any]) -> list[type]:
    return [type(each.event) for each in await handle.history()]


async def test_an_async_activity_that_spins_is_interrupted_and_its_policy_ends_it(tmp_path: Path) -> None:
    async with outlast.connect(f"sqlite:///{tmp_path}/b.db") as client:
        worker = Blocked(tmp_path)
        bystanders = [await client.start(app.count, 20) for _ in range(20)]
        blocked = await client.start(app.calls, "spin")
        (result,) = await results_of([blocked])
        assert result.startswith("timeout: it blocked the event loop for over 0.4 s at ")
        assert "blocked_app.py" in result
        assert "in spin" in result
        assert await results_of(bystanders) == [20] * 20
        assert worker.end() == 0, "the process has lived through it"
        assert (tmp_path / "marks").read_text().splitlines() == ["spin 1", "spin 2"]
        assert (await kinds_of(blocked)).count(ActivityAttemptFailed) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGURG"), reason="there is no such signal here")
async def test_a_sleep_in_c_is_interrupted_on_the_main_thread(tmp_path: Path) -> None:
    async with outlast.connect(f"sqlite:///{tmp_path}/b.db") as client:
        worker = Blocked(tmp_path)
        bystanders = [await client.start(app.count, 20) for _ in range(20)]
        (result,) = await results_of([await client.start(app.calls, "sleep_in_c")])
        assert result.startswith("timeout: it blocked the event loop")
        assert await results_of(bystanders) == [20] * 20
        assert worker.end() == 0
        assert lines_of(tmp_path / "marks") == 2


@pytest.mark.parametrize("workflow", [app.spins, app.spins_plainly], ids=["async", "plain"])
async def test_a_workflow_that_spins_is_parked_and_others_go_on(tmp_path: Path, workflow: Any) -> None:
    async with outlast.connect(f"sqlite:///{tmp_path}/b.db") as client:
        worker = Blocked(tmp_path)
        bystanders = [await client.start(app.count, 20) for _ in range(20)]
        blocked = await client.start(workflow)

        async def is_parked() -> bool:
            return (await blocked.describe()).row.error is not None

        await until_true(is_parked)
        error = (await blocked.describe()).row.error or ""
        assert "LoopBlocked: blocked the event loop for over 0.4 s" in error
        assert f"in {workflow.name}" in error
        assert await results_of(bystanders) == [20] * 20
        await blocked.terminate()
        with pytest.raises(outlast.WorkflowTerminated):
            await results_of([blocked])
        assert worker.end() == 0


@pytest.mark.parametrize(
    ("name", "on_thread"),
    [("swallow", False), ("sleep_in_c", True), ("spin_beside_itself", False)],
    ids=["swallows every exception", "C code on another thread", "a task beside"],
)
async def test_what_cannot_be_interrupted_ends_its_process_and_then_by_its_policy(
    tmp_path: Path, name: str, on_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_thread:
        monkeypatch.setenv("LOOP_THREAD", "1")
    async with outlast.connect(f"sqlite:///{tmp_path}/b.db") as client:
        workers = Supervised(lambda: Blocked(tmp_path, wait=False))
        bystanders = [await client.start(app.count, 20) for _ in range(20)]
        blocked = await client.start(app.calls, name)
        (result,) = await results_of([blocked])
        assert result.startswith("lost: ")
        assert await results_of(bystanders) == [20] * 20
        await workers.end()
        assert workers.deaths == 2
        assert (tmp_path / "marks").read_text().splitlines() == [f"{name} 1", f"{name} 2"]
        assert (await kinds_of(blocked)).count(ActivityAttemptLost) == 1
        said = (tmp_path / "log").read_text()
        assert f"activity {name} of calls/{blocked.id} has blocked the event loop" in said
        assert "cannot be interrupted. This process ends now" in said


async def test_a_process_that_ends_itself_says_so_by_its_status(tmp_path: Path) -> None:
    async with outlast.connect(f"sqlite:///{tmp_path}/b.db") as client:
        worker = Blocked(tmp_path)
        await client.start(app.calls, "swallow")
        await until(lambda: not worker.is_alive())
        assert worker.wait() == EXIT_STATUS


@pytest.mark.slow
async def test_with_the_limits_that_users_have_it_ends_before_others_take_over(tmp_path: Path) -> None:
    """The other worker finds the process gone; it never has to declare a living one dead."""
    async with outlast.connect(f"sqlite:///{tmp_path}/b.db") as client:
        first = WorkerProcess(APP, f"sqlite:///{tmp_path}/b.db", str(tmp_path / "marks"), log=tmp_path / "log1")
        blocked = await client.start(app.calls, "swallow")
        await until(lambda: lines_of(tmp_path / "marks") == 1)
        second = WorkerProcess(APP, f"sqlite:///{tmp_path}/b.db", str(tmp_path / "marks"), log=tmp_path / "log2")
        await until(lambda: lines_of(tmp_path / "marks") == 2)
        assert first.wait() == EXIT_STATUS
        assert "its process has ended" in (tmp_path / "log2").read_text()
        assert "no sign of life" not in (tmp_path / "log2").read_text()
        assert second.wait() == EXIT_STATUS
        third = WorkerProcess(APP, f"sqlite:///{tmp_path}/b.db", str(tmp_path / "marks"), log=tmp_path / "log3")
        ((result,)) = await results_of([blocked])
        assert result.startswith("lost: ")
        assert third.end() == 0
