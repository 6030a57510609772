"""`outlast show`: what a reader sees of a run."""

from __future__ import annotations

import pytest

from cli.recording import Call, Recorder, at_us
from outlast.model.events import (
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    TimerFired,
    TimerStarted,
    WaitStarted,
    WorkflowExecutionCancelled,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionStarted,
    WorkflowExecutionTerminated,
)
from outlast.model.failures import Failure
from outlast.model.ids import ActivityId, MessageId, RunId, TimerId, WaitId, WorkflowId
from outlast.model.inputs import CancelRequested, encode_message
from outlast.model.payloads import NULL, Payload
from outlast.store.api import NewMail, RunStatus

STARTED = WorkflowExecutionStarted("fulfil_order", WorkflowId("order-123"), "default")
RULE = "─" * 37


def order_that_waits(recorder: Recorder) -> None:
    payment = Payload.from_json(b'{"payment_id":"pay_xyz"}')
    recorder.run("order-123", "08:23:11", STARTED)
    recorder.turn("order-123", "08:23:12", ActivityScheduled(ActivityId("1"), "charge_payment"))
    recorder.turn(
        "order-123",
        "08:23:13",
        ActivityCompleted(ActivityId("1"), at_us("08:23:12"), payment),
        TimerStarted(TimerId("2"), 7_200_000_000, at_us("10:23:13"), "wait-for-warehouse"),
    )


HISTORY = """\
[08:23:11] WorkflowExecutionStarted
[08:23:12] ActivityScheduled: charge_payment
[08:23:12] ActivityStarted: charge_payment
[08:23:13] ActivityCompleted: charge_payment → {"payment_id": "pay_xyz"}
[08:23:13] TimerStarted: wait-for-warehouse 2h (fires at 10:23:13)
"""


def test_a_run_under_way_reads_as_documented(outlast: Call, recorder: Recorder) -> None:
    order_that_waits(recorder)

    assert outlast("show", "order-123") == (
        0,
        "Workflow: fulfil_order/order-123\n"
        "Status: Running (step: wait-for-warehouse)\n"
        "Started: 2026-06-15T08:23:11Z\n"
        f"{RULE}\n{HISTORY}",
        "",
    )


def test_a_completed_run_says_when_and_after_what_time(outlast: Call, recorder: Recorder) -> None:
    order_that_waits(recorder)
    recorder.turn("order-123", "10:23:14", TimerFired(TimerId("2")))
    recorder.turn("order-123", "2026-06-16 00:00:01", WorkflowExecutionCompleted(NULL), status=RunStatus.COMPLETED)

    assert outlast("show", "order-123") == (
        0,
        "Workflow: fulfil_order/order-123\n"
        "Status: Completed\n"
        "Started: 2026-06-15T08:23:11Z\n"
        "Ended: 2026-06-16T00:00:01Z (after 15h36m50s)\n"
        f"{RULE}\n{HISTORY}"
        "[10:23:14] TimerFired: wait-for-warehouse\n"
        "[2026-06-16 00:00:01] WorkflowExecutionCompleted: → null\n",
        "",
    )


def test_a_failed_run_shows_the_failure_with_its_causes(outlast: Call, recorder: Recorder) -> None:
    refused = Failure("shop:CardRefused", "no funds", traceback='  File "/shop/pay.py", line 12, in charge\n')
    recorder.run("order-123", "08:23:11", STARTED, ActivityScheduled(ActivityId("1"), "charge_payment"))
    recorder.turn(
        "order-123",
        "08:23:12",
        ActivityFailed(ActivityId("1"), refused),
        WorkflowExecutionFailed(Failure("shop:OrderFailed", "cannot charge", cause=refused)),
        status=RunStatus.FAILED,
    )

    status, out, err = outlast("show", "order-123")

    assert (status, err) == (0, "")
    assert out.splitlines()[1] == "Status: Failed"
    assert out.splitlines()[-4:] == [
        "[08:23:12] WorkflowExecutionFailed: OrderFailed: cannot charge",
        RULE,
        "OrderFailed: cannot charge",
        "  caused by CardRefused: no funds (at /shop/pay.py:12 in charge)",
    ]


