"""`outlast migrate`: bring a database to the schema of this release, or show the SQL that would do it.

Workers and clients do it by themselves when they open a database. This is for databases whose owner does not let them,
and for those who want to read first what is going to be executed.
"""

from __future__ import annotations

import asyncio
from urllib.parse import unquote, urlsplit

import click

from outlast.cli.errors import say
from outlast.cli.options import common_options
from outlast.sdk.url import default_url, open_store
from outlast.store.api import Store
from outlast.store.migrate import Plan


@click.command
@click.option("--print", "printing", is_flag=True, help="Print the SQL that would be executed; change nothing.")
@common_options
def migrate_command(printing: bool, db: str | None) -> None:
    """Bring the database to the schema of this release.

    On PostgreSQL the role of the URL must own the tables of Outlast or, the first time, be allowed to make a schema.
    """
    url = default_url() if db is None else db
    store = open_store(url)  # refuses what is no URL of ours
    plan = _plan(url)
    if printing:
        click.echo(plan.sql, nl=False)
    elif plan.sql:
        asyncio.run(_migrate(store))
    had = "no schema of Outlast" if plan.version == 0 else f"schema version {plan.version}"
    if not plan.sql:
        say(f"the database has {had}: nothing to do")
    elif printing:
        say(f"the database has {had}; this would bring it to version {plan.newest}")
    else:
        say(f"the database had {had}; it has version {plan.newest} now")


def _plan(url: str) -> Plan:
    if urlsplit(url).scheme == "sqlite":
        from outlast.store import sqlite_open

        return sqlite_open.plan(unquote(urlsplit(url).path)[1:])
    from outlast.store import postgres_migrate

    return asyncio.run(postgres_migrate.plan(url))


async def _migrate(store: Store) -> None:
    await store.open()
    await store.close()
