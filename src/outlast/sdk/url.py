"""Database URLs: `sqlite:///orders.db` (relative), `sqlite:////var/lib/orders.db` (absolute), and
`postgresql://role:password@host:5432/database`, with everything that PostgreSQL's own tools allow in such a URL."""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, unquote, urlsplit

from outlast.model.errors import InvalidArgument
from outlast.store.api import Store

DEFAULT_URL = "sqlite:///outlast.db"

_SYNCHRONOUS = ("full", "normal")


def default_url() -> str:
    """The URL in the environment variable OUTLAST_URL, else a file in the current folder."""
    return os.environ.get("OUTLAST_URL") or DEFAULT_URL


def open_store(url: str | None = None, *, create: bool = True) -> Store:
    """The store that a URL names. Nothing is opened yet. Raises InvalidArgument.

    `?synchronous=normal` gives up the promise for commits of the last moments before a power failure (not before a
    crash of the process); the default is full.
    """
    url = default_url() if url is None else url
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return _sqlite(url, unquote(parts.path), dict(parse_qsl(parts.query)), parts.netloc, create)
    if parts.scheme in ("postgres", "postgresql"):
        return _postgres(url, create)
    raise InvalidArgument(
        f"{url!r} is not a database URL. Write sqlite:///orders.db for a file in the current folder, "
        "sqlite:////var/lib/orders.db (four slashes) for an absolute path, "
        "postgresql://role:password@host/database for PostgreSQL."
    )


def _postgres(url: str, create: bool) -> Store:
    try:
        import asyncpg  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise InvalidArgument(
            "PostgreSQL needs the driver asyncpg, which is not installed: pip install 'outlast[postgres]'"
        ) from error
    from outlast.store.postgres import PostgresStore

    return PostgresStore(url, create=create)


def _sqlite(url: str, path: str, options: dict[str, str], host: str, create: bool) -> Store:
    from outlast.store.sqlite import SqliteStore

    if host:
        raise InvalidArgument(f"{url!r}: three slashes are needed before the path: sqlite:///{host}{path}")
    if len(path) < 2:
        raise InvalidArgument(f"{url!r} names no file; write for example sqlite:///orders.db")
    synchronous = options.pop("synchronous", "full")
    if options or synchronous not in _SYNCHRONOUS:
        raise InvalidArgument(f"{url!r}: the only option is synchronous=full or synchronous=normal")
    return SqliteStore(path[1:], synchronous=synchronous.upper(), create=create)
