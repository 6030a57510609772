"""The examples run as their first lines say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.recording import Call, until

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_order_fulfilment_runs_once_and_then_gives_the_recorded_receipt(outlast: Call, tmp_path: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLES / "order_fulfilment.py")]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    first, again = run(), run()

    receipt = "Receipt(order_id='order-123', payment_id='pay_order-123', tracking_number='TRACK-order-123')"
    assert [line.split(" ")[0] for line in first.stdout.splitlines()[:3]] == ["charging", "shipping", "telling"]
    assert first.stdout.splitlines()[3:] == [receipt]
    assert again.stdout.splitlines() == [receipt]
    assert "Status: Completed" in outlast("show", "order-123").out
    assert "order-123" in outlast("list").out


def test_an_approval_without_response_is_reminded_of_and_then_escalated(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "approval.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert (done.stdout.splitlines(), done.stderr) == (
        [
            "to ada: please approve expense-7, 120.00 EUR",
            "to ada: a reminder: please approve expense-7, 120.00 EUR",
            "to grace: ada does not answer; please approve expense-7, 120.00 EUR",
            "refused: bob was not asked",
            "to grace: thank you, it is recorded",
            "Decision(approved=True, by='grace')",
        ],
        "",
    )


@pytest.mark.parametrize("way", [("update", "decide"), ("signal", "mail_came")], ids=lambda way: way[0])
def test_an_approval_that_is_given_in_time_needs_no_reminder(
    outlast: Call, start: Callable[..., subprocess.Popen[str]], way: tuple[str, str]
) -> None:
    verb, name = way
    expense = '{"id": "expense-8", "amount_cents": 12000, "approver": "ada", "manager": "grace"}'
    run = start("run", f"{EXAMPLES / 'approval.py'}:Approval", expense, "--id", "expense-8")
    assert run.stdout is not None
    assert run.stdout.readline() == "to ada: please approve expense-8, 120.00 EUR\n"
    until(outlast, run, "expense-8", "TimerStarted: decision 2d (fires at ")
    assert outlast("query", "expense-8", "status").out == '"waits for ada"\n'
    assert outlast(verb, "expense-8", name, "true", '"ada"').status == 0
    out, err = run.communicate()

    assert (run.returncode, err) == (0, "")
    assert out.splitlines()[-1] == '{"approved":true,"by":"ada"}'
    assert "reminder" not in outlast("show", "expense-8").out


def test_every_example_is_run_by_a_test() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == ["approval.py", "order_fulfilment.py"]
