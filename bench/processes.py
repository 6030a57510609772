"""Child processes: started, watched and ended by their pid, and never left behind. Standard library only."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
"""Of the repository: children run here, so that `python -m bench...` finds its modules."""

GRACE_S = 15.0
"""Between SIGTERM and SIGKILL: a driver ends its server first."""


class ChildFailed(Exception):
    """A child process ended with an error, took too long, or did not print a result."""


def end(process: subprocess.Popen[Any], grace_s: float = GRACE_S) -> None:
    """Ask the process to end, make it end, and wait until it has."""
    if process.poll() is None:
        process.terminate()
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
    argv: Sequence[str], log: IO[bytes], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process whose stdout is read as text; it has ended when the block is left."""
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        yield process
    finally:
        end(process)
        assert process.stdout is not None
        process.stdout.close()


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
        if process.returncode != 0:
            raise ChildFailed(f"{_name(argv)} ended with code {process.returncode}{_tail(log)}")
        lines = said.strip().splitlines()
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            raise ChildFailed(f"{_name(argv)} printed no result, but {said[-500:]!r}{_tail(log)}") from None


def module(name: str, *arguments: object, python: Path | str = sys.executable) -> list[str]:
    """The command line that runs a module of this package."""
    return [str(python), "-m", name, *map(str, arguments)]


def cpu_seconds(pid: int) -> float:
    """CPU time, in user and kernel mode, that a process has used, with its children that have ended (Linux)."""
    # The name in parentheses may hold anything; the fields after it are numbers. See proc(5).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(each) for each in fields[11:15]) / os.sysconf("SC_CLK_TCK")


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
