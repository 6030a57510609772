"""Opening a database that other processes are at work on."""

from __future__ import annotations

from pathlib import Path

import pytest

import outlast
from outlast.model.errors import NotADatabase
from outlast.store import sqlite_open
from outlast.store.sqlite_open import check_path

PAGE = 4096


async def half_written_back(folder: Path) -> tuple[Path, bytes]:
    """A database as it looks while its log is being written back: the first page, which says how many there are, is
    there already, and the last ones are not. And the whole of it."""
    path = folder / "orders.db"
    async with outlast.connect(f"sqlite:///{path}"):
        pass
    whole = path.read_bytes()
    assert len(whole) > PAGE
    path.write_bytes(whole[:PAGE])
    return path, whole


async def test_a_process_that_starts_while_another_writes_its_log_back_waits_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = await half_written_back(tmp_path)
    path.with_name("orders.db-wal").touch()
    pauses: list[float] = []

    def written_back_meanwhile(seconds: float) -> None:
        pauses.append(seconds)
        path.write_bytes(whole)

    monkeypatch.setattr(sqlite_open.time, "sleep", written_back_meanwhile)
    check_path(str(path), create=False)
    assert len(pauses) == 1


async def test_a_damaged_file_that_nobody_is_at_work_on_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = await half_written_back(tmp_path)
    monkeypatch.setattr(sqlite_open.time, "sleep", lambda seconds: pytest.fail("nothing to wait for"))
    with pytest.raises(NotADatabase, match="damaged"):
        check_path(str(path), create=False)
    assert path.read_bytes() == whole[:PAGE], "and not changed"
    assert not path.with_name("orders.db-wal").exists()
