"""The examples run as their first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cli.recording import Call

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


def test_every_example_is_run_by_a_test() -> None:
    assert [path.name for path in EXAMPLES.glob("*.py")] == ["order_fulfilment.py"]
