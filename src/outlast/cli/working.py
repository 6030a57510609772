"""`outlast worker`: host the user's code until told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from types import ModuleType

import click

from outlast.cli.errors import OK, CallError, say
from outlast.cli.loading import load_module, parse_target
from outlast.cli.logs import log_to_stderr
from outlast.cli.options import common_options
from outlast.cli.stopping import end_without_stragglers, on_first_signal
from outlast.model.ids import DEFAULT_QUEUE
from outlast.sdk.client import connect, process_name
from outlast.sdk.registry import AnyDurable, Registry, companions
from outlast.sdk.url import default_url


@click.command
@click.argument("targets", nargs=-1, required=True, metavar="MODULE_OR_FILE...")
@click.option("--queue", "queues", multiple=True, metavar="Q", help=f"Repeatable. Default: {DEFAULT_QUEUE}.")
@common_options
@click.pass_obj
def worker_command(debug: bool, targets: tuple[str, ...], queues: tuple[str, ...], db: str | None) -> None:
    """Host workflows and activities until stopped with Ctrl-C or SIGTERM.

    What the modules or files have at their top level is hosted, and the activities that were declared with it. When
    stopped, the worker hands its runs over: they go on where another worker hosts them, or when it is started again.
    A second Ctrl-C ends it at once; nothing that is recorded is lost by that either.
    """
    modules = [_load(text) for text in targets]
    hosted = [*modules, *_beside(modules)]
    log_to_stderr("INFO", tracebacks=True)
    asyncio.run(_host(hosted, queues or (DEFAULT_QUEUE,), db))


def _load(text: str) -> ModuleType:
    target = parse_target(text)
    if target.name is not None:
        raise CallError(f"a worker hosts whole modules; write {target.module} instead of {text}")
    return load_module(target)


def _beside(modules: Sequence[ModuleType]) -> list[AnyDurable]:
    """Activities which the workflows of these modules may call, and that are defined elsewhere.

    Without them, a call of one that was imported as `payments.charge` would wait for ever for another worker.
    """
    given = Registry(*modules)
    known = set(given.activity_names())
    beside: dict[str, AnyDurable] = {}
    for workflow in given.workflows():
        for each in companions(workflow):
            if known.isdisjoint((each.name, *each.aliases)):
                beside.setdefault(each.name, each)
    return list(beside.values())


async def _host(hosted: Sequence[object], queues: tuple[str, ...], db: str | None) -> None:
    registry = Registry(*hosted)
    stopped = asyncio.Event()
    with on_first_signal(stopped.set, signal.SIGINT, signal.SIGTERM):
        async with connect(db) as client:
            async with client.worker(*hosted, queue=queues):
                click.echo(f"outlast worker {process_name()} hosts {_what(registry)} on {_where(queues, db)}")
                await stopped.wait()
                say("stopping; its runs are handed over (Ctrl-C again: at once)")
    say("stopped")
    end_without_stragglers(OK)


def _what(registry: Registry) -> str:
    parts: list[str] = []
    for noun, found in (("workflow", registry.workflows()), ("activity", registry.activities())):
        if found:
            plural = noun if len(found) == 1 else {"workflow": "workflows", "activity": "activities"}[noun]
            parts.append(f"{plural} {', '.join(sorted(each.name for each in found))}")
    return " and ".join(parts)


def _where(queues: tuple[str, ...], db: str | None) -> str:
    return f"queue{'s' if len(queues) > 1 else ''} {', '.join(queues)}, {db or default_url()}"
