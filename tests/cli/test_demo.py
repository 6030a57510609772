"""`outlast demo` does what it tells."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.recording import Call
from outlast.cli import demo


def test_the_customer_is_charged_once_though_the_worker_is_killed(
    start: Callable[..., subprocess.Popen[str]], outlast: Call
) -> None:
    done = start("demo", "--keep")
    out, err = done.communicate()

    assert done.returncode == 0, err
    pids = re.findall(r"as process (\d+)", out)
    assert len(set(pids)) == 2
    assert f"kill -9 {pids[0]}" in out
    killed, resumed = (part.split("4.")[-1] for part in out.split("3. A new worker"))
    assert "Status: Running (step: wait-for-warehouse)" in killed
    assert f"/{pids[0]}) has ended" in killed
    assert "Status: Completed" in resumed
    for activity in ("charge_payment", "ship_order", "send_confirmation"):
        assert out.count(f"\n   {activity} ") == 1
    assert out.endswith("The customer was charged once.\n")
    url = err.split("--db ")[1].strip()
    assert "Status: Completed" in outlast("show", "order-123", "--db", url).out
    remove(url)


def remove(url: str) -> None:
    folder = Path(url.removeprefix("sqlite:///")).parent
    assert folder.name.startswith("outlast-demo-")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_a_worker_that_does_not_start_is_reported_with_its_log(
    outlast: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/false")

    status, _, err = outlast("demo")

    assert status == 1
    assert "the worker should charge the payment, but it ended with status 1. Its log:" in err
    assert list(tmp_path.iterdir()) == []
