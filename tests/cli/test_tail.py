"""`outlast tail`: a history as it grows."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from cli.recording import Call, Recorder, at_us
from outlast.model.events import (
    ActivityCompleted,
    ActivityScheduled,
    TimerFired,
    TimerStarted,
    WorkflowExecutionCompleted,
    WorkflowExecutionStarted,
)
from outlast.model.ids import ActivityId, TimerId, WorkflowId
from outlast.model.payloads import NULL
from outlast.store.api import RunStatus

STARTED = WorkflowExecutionStarted("order", WorkflowId("order-1"), "default")
Start = Callable[..., subprocess.Popen[str]]


def begin(recorder: Recorder) -> None:
    recorder.run("order-1", "08:00:00", STARTED, ActivityScheduled(ActivityId("1"), "charge"))


def middle(recorder: Recorder) -> None:
    recorder.turn(
        "order-1",
        "08:00:03",
        ActivityCompleted(ActivityId("1"), at_us("08:00:02"), NULL),
        TimerStarted(TimerId("2"), 5_000_000, at_us("08:00:08"), "wait"),
    )


def end(recorder: Recorder) -> None:
    recorder.turn(
        "order-1", "08:00:08", TimerFired(TimerId("2")), WorkflowExecutionCompleted(NULL), status=RunStatus.COMPLETED
    )


BEGINNING = ["[08:00:00] WorkflowExecutionStarted", "[08:00:00] ActivityScheduled: charge"]
MIDDLE = [
    "[08:00:02] ActivityStarted: charge",
    "[08:00:03] ActivityCompleted: charge → null",
    "[08:00:03] TimerStarted: wait 5s (fires at 08:00:08)",
]
END = ["[08:00:08] TimerFired: wait", "[08:00:08] WorkflowExecutionCompleted: → null"]


def test_a_run_that_has_ended_is_told_as_show_tells_it(outlast: Call, recorder: Recorder) -> None:
    begin(recorder)
    middle(recorder)
    end(recorder)

    status, out, err = outlast("tail", "order-1")

    assert (status, err) == (0, "")
    assert out.splitlines() == [*BEGINNING, *MIDDLE, *END]
    assert outlast("show", "order-1").out.endswith(out)
    assert outlast("tail", "run-of-order-1").out == out


def test_it_resumes_in_the_middle_and_knows_the_names(outlast: Call, recorder: Recorder) -> None:
    begin(recorder)
    middle(recorder)
    end(recorder)

    assert outlast("tail", "order-1", "--from", "3").out.splitlines() == [*MIDDLE, *END]
    assert outlast("tail", "order-1", "--from", "5").out.splitlines() == END
    assert outlast("tail", "order-1", "--from", "6").out.splitlines() == END[1:]
    assert outlast("tail", "order-1", "--from", "7") == (0, "", "")


def read(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def test_it_follows_a_run_that_another_process_drives_until_it_has_ended(start: Start, recorder: Recorder) -> None:
    begin(recorder)
    tail = start("tail", "order-1")
    assert read(tail, 2) == BEGINNING
    middle(recorder)
    assert read(tail, 3) == MIDDLE
    end(recorder)
    out, err = tail.communicate()

    assert (tail.returncode, out.splitlines(), err) == (0, END, "")


def test_interrupted_it_says_where_to_go_on(start: Start, recorder: Recorder) -> None:
    begin(recorder)
    tail = start("tail", "order-1")
    assert read(tail, 2) == BEGINNING
    tail.send_signal(signal.SIGINT)
    out, err = tail.communicate()

    assert (tail.returncode, out) == (130, "")
    assert err.split("\n") == [
        "outlast: the same command with --from 3 goes on from there",
        "",  # after the ^C of a terminal
        "outlast: interrupted",
        "",
    ]


def test_a_wrong_call_is_explained(outlast: Call, recorder: Recorder, tmp_path: Path) -> None:
    begin(recorder)
    for arguments, part in (
        (("tail", "order-7"), "ids like it: order-1"),
        (("tail", "order-1", "--from", "0"), "--from"),
        (("tail", "order-1", "--db", "sqlite:///nowhere.db"), "no such file: nowhere.db"),
    ):
        status, out, err = outlast(*arguments)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert part in err
    assert not list(tmp_path.glob("nowhere*"))
