"""Histories with fixed times, put into a database through the store."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from outlast.model.events import Event, WorkflowExecutionStarted, encode_events
from outlast.model.ids import DEFAULT_NAMESPACE, NodeId, RunId, WorkflowId
from outlast.store.api import Answer, Commit, Fence, NewRun, Release
from outlast.store.sqlite import SqliteStore


class Called(NamedTuple):
    status: int
    out: str
    err: str


Call: TypeAlias = Callable[..., Called]

COMMAND = [sys.executable, "-m", "outlast.cli.main"]


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

    async def _write(self, commit: Commit) -> list[Answer]:
        return await self.store.commit([commit])

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
        answers = self._runner.run(self._write(commit))
        assert answers == [Answer.COMMITTED]
        self._next[workflow_id] = self._next.get(workflow_id, 1) + len(events)

    def do(self, work: Any) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self._runner.run(self.store.close())
        self._runner.close()


PATIENCE_S = 30.0


def until(outlast: Call, process: subprocess.Popen[str], id_: str, text: str) -> None:
    """Look at a run that lives in another process, until what is shown of it has this text."""
    deadline = time.monotonic() + PATIENCE_S
    while text not in (shown := outlast("show", id_)).out:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, shown