def test_cancelled_and_terminated_runs_say_so(outlast: Call, recorder: Recorder) -> None:
    recorder.run("order-123", "08:23:11", STARTED, WorkflowExecutionCancelRequested(MessageId("m"), "too late"))
    recorder.turn("order-123", "08:23:12", WorkflowExecutionCancelled("too late"), status=RunStatus.CANCELLED)
    recorder.run("order-7", "08:23:11", STARTED)
    ended = WorkflowExecutionTerminated(MessageId("m"), "by hand")
    recorder.turn("order-7", "08:23:12", ended, status=RunStatus.TERMINATED)

    assert "Status: Cancelled\n" in outlast("show", "order-123").out
    out = outlast("show", "order-7").out
    assert "Status: Terminated\n" in out
    assert out.endswith("WorkflowExecutionTerminated: by hand\n")


def test_a_parked_run_shows_its_error_and_when_it_is_tried_again(outlast: Call, recorder: Recorder) -> None:
    order_that_waits(recorder)
    error = "NondeterminismError: event 2 differs\n  recorded: charge_payment\n  now: ship_order"
    recorder.release("order-123", "08:24:00", "08:24:30", error)

    assert outlast("show", "order-123").out == (
        "Workflow: fulfil_order/order-123\n"
        "Status: Running (parked: its last turn failed)\n"
        "Started: 2026-06-15T08:23:11Z\n"
        "Error: NondeterminismError: event 2 differs\n"
        "  recorded: charge_payment\n"
        "  now: ship_order\n"
        "Tried again: at 2026-06-15T08:24:30Z, and when a worker is started\n"
        f"{RULE}\n{HISTORY}"
    )


def waiting(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(("Waiting:", "Message:"))]


def test_a_run_that_nobody_has_taken_says_what_it_waits_for(outlast: Call, recorder: Recorder) -> None:
    recorder.run("order-123", "08:23:11", STARTED, owner=None, wake_at_us=at_us("08:23:11"))

    assert waiting(outlast("show", "order-123").out) == [
        "Waiting: for a worker that hosts fulfil_order on queue default"
    ]


def test_a_run_whose_worker_has_ended_says_so(outlast: Call, recorder: Recorder) -> None:
    order_that_waits(recorder)
    recorder.do(recorder.store.declare_dead(recorder.node))

    assert waiting(outlast("show", "order-123").out) == [
        "Waiting: for a worker that hosts fulfil_order on queue default; the one that had it (shop/77) has ended"
    ]


@pytest.mark.parametrize(
    ("wake_at", "due"),
    [("2999-06-15 10:23:13", "at 2999-06-15T10:23:13Z"), (None, "when it gets a message")],
)
def test_a_run_that_sleeps_asks_for_a_worker_only_if_there_is_none(
    outlast: Call, recorder: Recorder, wake_at: str | None, due: str
) -> None:
    order_that_waits(recorder)
    recorder.release("order-123", "08:24:00", wake_at)

    assert waiting(outlast("show", "order-123").out) == []

    recorder.do(recorder.store.declare_dead(recorder.node))
    assert waiting(outlast("show", "order-123").out) == [
        f"Waiting: for a worker that hosts fulfil_order on queue default; none is running, and it has to go on {due}"
    ]


def test_a_message_that_nobody_has_taken_is_shown(outlast: Call, recorder: Recorder) -> None:
    order_that_waits(recorder)
    recorder.release("order-123", "08:24:00", "2999-06-15 10:23:13")
    body = encode_message(CancelRequested(MessageId("m")))
    recorder.do(recorder.store.send([NewMail(RunId("run-of-order-123"), MessageId("m"), at_us("08:25:00"), body)]))

    assert waiting(outlast("show", "order-123").out) == [
        "Waiting: for a worker that hosts fulfil_order on queue default",
        "Message: CancelRequested (not yet taken)",
    ]


def test_a_wait_with_a_name_is_the_step(outlast: Call, recorder: Recorder) -> None:
    recorder.run("order-123", "08:23:11", STARTED, WaitStarted(WaitId("1"), "approval"))

    assert "Status: Running (step: approval)\n" in outlast("show", "order-123").out


def test_an_older_run_of_the_same_workflow_id_is_found_by_its_run_id(outlast: Call, recorder: Recorder) -> None:
    order_that_waits(recorder)

    assert outlast("show", "run-of-order-123") == outlast("show", "order-123")


def test_an_unknown_id_names_ids_like_it(outlast: Call, recorder: Recorder) -> None:
    order_that_waits(recorder)

    for command in ("show", "history"):
        assert outlast(command, "order-132") == (
            2,
            "",
            "outlast: error: there is no run with the id 'order-132' in sqlite:///outlast.db; ids like it: order-123\n",
        )
    assert outlast("show", "zzz").err == (
        "outlast: error: there is no run with the id 'zzz' in sqlite:///outlast.db; "
        "`outlast list` shows what there is\n"
    )
