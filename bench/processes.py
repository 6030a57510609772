"""Child processes: started, watched and ended by their pid, and never left behind. Standard library only."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
"""Of the repository: children run here, so that `python -m bench...` finds its modules."""

GRACE_S = 15.0
"""Between SIGTERM and SIGKILL: a driver ends its server first."""


class ChildFailed(Exception):
    """A child process ended with an error, took too long, or did not print a result."""


def end(process: subprocess.Popen[Any], grace_s: float = GRACE_S, ask: signal.Signals = signal.SIGTERM) -> None:
    """Ask the process to end, make it end, and wait until it has."""
    if process.poll() is None:
        process.send_signal(ask)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def kill(process: subprocess.Popen[Any]) -> None:
    """As `kill -9` does it."""
    process.kill()
    process.wait()


@contextmanager
def child(
    argv: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str] | None = None,
    *,
    stdin: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[str]]:
    """A process whose stdout is read as text; it has ended when the block is left."""
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        yield process
    finally:
        end(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def read_line(process: subprocess.Popen[str], wanted: str, log: IO[bytes], *, timeout_s: float) -> None:
    """Wait until the child has said its first line, which must be the wanted one. Raises ChildFailed."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], timeout_s)
    said = process.stdout.readline().strip() if readable else "nothing"
    if said != wanted:
        raise ChildFailed(f"the process said {said!r}, expected {wanted!r}{_tail(log)}")


def result_of(argv: Sequence[str], *, timeout_s: float) -> Any:
    """What a child prints as its last line, as JSON. Raises ChildFailed with the end of what it said."""
    with tempfile.TemporaryFile() as log, child(argv, log) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            end(process)
            raise ChildFailed(f"{_name(argv)} did not end within {timeout_s:.0f} s{_tail(log)}") from None
        return _parsed(argv, process, said, log)


def _parsed(argv: Sequence[str], process: subprocess.Popen[str], said: str, log: IO[bytes]) -> Any:
    if process.returncode != 0:
        raise ChildFailed(f"{_name(argv)} ended with code {process.returncode}{_tail(log)}")
    lines = said.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        raise ChildFailed(f"{_name(argv)} printed no result, but {said[-500:]!r}{_tail(log)}") from None


def results_together(argvs: Sequence[Sequence[str]], *, timeout_s: float, began: Callable[[], None]) -> list[Any]:
    """What children print as their last lines, that begin at the same moment: each says `ready`, and is then told to
    go. `began` is called at that moment. Raises ChildFailed."""
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in argvs]
        processes = [
            stack.enter_context(child(argv, log, stdin=subprocess.PIPE)) for argv, log in zip(argvs, logs, strict=True)
        ]
        deadline = time.monotonic() + timeout_s
        for process, log in zip(processes, logs, strict=True):
            read_line(process, READY, log, timeout_s=timeout_s)
        began()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(GO + "\n")
            process.stdin.flush()
        results: list[Any] = []
        for argv, process, log in zip(argvs, processes, logs, strict=True):
            assert process.stdout is not None
            # Read to the end by ourselves: `communicate` would not see what `read_line` has taken into its buffer.
            timer = threading.Timer(max(deadline - time.monotonic(), 0.0), process.kill)
            timer.start()
            try:
                said = process.stdout.read()
                process.wait()
            finally:
                timer.cancel()
            results.append(_parsed(argv, process, said, log))
        return results


READY = "ready"
GO = "go"


def module(name: str, *arguments: object, python: Path | str = sys.executable) -> list[str]:
    """The command line that runs a module of this package."""
    return [str(python), "-m", name, *map(str, arguments)]


def cpu_seconds(pid: int) -> float:
    """CPU time, in user and kernel mode, that a process has used, with its children that have ended (Linux)."""
    # The name in parentheses may hold anything; the fields after it are numbers. See proc(5).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(each) for each in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def server_cpu_seconds(pid: int) -> float:
    """CPU time of a server and of the processes that it has started, those that have ended included (Linux)."""
    seconds = cpu_seconds(pid)
    for each in Path("/proc").iterdir():
        if not each.name.isdecimal():
            continue
        try:
            if int(each.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == pid:
                seconds += cpu_seconds(int(each.name))
        except (FileNotFoundError, ProcessLookupError):
            # It has ended between the two looks; its time is the server's by now, and counted the next time.
            continue
    return seconds


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def memory_mb(pid: int | str, field: str) -> float:
    """`VmRSS`, what a process has in memory now, or `VmHWM`, the most that it ever had (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise ChildFailed(f"process {pid} has no {field}: it has ended")


def _name(argv: Sequence[str]) -> str:
    """The module that `module` has made a command line of."""
    return argv[2]


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    text = log.read().decode(errors="replace").strip()
    return f"; it said:\n{text[-3000:]}" if text else ""
