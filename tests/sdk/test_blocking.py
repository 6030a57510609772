"""Blocking ways in: outlast.run, and the client for Flask, Django and scripts."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import outlast
from outlast import Retry, activity, workflow


@activity
def add(a: int, b: int) -> int:
    return a + b


@activity(retry=Retry.never())
def refuse() -> None:
    raise LookupError("nothing there")


@workflow
def total(numbers: list[int]) -> int:
    result = 0
    for number in numbers:
        result = add(result, number)
    return result


@workflow
def refused() -> None:
    refuse()


@workflow(name="total")
def not_total() -> int:
    return 1


@workflow
class Approval:
    def __init__(self) -> None:
        self.decision = ""
        self.remarks: list[int] = []

    @workflow.run
    def run(self) -> str:
        workflow.wait(lambda: self.decision)
        return self.decision

    @workflow.signal
    def decide(self, decision: str) -> None:
        self.decision += decision

    @workflow.signal
    def remark(self, number: int) -> None:
        self.remarks.append(number)

    @workflow.query
    def status(self, first: int = 0) -> list[int]:
        return self.remarks[first:]

    @workflow.update
    def amend(self, number: int) -> int:
        self.remarks.append(add(number, 0))
        return len(self.remarks)

    @amend.validator
    def check(self, number: int) -> None:
        if number < 0:
            raise LookupError("a negative number")

    @workflow.update
    def stall(self) -> None:
        workflow.wait(lambda: self.decision)


def test_run_returns_the_result_and_again_the_recorded_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    assert outlast.run(total, [1, 2, 3], url=url, id="t") == 6
    assert capsys.readouterr().err == ""
    assert outlast.run(total, [7], url=url, id="t") == 6
    assert "already finished: total/t" in capsys.readouterr().err


def test_run_raises_what_the_workflow_raised(tmp_path: Path) -> None:
    with pytest.raises(outlast.WorkflowFailed, match="nothing there") as caught:
        outlast.run(refused, url=f"sqlite:///{tmp_path}/a.db")
    assert isinstance(caught.value.__cause__, LookupError)


def test_run_with_an_argument_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(outlast.PayloadError, match="numbers"):
        outlast.run(total, ["x"], url=url, id="t")  # type: ignore[list-item]
    with outlast.connect_blocking(url) as client:
        assert client.runs() == []


def test_run_refuses_an_event_loop() -> None:
    async def main() -> None:
        outlast.run(total, [1])

    with pytest.raises(outlast.DurableCallError, match=r"async with outlast\.connect"):
        asyncio.run(main())


def test_the_blocking_client_is_safe_from_several_threads(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    results: dict[int, int] = {}
    with outlast.connect_blocking(url) as client, client.worker(total, add):

        def work(n: int) -> None:
            results[n] = client.execute(total, [n, n], id=f"run-{n}")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results == {n: 2 * n for n in range(8)}
        assert {row.status for row in client.runs()} == {"completed"}
        assert client.handle("run-3").describe().row.workflow == "total"
        assert [each.position for each in client.handle("run-3").history()][:2] == [1, 2]


def test_a_blocking_handle_can_be_asked_to_wait_only_so_long(tmp_path: Path) -> None:
    with outlast.connect_blocking(f"sqlite:///{tmp_path}/a.db") as client:
        handle = client.start(total, [1], id="nobody hosts it")
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.01)
        with pytest.raises(outlast.AlreadyStarted) as caught:
            client.start(total, [1], id="nobody hosts it")
        assert caught.value.run_id == handle.run_id
        handle.terminate("enough")


def test_blocking_code_tells_asks_and_changes_a_run(tmp_path: Path) -> None:
    with outlast.connect_blocking(f"sqlite:///{tmp_path}/a.db") as client, client.worker(Approval, add):
        handle = client.start(Approval, id="a")
        assert handle.update(Approval.amend, 7) == 1
        assert handle.update("amend", number=8) == 2
        assert handle.query(Approval.status, first=1) == handle.query("status", 1) == [8]
        with pytest.raises(LookupError, match="a negative number"):
            handle.update(Approval.amend, -1)
        with pytest.raises(LookupError, match="a negative number"):
            handle.start_update(Approval.amend, -1)
        with pytest.raises(outlast.PayloadError, match="number"):
            handle.update("amend", "x")
        again = client.handle("a", Approval)
        for _ in range(2):
            again.with_id("r-1").signal(Approval.remark, 9)
        handle.signal(Approval.decide, "yes")
        assert handle.result(timeout=30) == "yes"
        assert again.query(Approval.status) == [7, 8, 9]
        with pytest.raises(outlast.RunClosed):
            handle.signal(Approval.decide, "no")


def test_a_blocking_update_is_accepted_and_then_waited_for(tmp_path: Path) -> None:
    with outlast.connect_blocking(f"sqlite:///{tmp_path}/a.db") as client, client.worker(Approval, add):
        handle = client.start(Approval, id="a")
        stalled = handle.with_id("u-1").start_update(Approval.stall)
        assert (stalled.id, stalled.handle.run_id) == ("u-1", handle.run_id)
        with pytest.raises(TimeoutError):
            stalled.result(timeout=0.01)
        with pytest.raises(TimeoutError):
            handle.with_timeout(0.01).with_id("u-1").update(Approval.stall)
        handle.update(Approval.amend, 1)
        handle.signal(Approval.decide, "yes")
        assert handle.result(timeout=30) == "yes"
        ends = [each.event for each in handle.history() if type(each.event).__name__.endswith("UpdateAccepted")]
        assert len(ends) == 2


def test_a_question_to_a_run_that_nobody_hosts_raises_in_time(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with outlast.connect_blocking(url) as client:
        client.start(Approval, id="a")
        with pytest.raises(TimeoutError):
            client.handle("a").with_timeout(0.01).query("status")
        assert client.handle("a", Approval).query(Approval.status) == []  # rebuilt here


def test_blocking_code_sends_with_a_start(tmp_path: Path) -> None:
    with outlast.connect_blocking(f"sqlite:///{tmp_path}/a.db") as client, client.worker(Approval, add):
        first = client.update_with_start(Approval, id="a", update=Approval.amend.call(3))
        second = client.update_with_start(Approval, id="a", update=Approval.amend.call(number=4))
        assert (first.result(timeout=30), second.result(timeout=30)) == (1, 2)
        assert first.handle.run_id == second.handle.run_id
        decided = client.signal_with_start(Approval, id="a", signal=Approval.decide.call("yes"))
        assert decided.run_id == first.handle.run_id
        assert decided.result(timeout=30) == "yes"
        new = client.signal_with_start(Approval, id="a", signal=Approval.decide.call("no"))
        assert new.run_id != decided.run_id
        assert new.result(timeout=30) == "no"
