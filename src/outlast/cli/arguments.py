"""JSON from the command line: the arguments of workflows and of messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import click
import msgspec
from msgspec import Raw

from outlast.cli.errors import CallError
from outlast.model.payloads import Arguments, Payload

QUOTING = """A text needs quotes of its own inside those of the shell: '"order-1"'; an object: '{"id": 7}'."""

# Unknown options are taken as arguments, since a negative number looks like one.
NEGATIVE_NUMBERS: dict[str, Any] = {"ignore_unknown_options": True}

F = TypeVar("F", bound=Callable[..., Any])


def json_arguments(command: F) -> F:
    """`[JSON]...`, given to the command as `arguments`, and `--kwargs`, as `kwargs`. Needs NEGATIVE_NUMBERS."""
    command = click.option(
        "--kwargs", metavar="JSON", help="""Arguments by name, instead of by position: '{"amount": 7}'."""
    )(command)
    return click.argument("arguments", nargs=-1, metavar="[JSON]...")(command)


def parse_json(arguments: tuple[str, ...], kwargs: str | None) -> list[Any] | dict[str, Any]:
    """The arguments as JSON has them: by position, or by name."""
    for text in arguments:
        if text.startswith("--"):
            raise click.NoSuchOption(text, ctx=click.get_current_context())
    if kwargs is None:
        return [_parsed(text, f"argument {position}") for position, text in enumerate(arguments, 1)]
    if arguments:
        raise CallError("give the arguments by position or with --kwargs, not both ways at once")
    values: object = _parsed(kwargs, "--kwargs")
    if not isinstance(values, dict):
        raise CallError("--kwargs takes a JSON object: the arguments by their names. " + QUOTING)
    return cast("dict[str, Any]", values)


def message_arguments(arguments: tuple[str, ...], kwargs: str | None) -> Arguments:
    """The arguments of a message, as they were typed: whether they fit is for its handler to say, which is not here."""
    parse_json(arguments, kwargs)
    if kwargs is not None:
        by_name = msgspec.json.decode(kwargs, type=dict[str, Raw])
        return Arguments(kwargs={name: _payload(bytes(value)) for name, value in by_name.items()})
    return Arguments(tuple(_payload(text.encode()) for text in arguments))


def _payload(text: bytes) -> Payload:
    return Payload.from_json(msgspec.json.format(text, indent=-1))


def _parsed(text: str, what: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CallError(f"{what} is not JSON: {text} ({error}). {QUOTING}") from None
