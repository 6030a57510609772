"""`outlast tail`: a history as it grows, from any process that can open the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import click

from outlast.cli.errors import say
from outlast.cli.narration import Narrator
from outlast.cli.opening import find, look
from outlast.cli.options import common_options
from outlast.cli.times import on_the_clock
from outlast.model.events import HistoryEvent
from outlast.runtime.service import Service


@click.command
@click.argument("id_", metavar="ID")
@click.option(
    "--from",
    "from_",
    type=click.IntRange(min=1),
    default=1,
    metavar="POSITION",
    help="Begin with the event at this position, as `outlast history` numbers them.",
)
@common_options
def tail_command(id_: str, from_: int, db: str | None) -> None:
    """Follow the run with this ID (a workflow id or a run id): print what happened, and what happens, until it has
    ended. Times are UTC.

    Events are told as `outlast show` tells them, in the order in which they are recorded.
    """

    async def at(service: Service) -> None:
        row = await find(service, id_, db)
        narrator = Narrator()
        position = 1
        try:
            async with aclosing(service.follow(row.run_id)) as history:
                async for items in history:
                    before = max(0, from_ - position)
                    narrator.tell(items[:before])  # names that later events speak of
                    _print(narrator, items[before:], row.started_at_us)
                    position += len(items)
        except asyncio.CancelledError:
            say(f"the same command with --from {max(from_, position)} goes on from there")
            raise

    look(db, at)


def _print(narrator: Narrator, items: Sequence[HistoryEvent], started_at_us: int) -> None:
    lines = [f"[{on_the_clock(line.at_us, started_at_us)}] {line.text}" for line in narrator.tell(items)]
    if lines:
        click.echo("\n".join(lines))  # and flushes, for whoever reads a pipe
