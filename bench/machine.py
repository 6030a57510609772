"""The machine: without it the figures mean nothing."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

FSYNCS = 100
"""Enough for a median; 0.1 s on a fast disk, some seconds on a slow one."""

IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


class NoDisk(Exception):
    """The folder for the databases is kept in memory: fsync would cost nothing there, and the figures would lie."""


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cores: int
    """That this process may use."""
    memory_gb: float
    system: str
    python: str
    sqlite: str
    file_system: str
    fsync_ms: float
    """Median of appending 4 kB to a file and having it on disk, in the folder that is measured in."""
    load: float
    """How many processes wanted a core in the minute before. Above 0.5, somebody else was at work."""


def describe(folder: Path) -> Machine:
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        file_system=file_system(folder),
        fsync_ms=_fsync_ms(folder),
        load=os.getloadavg()[0],
    )


def check_is_disk(folder: Path) -> None:
    """Raises NoDisk."""
    kind = file_system(folder)
    if kind in IN_MEMORY:
        raise NoDisk(f"{folder} is kept in memory ({kind}), where fsync costs nothing. Give a disk with --folder.")


def file_system(folder: Path) -> str:
    """Kind of the file system that the folder is on; "?" where the system does not tell (anything but Linux)."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "?"
    path = folder.resolve()
    best, kind = Path("/"), "?"
    for line in mounts.read_text().splitlines():
        _, where, this_kind, *_ = line.split(" ")
        # Spaces and the like are written in octal there.
        mount = Path(where.encode().decode("unicode_escape"))
        if path.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, this_kind
    return kind


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _fsync_ms(folder: Path) -> float:
    sync = getattr(os, "fdatasync", os.fsync)
    times: list[float] = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(FSYNCS):
            began = time.perf_counter()
            file.write(b"\0" * 4096)
            sync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3
