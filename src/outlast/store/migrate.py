"""Schemas have numbers: how an older one becomes the newest, and which releases may use a newer one.

Theory of operation
===================
`migrations/<kind>/NNNN_*.sql` are numbered from 1 without gaps; number N takes a database from version N-1 to N, in one
transaction together with its row in `schema_version`, so that a crash leaves either version and never a mixture. They
are never edited once released. Several processes may open a new database at once: a lock decides who migrates, the
others find it done. How that is done on each kind: `sqlite_migrate.py`, `postgres_migrate.py`.

*Rolling upgrades.* While the nodes of a cluster are upgraded one by one, the first new one migrates, and those of the
release before must be able to go on, and to start again. So each migration says in its first line which is the oldest
version whose releases may use the database after it: `-- usable from: N`. It is kept in the database, because an old
release cannot know it otherwise. A migration that only adds tables, functions, or columns that may be left out, keeps
the number of the migration before it; one that takes away or changes what the release before uses, raises it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, TypeAlias

from outlast.model.errors import DatabaseTooNew

Kind: TypeAlias = Literal["sqlite", "postgres"]

_FIRST_LINE = re.compile(r"-- usable from: (\d+)\n")


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    """That it leads to."""
    usable_from: int
    """The oldest version whose releases may use the database after it."""
    script: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What migrating a database would do."""

    version: int
    """That it has; 0 if it has none of ours, or does not exist."""
    newest: int
    """That it would have."""
    sql: str
    """What would be executed, as a script for the database's own shell; "" if there is nothing to do."""


@cache
def migrations(kind: Kind) -> tuple[Migration, ...]:
    """In order."""
    folder = files("outlast.store").joinpath("migrations", kind)
    scripts = sorted((each for each in folder.iterdir() if each.name.endswith(".sql")), key=lambda each: each.name)
    assert [int(script.name[:4]) for script in scripts] == list(range(1, len(scripts) + 1)), "a gap in the migrations"
    return tuple(_parse(number, each.read_text(encoding="utf-8")) for number, each in enumerate(scripts, 1))


def _parse(version: int, script: str) -> Migration:
    first_line = _FIRST_LINE.match(script)
    assert first_line, f"migration {version} does not begin with '-- usable from: N'"
    usable_from = int(first_line[1])
    assert 1 <= usable_from <= version, f"migration {version} says that it is usable from {usable_from}"
    return Migration(version, usable_from, script)


def newest(kind: Kind) -> int:
    """The version that this release makes."""
    return len(migrations(kind))


def check_usable(kind: Kind, version: int, usable_from: int, where: str) -> None:
    """Raises DatabaseTooNew unless this release may use a database with this version and marker."""
    ours = newest(kind)
    if version > ours and usable_from > ours:
        raise DatabaseTooNew(
            f"{where} has schema version {version}, written by a newer release of Outlast, and only releases that know "
            f"version {usable_from} can use it; this release knows versions up to {ours}. It was not changed. Upgrade "
            "Outlast in every process that uses it."
        )
