"""Options that every command takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def common_options(command: F) -> F:
    """`--db URL`, given to the command as `db`; and `--debug`, which `main` looks for by itself."""
    command = click.option(
        "--db",
        metavar="URL",
        help="Database, for example sqlite:///orders.db (relative) or sqlite:////var/lib/orders.db (absolute). "
        "Default: OUTLAST_URL, else sqlite:///outlast.db.",
    )(command)
    return click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks of errors.")(command)
