"""The marks that attempts leave outside of the database (see `programs`), read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mark:
    place: int
    """Which line it is: the order in which things happened, across processes."""
    key: str
    """Idempotency key: run and activity."""
    attempt: int
    pid: int
    phase: str
    at_s: float
    """On the machine's monotonic clock: what `time.monotonic()` says in every process."""

    @property
    def run_id(self) -> str:
        return self.key.partition("/")[0]


def read_marks(path: Path) -> list[Mark]:
    if not path.exists():
        return []
    return [_mark(place, line) for place, line in enumerate(path.read_text().splitlines())]


def _mark(place: int, line: str) -> Mark:
    key, attempt, pid, phase, at_ns = line.split(" ")
    return Mark(place, key, int(attempt), int(pid), phase, int(at_ns) / 1e9)


def begun(path: Path, attempt: int) -> list[Mark]:
    """The beginnings of attempts with this number."""
    return [mark for mark in read_marks(path) if mark.phase == "begin" and mark.attempt == attempt]
