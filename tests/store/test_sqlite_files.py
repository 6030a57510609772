"""Which files the SQLite store opens, which it refuses, and that it does not touch those."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from outlast.model.errors import DatabaseTooNew, InvalidArgument, NotADatabase, StoreUnavailable
from outlast.model.ids import NodeId
from outlast.store import migrate as schema
from outlast.store import sqlite_migrate as migrate
from outlast.store.api import Answer, Store
from outlast.store.migrate import Migration
from outlast.store.sqlite import SqliteStore
from store.building import commit_one, mail, run_id, start, turn


async def opened(path: Path, *, create: bool = True) -> SqliteStore:
    store = SqliteStore(str(path), synchronous="OFF", create=create)
    await store.open()
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


# --- refused ----------------------------------------------------------------------------------------------------


def a_text_file(path: Path) -> None:
    path.write_text("Dear database,\n" * 200)


def a_short_file(path: Path) -> None:
    path.write_bytes(b"x")


def somebody_elses(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE runs (id)")


def somebody_elses_with_an_id(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA application_id = 1234")


def somebody_elses_in_wal_mode(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE runs (id)")


def half_of_ours(path: Path) -> None:
    asyncio.run(_create(path))
    path.write_bytes(path.read_bytes()[:50])


async def _create(path: Path) -> None:
    await (await opened(path)).close()
    os.unlink(str(path) + "-nodes")


REFUSED: list[Callable[[Path], None]] = [
    a_text_file,
    a_short_file,
    somebody_elses,
    somebody_elses_with_an_id,
    somebody_elses_in_wal_mode,
    half_of_ours,
]


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_not_ours_is_refused_and_not_touched(
    tmp_path: Path, make: Callable[[Path], None], create: bool
) -> None:
    path = tmp_path / "some.file"
    make(path)
    before = contents(tmp_path)

    with pytest.raises(NotADatabase, match=r"some\.file.*was not changed"):
        asyncio.run(opened(path, create=create))

    assert contents(tmp_path) == before


def test_the_log_of_a_process_that_crashed_is_not_touched_in_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "some.file"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE theirs (id)")
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO theirs VALUES (1)")
        db.commit()
        crashed = contents(tmp_path)
    path.write_bytes(crashed["some.file"])
    (tmp_path / "some.file-wal").write_bytes(crashed["some.file-wal"])
    before = contents(tmp_path)

    with pytest.raises(NotADatabase):
        asyncio.run(opened(path))

    assert contents(tmp_path) == before


def test_a_newer_schema_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "outlast.db"
    asyncio.run(_create(path))
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO schema_version VALUES (99, 98)")
        db.commit()
    before = contents(tmp_path)

    with pytest.raises(DatabaseTooNew, match=r"version 99.*Upgrade"):
        asyncio.run(opened(path))

    assert contents(tmp_path) == before


async def test_a_newer_schema_that_this_release_may_use_is_used(tmp_path: Path) -> None:
    """As while the processes on one file are upgraded one by one."""
    path = tmp_path / "outlast.db"
    await _create(path)
    newest = schema.newest("sqlite")
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO schema_version VALUES (?, ?)", (newest + 1, newest))
        db.commit()

    store = await opened(path)
    assert await commit_one(store, start(1)) is Answer.COMMITTED
    await store.close()

    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT max(version) FROM schema_version").fetchone() == (newest + 1,)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADatabase, match="is a folder"):
        asyncio.run(opened(tmp_path))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotADatabase, match=r"there is no folder .*missing"):
        asyncio.run(opened(tmp_path / "missing" / "outlast.db"))

    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_made_when_it_should_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotADatabase, match="no such file"):
        asyncio.run(opened(tmp_path / "outlast.db", create=False))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_memory_is_no_file(path: str) -> None:
    with pytest.raises(InvalidArgument, match="needs a file"):
        asyncio.run(SqliteStore(path).open())


def test_an_unknown_synchronous_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="FULL, NORMAL, OFF"):
        SqliteStore("x.db", synchronous="SOMETIMES")


async def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="not open"):
        await SqliteStore(str(tmp_path / "outlast.db")).nodes()


# --- opened -----------------------------------------------------------------------------------------------------


async def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "outlast.db"
    path.touch()

    store = await opened(path)
    assert await commit_one(store, start(1)) is Answer.COMMITTED
    await store.close()

    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (migrate.APPLICATION_ID,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("SELECT version FROM schema_version").fetchall() == [(1,)]


@pytest.mark.parametrize("name", ["outlast.db", "my orders?#%20&mode=ro.db", "Größe 🎉.db", "it's.db"])
async def test_what_was_committed_is_there_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    store = await opened(path)
    await store.commit([start(1, owner=NodeId(1)), start(2)])
    await store.send([mail(1, "m")])
    before: list[object] = [await _everything(store)]
    await store.close()

    again = await opened(path, create=False)
    assert [await _everything(again)] == before
    await again.close()
    assert sorted(os.listdir(tmp_path)) == [name, name + "-nodes"]


async def _everything(store: Store) -> object:
    ids = [run_id(1), run_id(2)]
    return [await store.run(each) for each in ids], await store.histories(ids), await store.mail_for(ids)


async def test_several_stores_may_create_the_file_at_once(tmp_path: Path) -> None:
    stores = [SqliteStore(str(tmp_path / "outlast.db"), synchronous="OFF") for _ in range(6)]

    await asyncio.gather(*[store.open() for store in stores])

    nodes = await asyncio.gather(*[store.join(f"n{number}") for number, store in enumerate(stores)])
    assert sorted(nodes) == [1, 2, 3, 4, 5, 6]
    await asyncio.gather(*[store.close() for store in stores])


async def test_a_relative_path_and_a_link_lead_to_the_same_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("outlast.db", synchronous="OFF")
    await store.open()
    (tmp_path / "link.db").symlink_to(tmp_path / "outlast.db")
    other = await opened(tmp_path / "link.db")
    await store.join("n")

    assert [each.gone for each in await other.nodes()] == [False]
    await store.close()
    assert [each.gone for each in await other.nodes()] == [True]
    await other.close()


async def test_opening_a_file_again_and_again_keeps_one_descriptor_of_its_lock_file(tmp_path: Path) -> None:
    """It is never closed, so there must not be more of them each time."""

    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    await (await opened(tmp_path / "outlast.db")).close()
    before = descriptors()
    for _ in range(3):
        await (await opened(tmp_path / "outlast.db")).close()

    assert descriptors() == before


async def test_a_history_can_be_read_with_the_sqlite3_shell(tmp_path: Path) -> None:
    path = tmp_path / "outlast.db"
    store = await opened(path)
    await store.commit([start(1, owner=NodeId(1), count=2, at_us=1_780_000_000_123_456)])
    await store.commit([turn(1, NodeId(1), 3, turn_id=8, at_us=1_780_000_001_000_000)])
    await store.close()

    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT position, type, at, event FROM history ORDER BY position").fetchall()
        (text,) = db.execute("SELECT events FROM journal WHERE first_event = 3").fetchone()
    assert [row[:3] for row in rows] == [
        (1, "Something", "2026-05-28 20:26:40.123"),
        (2, "Something", "2026-05-28 20:26:40.123"),
        (3, "Something", "2026-05-28 20:26:41.000"),
    ]
    assert json.loads(rows[2][3]) == {"type": "Something", "mark": "8"}
    assert text == '[{"type":"Something","mark":"8"}]'


# --- the schema ---------------------------------------------------------------------------------------------------


def _new_database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate.migrate(db, "test")
    return db


def test_no_index_of_runs_or_nodes_has_a_column_that_every_commit_changes() -> None:
    """Else every commit would also rewrite an entry of that index."""
    with closing(_new_database()) as db:
        indexed = {
            column
            for table in ("runs", "nodes")
            for (_, index, *_) in db.execute(f"PRAGMA index_list({table})").fetchall()
            for (_, _, column, _, _, key) in db.execute(f"PRAGMA index_xinfo({index!r})").fetchall()
            if key
        }
        wheres = db.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%WHERE%'").fetchall()

    assert "workflow_id" in indexed
    assert indexed.isdisjoint({"next_event", "turn_id", "claims", "counter"})
    assert wheres
    assert not any(
        column in sql.split("WHERE")[1] for (sql,) in wheres for column in ("next_event", "turn_id", "claims")
    )


def test_a_migration_that_fails_leaves_the_version_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(_new_database()) as db:
        good, bad = "CREATE TABLE extra (a);\n", "CREATE TABLE more (a);\nCREATE TABLE extra (a);\n"
        ours = [Migration(version, 1, script) for version, script in enumerate(["", good, bad], 1)]
        for module in (migrate, schema):
            monkeypatch.setattr(module, "migrations", lambda kind: ours)

        with pytest.raises(sqlite3.OperationalError, match="extra"):
            migrate.migrate(db, "test")

        assert migrate.check(db, "test") == 2
        assert db.execute("SELECT name FROM sqlite_master WHERE name IN ('extra', 'more')").fetchall() == [("extra",)]
