"""Which PostgreSQL databases are opened, by whom, and what becomes of their schema."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import postgres
from outlast.model.errors import DatabaseTooNew, NotADatabase, StoreUnavailable
from outlast.model.ids import NodeId
from outlast.store import migrate, postgres_migrate
from outlast.store.api import Answer, RunFilter, RunStatus, Sent
from outlast.store.migrate import Migration, Plan
from outlast.store.postgres import PostgresStore
from store.building import NAMESPACE, claim, claimed, commit_one, mail, run_id, start, task, task_claim, turn

NEWEST = migrate.newest("postgres")

RUNNING = (Path(__file__).parents[2] / "docs" / "running.md").read_text()


@pytest.fixture
def url() -> Iterator[str]:
    """Of a database with nothing in it."""
    url = postgres.require(lambda: postgres.fresh_database(migrated=False))
    yield url
    postgres.drop_database(url)


@pytest.fixture
async def db(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def role(db: Any) -> AsyncIterator[str]:
    """Who may connect, and no more."""
    name = postgres.PREFIX + postgres.secrets.token_hex(4)
    await db.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    await db.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def contents(db: Any) -> list[tuple[str, ...]]:
    """Every table, function, and schema of the database, but PostgreSQL's own."""
    return [
        tuple(record)
        for record in await db.fetch(
            "SELECT nspname, '' FROM pg_namespace WHERE nspname = 'outlast' UNION ALL "
            "SELECT nspname, relname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace "
            "WHERE nspname IN ('outlast', 'public') UNION ALL "
            "SELECT nspname, proname FROM pg_proc JOIN pg_namespace AS n ON n.oid = pronamespace "
            "WHERE nspname IN ('outlast', 'public') ORDER BY 1, 2"
        )
    ]


async def versions(db: Any) -> list[tuple[int, int]]:
    return [tuple(each) for each in await db.fetch("SELECT * FROM outlast.schema_version ORDER BY version")]


async def works(url: str) -> None:
    store = PostgresStore(url, create=False)
    await store.open()
    await goes_on(store, await store.join("n"), 1)
    await store.close()


async def goes_on(store: PostgresStore, node: NodeId, number: int) -> None:
    """A run is started, claimed, gets mail, has an activity done elsewhere, and ends."""
    assert await commit_one(store, start(number)) is Answer.COMMITTED
    assert await claimed(store, claim(node)) == [run_id(number)]
    assert await store.send([mail(number, "m")]) == [Sent.ACCEPTED]
    assert await commit_one(store, turn(number, node, 2, add_tasks=[task(visible_at_us=0)])) is Answer.COMMITTED
    (taken,) = await store.claim_tasks(task_claim(node))
    assert await store.deliver(node, taken, mail(number, "done"))
    consumed = [each.mail_id for each in await store.mail_of(node, 10)]
    ending = turn(number, node, 3, status=RunStatus.COMPLETED, consume=consumed)
    assert await commit_one(store, ending) is Answer.COMMITTED
    assert [each.gone for each in await store.nodes()] == [False]
    assert await store.heartbeat(node)
    assert [each.run_id for each in await store.runs(RunFilter(NAMESPACE, limit=1))] == [run_id(number)]


