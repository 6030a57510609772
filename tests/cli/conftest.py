"""Ways to call the command line, and to put histories with fixed times into a database."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from outlast.cli.main import main
from outlast.model.events import Event, WorkflowExecutionStarted, encode_events
from outlast.model.ids import DEFAULT_NAMESPACE, NodeId, RunId, WorkflowId
from outlast.store.api import Answer, Commit, Fence, NewRun, Release
from outlast.store.sqlite import SqliteStore


class Called(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[..., Called]


@pytest.fixture
def outlast(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Called]]:
    """Call the command line in this process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OUTLAST_URL", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = set(sys.modules)
    # As a fresh process has it: pytest's own handlers would be taken for the user's.
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)

    def call(*arguments: str) -> Called:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert isinstance(ended.value.code, int)
        return Called(ended.value.code, *capfd.readouterr())

    yield call
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


COMMAND = [sys.executable, "-m", "outlast.cli.main"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line as a process of its own. Ended with the test, if it has not ended by itself."""
    started: list[subprocess.Popen[str]] = []

    def launch(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def at_us(text: str) -> int:
    """`08:23:11`, or with its date `2026-06-16 08:23:11`, as UTC."""
    full = text if " " in text else f"2026-06-15 {text}"
    return int(datetime.fromisoformat(f"{full}+00:00").timestamp()) * 1_000_000


class Recorder:
    """Writes histories through the store, as the node that owns their runs."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self.store = SqliteStore(str(path))
        self._runner = asyncio.Runner()
        self._runner.run(self.store.open())
        self.node: NodeId = self._runner.run(self.store.join("shop/77"))
        self._next: dict[str, int] = {}

    def run(self, workflow_id: str, at: str, *events: Event, **more: Any) -> None:
        """The first turn of a run; the run id is made of the workflow id."""
        started = events[0]
        assert isinstance(started, WorkflowExecutionStarted)
        new = NewRun(
            DEFAULT_NAMESPACE,
            WorkflowId(workflow_id),
            started.workflow,
            started.queue,
            more.pop("owner", self.node),
            more.pop("wake_at_us", None),
        )
        self._commit(workflow_id, at, events, create=new, **more)

    def turn(self, workflow_id: str, at: str, *events: Event, **more: Any) -> None:
        fence = Fence(self.node, self._next[workflow_id])
        self._commit(workflow_id, at, events, fence=fence, **more)

    def release(self, workflow_id: str, at: str, wake_at: str | None, error: str | None = None) -> None:
        wake_at_us = None if wake_at is None else at_us(wake_at)
        self.turn(workflow_id, at, release=Release(wake_at_us, error))

    def _commit(self, workflow_id: str, at: str, events: tuple[Event, ...], **more: Any) -> None:
        encoded = encode_events(list(events)) if events else b""
        commit = Commit(RunId(f"run-of-{workflow_id}"), None, at_us(at), encoded, len(events), **more)
        answers = self._runner.run(self.store.commit([commit]))
        assert answers == [Answer.COMMITTED]
        self._next[workflow_id] = self._next.get(workflow_id, 1) + len(events)

    def do(self, work: Any) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self._runner.run(self.store.close())
        self._runner.close()


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    """On outlast.db in the test's folder: the default database of commands that are called there."""
    made = Recorder(tmp_path / "outlast.db")
    yield made
    made.close()
