"""The systems that can be measured, and how they belong together.

Two tables, since only what is on the same database can be compared: SQLite, and PostgreSQL. Each has a *floor* (the
same commits and no engine), Outlast in one process and in several, and peers.
"""

from __future__ import annotations

from dataclasses import dataclass

SQLITE, POSTGRES = TABLES = ("SQLite", "PostgreSQL")


@dataclass(frozen=True, slots=True)
class System:
    name: str
    module: str
    """Of the driver."""
    table: str
    peer: str | None = None
    """The environment in which a peer runs; None for what is ours."""
    processes: int = 1
    """That share the runs and the database: each starts runs, hosts them, and waits for their results."""
    own_store: bool = False
    """It brings its own database, so needs none of the server's."""

    @property
    def needs_server(self) -> bool:
        return self.table == POSTGRES and not self.own_store


def _outlast(name: str, table: str, processes: int = 1) -> System:
    return System(name, "bench.outlast_driver", table, processes=processes)


SYSTEMS = {
    each.name: each
    for each in (
        System("floor", "bench.floor", SQLITE),
        _outlast("outlast", SQLITE),
        _outlast("outlast-2", SQLITE, processes=2),
        System("dbos", "bench.peers.dbos_app", SQLITE, peer="dbos"),
        System("temporal", "bench.peers.temporal_app", SQLITE, peer="temporal"),
        System("pg-floor", "bench.postgres_floor", POSTGRES),
        _outlast("pg-outlast", POSTGRES),
        _outlast("pg-outlast-2", POSTGRES, processes=2),
        _outlast("pg-outlast-4", POSTGRES, processes=4),
        System("pg-dbos", "bench.peers.dbos_app", POSTGRES, peer="dbos"),
        System("restate", "bench.peers.restate_app", POSTGRES, peer="restate", own_store=True),
    )
}
"""By name, in the order in which they are shown."""

FLOOR_OF = {SQLITE: "floor", POSTGRES: "pg-floor"}
OUTLAST_OF = {SQLITE: "outlast", POSTGRES: "pg-outlast"}


def of(table: str, *, peers: bool) -> tuple[str, ...]:
    """Names of what is measured on that database."""
    return tuple(each.name for each in SYSTEMS.values() if each.table == table and (peers or each.peer is None))