async def opened(url: str, *, create: bool = True) -> None:
    store = PostgresStore(url, create=create)
    try:
        await store.open()
    finally:
        await store.close()


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this process one of a release that has other migrations."""

    def become(*scripts: str) -> None:
        ours = [migrate._parse(number, script) for number, script in enumerate(scripts, 1)]
        known: Callable[[object], tuple[Migration, ...]] = lambda kind: tuple(ours)  # noqa: E731
        monkeypatch.setattr(migrate, "migrations", known)
        monkeypatch.setattr(postgres_migrate, "migrations", known)

    return become


# --- made ---------------------------------------------------------------------------------------------------------


async def test_an_empty_database_gets_our_schema_and_nothing_outside_of_it(url: str, db: Any) -> None:
    await opened(url)

    assert await versions(db) == [(each.version, each.usable_from) for each in migrate.migrations("postgres")]
    made = await contents(db)
    assert ("outlast", "runs") in made
    assert {schema for schema, _ in made} == {"outlast"}
    await works(url)


async def test_migrating_again_changes_nothing(url: str, db: Any) -> None:
    assert await postgres_migrate.migrate_postgres(db, url) == (0, NEWEST)
    before = await contents(db)

    assert await postgres_migrate.migrate_postgres(db, url) == (NEWEST, NEWEST)

    assert await contents(db) == before
    assert await postgres_migrate.check_postgres(db, url) == NEWEST


async def test_of_many_that_open_a_new_database_at_once_one_makes_the_schema(url: str, db: Any) -> None:
    stores = [PostgresStore(url) for _ in range(6)]

    await asyncio.gather(*[store.open() for store in stores])

    assert len(await versions(db)) == NEWEST
    nodes = [await store.join("n") for store in stores]
    assert sorted(nodes) == list(range(1, 7))
    await asyncio.gather(*[store.close() for store in stores])


async def test_who_finds_another_one_migrating_waits_for_it(url: str, db: Any) -> None:
    async with db.transaction():
        await db.execute(postgres_migrate._LOCK)
        opening = asyncio.create_task(opened(url))
        while not await db.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            assert not opening.done()
        await db.execute("CREATE SCHEMA outlast; CREATE TABLE outlast.schema_version (version int, usable_from int)")
        await db.execute("INSERT INTO outlast.schema_version VALUES ($1, 1)", NEWEST)

    await opening

    assert len(await contents(db)) == 2, "it would have made the other tables, had it not looked again"


async def test_an_older_schema_becomes_the_newest(url: str, db: Any, release: Callable[..., None]) -> None:
    first, second = "-- usable from: 1\nCREATE TABLE outlast.a ();", "-- usable from: 1\nCREATE TABLE outlast.b ();"
    release(first)
    await opened(url)
    release(first, second)

    assert await postgres_migrate.migrate_postgres(db, url) == (1, 2)

    assert await versions(db) == [(1, 1), (2, 1)]
    assert ("outlast", "b") in await contents(db)


async def test_a_migration_that_fails_leaves_nothing(url: str, db: Any, release: Callable[..., None]) -> None:
    release("-- usable from: 1\nCREATE TABLE outlast.a ();", "-- usable from: 1\nCREATE TABLE outlast.a ();")

    with pytest.raises(Exception, match="already exists"):
        await opened(url)

    assert await contents(db) == []


async def test_a_migration_that_would_make_others_wait_for_long_gives_up(
    url: str, db: Any, release: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "-- usable from: 1\nCREATE TABLE outlast.a ();"
    release(first)
    await opened(url)
    release(first, "-- usable from: 1\nALTER TABLE outlast.a ADD b int;")
    patient = postgres_migrate._SETTINGS
    assert "lock_timeout = '5s'" in patient
    monkeypatch.setattr(postgres_migrate, "_SETTINGS", patient.replace("5s", "50ms"))

    async with db.transaction():
        await db.execute("LOCK TABLE outlast.a IN ACCESS SHARE MODE")
        with pytest.raises(StoreUnavailable, match=r"kept a table of ours locked.*Nothing was changed"):
            await opened(url)

    assert await versions(db) == [(1, 1)]
    await opened(url)
    assert await versions(db) == [(1, 1), (2, 1)]


# --- other releases -----------------------------------------------------------------------------------------------


async def test_a_newer_schema_that_this_release_may_use_is_used(url: str, db: Any) -> None:
    """As while the nodes of a cluster are upgraded one by one."""
    await opened(url)
    await db.execute("INSERT INTO outlast.schema_version VALUES ($1, $2)", NEWEST + 1, NEWEST)
    before = await contents(db)

    await works(url)

    assert await postgres_migrate.migrate_postgres(db, url) == (NEWEST + 1, NEWEST + 1)
    assert await contents(db) == before


async def test_a_node_goes_on_while_the_next_release_gives_the_tables_more_columns(url: str, db: Any) -> None:
    """What its sessions have prepared, and the plans of its functions, are for the rows as they were."""
    await opened(url)
    store = PostgresStore(url)
    await store.open()
    node = await store.join("n")
    for number in range(1, 11):
        await goes_on(store, node, number)

    for table in ("runs", "run_details", "journal", "mailbox", "woken", "tasks", "nodes"):
        await db.execute(f"ALTER TABLE outlast.{table} ADD COLUMN of_the_next_release text DEFAULT 'x'")

    for number in range(11, 21):
        await goes_on(store, node, number)
    await store.close()


@pytest.mark.parametrize("create", [True, False])
async def test_a_newer_schema_that_this_release_may_not_use_is_refused(url: str, db: Any, create: bool) -> None:
    await opened(url)
    await db.execute("INSERT INTO outlast.schema_version VALUES ($1, $2)", NEWEST + 7, NEWEST + 1)

    with pytest.raises(DatabaseTooNew, match=rf"version {NEWEST + 7}, .*{NEWEST + 1} can use it.*Upgrade"):
        await opened(url, create=create)


async def test_an_older_schema_is_only_migrated_by_who_may_create(
    url: str, db: Any, release: Callable[..., None]
) -> None:
    first = "-- usable from: 1\nCREATE TABLE outlast.a ();"
    release(first)
    await opened(url)
    release(first, "-- usable from: 1\nCREATE TABLE outlast.b ();")

    with pytest.raises(StoreUnavailable, match=r"has schema version 1, and this release needs 2.*outlast migrate"):
        await opened(url, create=False)

    assert await versions(db) == [(1, 1)]


async def test_a_server_that_is_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_migrate, "OLDEST_SERVER", 99)

    with pytest.raises(StoreUnavailable, match="needs 99 or newer"):
        await opened(url)


# --- refused ------------------------------------------------------------------------------------------------------


async def test_looking_at_a_database_makes_nothing_in_it(url: str, db: Any) -> None:
    with pytest.raises(NotADatabase, match="has no tables of Outlast"):
        await opened(url, create=False)

    assert await contents(db) == []


@pytest.mark.parametrize(
    "theirs",
    [
        "CREATE TABLE outlast.runs (id int)",
        "CREATE TABLE outlast.schema_version (version int)",
        "CREATE FUNCTION outlast.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SEQUENCE outlast.numbers",
        "CREATE TABLE outlast.schema_version (version int, usable_from int)",
    ],
)
@pytest.mark.parametrize("create", [True, False])
async def test_a_schema_of_somebody_else_is_not_touched(url: str, db: Any, theirs: str, create: bool) -> None:
    await db.execute(f"CREATE SCHEMA outlast; {theirs}")
    before = await contents(db)

    with pytest.raises(NotADatabase, match="It was not changed"):
        await opened(url, create=create)

    assert await contents(db) == before


async def test_a_database_that_does_not_exist_is_told(url: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"does not exist.*Check"):
        await opened(postgres.url_of("outlast_test_no_such_thing", url))


# --- rights -------------------------------------------------------------------------------------------------------


async def test_who_may_not_make_a_schema_is_told_what_to_do(url: str, db: Any, role: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"may not.*Nothing was changed.*outlast migrate.*GRANTs"):
        await opened(postgres.url_of(postgres.database_of(url), role=role))

    assert await contents(db) == []


async def test_who_may_not_use_the_tables_is_told_what_to_do(url: str, db: Any, role: str) -> None:
    await opened(url)

    for create in (True, False):
        with pytest.raises(StoreUnavailable, match=r"permission denied.*outlast migrate.*GRANTs"):
            await opened(postgres.url_of(postgres.database_of(url), role=role), create=create)


async def test_a_schema_that_was_made_for_a_role_is_enough(url: str, db: Any, role: str) -> None:
    await db.execute(f"CREATE SCHEMA outlast AUTHORIZATION {role}")
    its = postgres.url_of(postgres.database_of(url), role=role)

    await opened(its)

    await works(its)


async def test_the_grants_in_the_docs_are_what_an_application_needs(url: str, db: Any, role: str) -> None:
    (grants,) = re.findall(r"^```sql\n(.*?)^```", RUNNING, re.MULTILINE | re.DOTALL)
    await opened(url)
    assert "app" in grants
    await db.execute(re.sub(r"\bapp\b", role, grants))
    its = postgres.url_of(postgres.database_of(url), role=role)

    await opened(its)

    await works(its)
    connection = await asyncpg.connect(its)
    for forbidden in ("CREATE TABLE outlast.more ()", "DROP TABLE outlast.runs", "DELETE FROM outlast.schema_version"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(forbidden)
    await connection.close()


# --- shown --------------------------------------------------------------------------------------------------------


async def test_the_plan_is_what_migrating_does(url: str, db: Any) -> None:
    plan = await postgres_migrate.plan(url)
    assert (plan.version, plan.newest) == (0, NEWEST)
    assert await contents(db) == []
    await db.execute(plan.sql)
    made = await contents(db)

    assert await postgres_migrate.plan(url) == Plan(NEWEST, NEWEST, "")
    await works(url)
    with postgres.database(migrated=False) as other:
        await opened(other)
        connection = await asyncpg.connect(other)
        assert await contents(connection) == made
        await connection.close()


async def test_a_plan_that_was_overtaken_changes_nothing(url: str, db: Any) -> None:
    plan = await postgres_migrate.plan(url)
    await opened(url)
    before = await contents(db)

    with pytest.raises(asyncpg.PostgresError):
        await db.execute(plan.sql)

    await db.execute("ROLLBACK")
    assert await contents(db) == before


async def test_the_plan_for_a_database_that_does_not_exist_is_everything(url: str) -> None:
    everything = await postgres_migrate.plan(url)

    assert await postgres_migrate.plan(postgres.url_of("outlast_test_no_such_thing", url)) == everything


async def test_the_plan_for_a_schema_that_was_made_for_us_does_not_make_it(url: str, db: Any) -> None:
    await db.execute("CREATE SCHEMA outlast")

    plan = await postgres_migrate.plan(url)

    assert "CREATE SCHEMA" not in plan.sql
    await db.execute(plan.sql)
    await works(url)
