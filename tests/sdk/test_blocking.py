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
