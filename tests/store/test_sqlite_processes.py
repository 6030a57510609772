"""Several processes on one SQLite file, and what is left when they are killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outlast.model.ids import RunId
from outlast.store.sqlite import SqliteStore
from store.building import run_id, start

ROUNDS = 3
"""Of killing two processes. Each round costs the start of two interpreters."""

HERE = Path(__file__).parent


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running child.py; killed at the end, if it has not ended before."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(HERE / "child.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str], lines: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(lines)]


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate("")
    assert process.returncode == 0
    return out.splitlines()


def check_integrity(path: str) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


async def check_histories(store: SqliteStore, acknowledged: dict[RunId, int]) -> None:
    """Nothing that was acknowledged is missing, and every history is whole: 1, 2, 3 ... up to what its row says."""
    for run, next_event in acknowledged.items():
        row = await store.run(run)
        assert row is not None
        assert row.next_event >= next_event
        position = 1
        for each in await store.history(run):
            assert each.first_event == position
            position += each.count
        assert position == row.next_event


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Again and again: two processes write, one is killed in the middle, the other goes on, and is killed too."""
    path = str(tmp_path / "outlast.db")
    dice = random.Random(7)
    acknowledged: dict[RunId, int] = {}

    def note(lines: list[str]) -> None:
        for line in lines:
            number, next_event = line.split()
            acknowledged[run_id(int(number))] = int(next_event)

    for round_ in range(ROUNDS):
        with child("append", path, str(100 + 10 * round_)) as one, child("append", path, str(500 + 10 * round_)) as two:
            note(said(one, 5 * dice.randint(1, 60)))
            one.kill()
            note(said(two, 5 * dice.randint(20, 60)))
            two.kill()
            for killed in (one, two):
                rest, _ = killed.communicate()
                note([line for line in rest.splitlines(keepends=True) if line.endswith("\n")])
    store = SqliteStore(path)
    await store.open()
    assert len(acknowledged) == 10 * ROUNDS
    await check_histories(store, acknowledged)
    assert all(each.gone for each in await store.nodes())
    await store.close()
    check_integrity(path)


async def test_the_kernel_tells_that_a_process_has_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "outlast.db")
    store = SqliteStore(path)
    await store.open()
    mine = await store.join("mine")

    async def gone() -> dict[int, bool]:
        return {each.node_id: each.gone for each in await store.nodes()}

    with child("live", path) as killed, child("live", path) as stopped, child("live", path) as ending:
        ids = [int(said(each, 1)[0]) for each in (killed, stopped, ending)]
        assert await gone() == {mine: False, **dict.fromkeys(ids, False)}

        killed.kill()
        killed.wait()
        os.kill(stopped.pid, signal.SIGSTOP)
        finish(ending)

        # A stopped process holds its lock: that is for the heartbeat to find out.
        assert await gone() == {mine: False, ids[0]: True, ids[1]: False, ids[2]: True}
        with child("look", path) as other:
            (seen,) = finish(other)
        assert set(seen.split()) == {f"{mine}:False", f"{ids[0]}:True", f"{ids[1]}:False", f"{ids[2]}:True"}
    await store.close()


async def test_a_lock_file_that_was_replaced_proves_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "outlast.db")
    with child("live", path) as alive:
        said(alive, 1)
        os.rename(path + "-nodes", path + "-moved")
        store = SqliteStore(path)
        await store.open()

        assert [each.gone for each in await store.nodes()] == [False]
        await store.close()


async def test_a_process_that_ends_without_closing_leaves_a_usable_file(tmp_path: Path) -> None:
    path = str(tmp_path / "outlast.db")
    with child("once", path) as process:
        assert finish(process) == ["committed"]
    assert (tmp_path / "outlast.db-wal").exists()

    store = SqliteStore(path)
    await store.open()
    assert await store.run(run_id(1)) is not None
    await store.commit([start(2)])
    await store.close()

    check_integrity(path)
    assert sorted(os.listdir(tmp_path)) == ["outlast.db", "outlast.db-nodes"]


async def test_a_fork_does_not_inherit_the_store_and_does_not_harm_it(tmp_path: Path) -> None:
    path = str(tmp_path / "outlast.db")
    with child("fork", path) as process:
        (node,) = said(process, 1)
        with child("look", path) as other:
            assert finish(other) == [f"{node}:False"]
        finish(process)

    store = SqliteStore(path)
    await store.open()
    assert [each.gone for each in await store.nodes()] == [True]
    assert [await store.run(run_id(number)) is not None for number in (1, 2, 3)] == [True] * 3
    await store.close()
    check_integrity(path)


def test_a_fork_waits_until_no_thread_is_inside_sqlite(tmp_path: Path) -> None:
    """Else the child might inherit a half-done transaction, or a mutex that nobody will ever release."""
    with child("fork_waits") as process:
        assert finish(process) == ["0"]


def test_a_disk_that_fails_during_commit_leaves_it_open_what_was_written(tmp_path: Path) -> None:
    """And it may be either: what was written of it could still be found by a recovery after a power failure."""
    path = str(tmp_path / "outlast.db")
    with child("io_error", path) as process:
        first, second, last = finish(process)

    assert "during COMMIT" in first
    assert "during COMMIT" in second
    assert last == "usable"
    check_integrity(path)
