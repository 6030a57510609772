"""`outlast migrate`: what it does to a database, and that `--print` does nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import postgres
from cli.recording import Called
from outlast.cli.errors import OK, WRONG_CALL
from outlast.store.migrate import newest

NOW = f"version {newest('sqlite')}"


@pytest.fixture
def url() -> Iterator[str]:
    """Of a database with nothing in it."""
    url = postgres.require(lambda: postgres.fresh_database(migrated=False))
    yield url
    postgres.drop_database(url)


def execute(url: str, sql: str) -> None:
    postgres.ask(url, lambda db: db.execute(sql))


def test_a_new_file_is_made_and_the_second_time_there_is_nothing_to_do(
    outlast: Callable[..., Called], tmp_path: Path
) -> None:
    first = outlast("migrate", "--db", "sqlite:///orders.db")
    again = outlast("migrate", "--db", "sqlite:///orders.db")

    assert (first.status, first.out) == (OK, "")
    assert first.err == f"outlast: the database had no schema of Outlast; it has {NOW} now\n"
    assert (again.status, again.out) == (OK, "")
    assert again.err == f"outlast: the database has schema {NOW}: nothing to do\n"
    assert outlast("list", "--db", "sqlite:///orders.db").status == OK


def test_what_is_printed_for_a_file_makes_the_same_file(outlast: Callable[..., Called], tmp_path: Path) -> None:
    printed = outlast("migrate", "--print", "--db", "sqlite:///orders.db")

    assert printed.status == OK
    assert f"no schema of Outlast; this would bring it to {NOW}" in printed.err
    assert list(tmp_path.iterdir()) == []
    outlast("migrate", "--db", "sqlite:///made.db")
    with closing(sqlite3.connect(tmp_path / "orders.db")) as db, closing(sqlite3.connect(tmp_path / "made.db")) as made:
        db.executescript(printed.out)
        everything = "SELECT name, sql FROM sqlite_master ORDER BY name"
        assert db.execute(everything).fetchall() == made.execute(everything).fetchall()
    assert outlast("migrate", "--print", "--db", "sqlite:///orders.db").out == ""


def test_a_database_of_another_program_is_refused(outlast: Callable[..., Called], tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as db:
        db.execute("CREATE TABLE theirs (id)")
    before = (tmp_path / "theirs.db").read_bytes()

    for call in (["migrate"], ["migrate", "--print"]):
        refused = outlast(*call, "--db", "sqlite:///theirs.db")
        assert (refused.status, refused.out) == (WRONG_CALL, "")
        assert "another program" in refused.err

    assert (tmp_path / "theirs.db").read_bytes() == before


def test_postgres_is_migrated(outlast: Callable[..., Called], url: str) -> None:
    assert "no schema of Outlast; it has version" in outlast("migrate", "--db", url).err
    assert "nothing to do" in outlast("migrate", "--db", url).err
    assert outlast("list", "--db", url).status == OK


def test_what_is_printed_for_postgres_does_the_same(outlast: Callable[..., Called], url: str) -> None:
    printed = outlast("migrate", "--print", "--db", url)

    assert printed.status == OK
    assert outlast("list", "--db", url).status == WRONG_CALL, "printing has made something"
    execute(url, printed.out)
    assert "nothing to do" in outlast("migrate", "--db", url).err
    assert outlast("list", "--db", url).status == OK


def test_a_role_without_rights_is_told_to_let_the_owner_migrate(outlast: Callable[..., Called], url: str) -> None:
    role = postgres.PREFIX + postgres.secrets.token_hex(4)
    execute(url, f"CREATE ROLE {role} LOGIN")
    try:
        refused = outlast("list", "--db", postgres.url_of(postgres.database_of(url), role=role))
        assert "has no tables of Outlast" in refused.err
        outlast("migrate", "--db", url)
        refused = outlast("list", "--db", postgres.url_of(postgres.database_of(url), role=role))
        assert refused.status != OK
        assert "GRANT" in refused.err
    finally:
        execute(url, f"DROP ROLE {role}")
