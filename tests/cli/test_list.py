"""`outlast list`: what a reader sees of many runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.recording import COMMAND, Call, Recorder
from outlast.cli import listing
from outlast.model.events import (
    TimerStarted,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionStarted,
)
from outlast.model.failures import Failure
from outlast.model.ids import TimerId, WorkflowId
from outlast.model.payloads import NULL
from outlast.store.api import RunStatus


def started(workflow: str, id_: str) -> WorkflowExecutionStarted:
    return WorkflowExecutionStarted(workflow, WorkflowId(id_), "default")


@pytest.fixture
def runs(recorder: Recorder) -> Recorder:
    """Five runs; their run ids sort by letter, so `a` is the oldest."""
    recorder.run("a", "08:00:00", started("order", "a"))
    recorder.turn("a", "08:00:00", WorkflowExecutionCompleted(NULL), status=RunStatus.COMPLETED)
    recorder.run("b", "08:00:01", started("order", "b"))
    failure = Failure("shop:CardRefused", "no funds")
    recorder.turn("b", "09:30:01", WorkflowExecutionFailed(failure), status=RunStatus.FAILED)
    recorder.run("c", "08:00:02", started("order", "c"), TimerStarted(TimerId("1"), 1, 2, "wait-for-warehouse"))
    recorder.run("d", "08:00:03", started("refund", "d"))
    recorder.release("d", "08:00:04", "08:01:00", "NondeterminismError: this is not\n  what was recorded")
    return recorder


def without_duration(out: str) -> list[str]:
    return [line[: line.index("Z") + 1] if "Z" in line else line for line in out.splitlines()]


def test_runs_are_listed_newest_first_with_where_they_stand(outlast: Call, runs: Recorder) -> None:
    status, out, err = outlast("list")

    assert (status, err) == (0, "")
    assert without_duration(out) == [
        "WORKFLOW  ID  STATUS     STEP OR ERROR                                     STARTED               DURATION",
        "refund    d   Running    NondeterminismError: this is not what was recor…  2026-06-15T08:00:03Z",
        "order     c   Running    wait-for-warehouse                                2026-06-15T08:00:02Z",
        "order     b   Failed     CardRefused: no funds                             2026-06-15T08:00:01Z",
        "order     a   Completed                                                    2026-06-15T08:00:00Z",
    ]
    assert [line.split("Z")[1].strip() for line in out.splitlines()[3:]] == ["1h30m", "0s"]


def test_filters_choose_by_status_and_workflow(outlast: Call, runs: Recorder) -> None:
    def ids(*options: str) -> list[str]:
        return [entry["workflow_id"] for entry in json.loads(outlast("list", "-o", "json", *options).out)]

    assert ids("--status", "Running") == ["d", "c"]
    assert ids("--status", "failed") == ["b"]
    assert ids("--status", "terminated") == []
    assert ids("--workflow", "refund") == ["d"]
    assert ids("--workflow", "order", "--status", "completed") == ["a"]


def test_a_limit_says_that_there_are_more(outlast: Call, runs: Recorder) -> None:
    _, out, err = outlast("list", "--limit", "2")

    assert len(out.splitlines()) == 3
    assert err == "outlast: the 2 newest are shown; --limit N shows more\n"
    assert outlast("list", "--limit", "4").err == ""


def test_json_has_everything_for_programs(outlast: Call, runs: Recorder) -> None:
    entries = json.loads(outlast("list", "-o", "json").out)

    assert entries[2] == {
        "workflow": "order",
        "workflow_id": "b",
        "run_id": "run-of-b",
        "status": "failed",
        "step": None,
        "error": "CardRefused: no funds",
        "queue": "default",
        "started_at": "2026-06-15T08:00:01.000000Z",
        "closed_at": "2026-06-15T09:30:01.000000Z",
        "duration_us": 5_400_000_000,
        "events": 2,
    }


def test_long_histories_cost_a_list_no_more_than_its_budget(
    outlast: Call, runs: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "EVENTS_READ", 2)

    entries = json.loads(outlast("list", "-o", "json", "--workflow", "order").out)

    assert [entry["step"] for entry in entries] == [None, None, None]
    assert [entry["workflow_id"] for entry in entries] == ["c", "b", "a"]


def test_no_runs_is_said_and_is_no_error(outlast: Call, recorder: Recorder) -> None:
    assert outlast("list") == (0, "", "outlast: no runs\n")
    assert outlast("list", "--status", "failed") == (0, "", "outlast: no such runs\n")
    assert outlast("list", "-o", "json").out == "[]\n"


def test_a_list_imports_nothing_that_it_does_not_need(tmp_path: Path, recorder: Recorder) -> None:
    """What takes long to import decides how fast it answers."""
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"click", "asyncio", "outlast.cli.showing", "outlast.store.sqlite"} <= imported
    unneeded = {"rich", "pydantic", "outlast.sdk.handle", "outlast.runtime.messages"}
    unneeded |= {f"outlast.cli.{name}" for name in ("running", "working", "demo", "messaging", "tailing")}
    assert not unneeded & imported
