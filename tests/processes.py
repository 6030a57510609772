"""Worker processes for tests: real ones, that are killed, stopped, let go on, and asked to end.

Whatever is waited for here is a condition, and `PATIENCE_S` is far beyond what any of it takes: a test that runs into
it has found a run that is stranded, or a process that hangs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from outlast import Handle

PATIENCE_S = 60.0
END_S = 30.0
"""A worker gives attempts 5 s to clean up, and the database 10 s to take its runs back."""

READY = "ready"


class WorkerProcess:
    """A Python program that hosts workflows, prints "ready", and goes on until killed or until its stdin closes."""

    def __init__(self, program: Path, *arguments: str, wait: bool = True, log: Path | None = None) -> None:
        errors = subprocess.DEVNULL if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(program), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        finally:
            if log is not None:
                os.close(errors)
        self.pid = self._process.pid
        self.log = log
        if wait and not self.wait_until_ready():
            said = "" if log is None else log.read_text(errors="replace")[-2_000:]
            raise AssertionError(f"the worker ended before it was ready: {self._reap()}\n{said}")

    def wait_until_ready(self) -> bool:
        """False: it ended before."""
        assert self._process.stdout is not None
        return self._process.stdout.readline() == f"{READY}\n"

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """kill -9. Also a stopped process dies of it."""
        self._process.kill()
        self._reap()

    def stop(self) -> None:
        """SIGSTOP. When this returns, none of its threads runs."""
        self._process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"worker {self.pid} ended before it could be stopped"

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def ask_to_end(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def wait(self) -> int:
        """Until it has ended by itself. Returns its exit code."""
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self._reap()

    def end(self) -> int:
        """Close its stdin and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.wait()

    def _reap(self) -> int:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return self._process.wait(END_S)


class Supervised:
    """A worker process that is started again whenever it has died.

    `start` must not wait until the worker is ready: it may be dead before.
    """

    def __init__(self, start: Callable[[], WorkerProcess]) -> None:
        self._start = start
        self.deaths = 0
        self._task = asyncio.ensure_future(self._supervise())

    async def _supervise(self) -> None:
        worker = self._start()
        try:
            while True:
                while worker.is_alive():
                    await asyncio.sleep(0.005)
                worker.kill()
                self.deaths += 1
                worker = self._start()
        finally:
            worker.kill()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


async def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.002)


async def until_true(condition: Callable[[], Awaitable[object]], patience_s: float = PATIENCE_S) -> None:
    """For a condition that asks the database: less often."""
    async with asyncio.timeout(patience_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def results_of(handles: list[Handle[Any]], patience_s: float = PATIENCE_S) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*(handle.result() for handle in handles)), patience_s)
