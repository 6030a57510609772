"""Replies: what a run answers to a query or an update. They leave after the commit of the turn that makes them.

Whoever asked from another process reads its reply in the database, as JSON; nodes of two releases share that during an
upgrade. Nothing rests on a reply: what an accepted update came to is in the history too.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from outlast.model.failures import Failure
from outlast.model.ids import MessageId, RunId
from outlast.model.payloads import NULL, Payload


class _Reply(Struct, frozen=True, omit_defaults=True, tag_field="type", gc=False):
    """Base of all replies; the tag is the class name."""

    message_id: MessageId
    """The message that this answers."""


class Answered(_Reply, frozen=True, tag=True):
    """To a query, or to an update that has come to its end."""

    result: Payload = NULL


class Failed(_Reply, frozen=True, tag=True):
    """The handler of the query or update raised."""

    failure: Failure


class Refused(_Reply, frozen=True, tag=True):
    """The update was not accepted, and is not recorded: no such update, wrong arguments, or the validator raised."""

    failure: Failure


class Accepted(_Reply, frozen=True, tag=True):
    """The update is recorded, and goes on. Another reply follows."""


class Recorded(_Reply, frozen=True, tag=True):
    """An update with this id came before, and has come to its end: what became of it is in the history."""


class Ended(_Reply, frozen=True, tag=True):
    """The run ended before it had answered."""


Reply: TypeAlias = Answered | Failed | Refused | Accepted | Recorded | Ended


def reply_id(run_id: RunId, message_id: MessageId) -> MessageId:
    """Under which id the store keeps a reply: users choose the ids of messages, and those of two runs may be equal."""
    return MessageId(f"{run_id}/{message_id}")


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def encode_reply(reply: Reply) -> bytes:
    return _encoder.encode(reply)


def decode_reply(data: bytes) -> Reply:
    """Raises msgspec.DecodeError if `data` is not a reply that this release knows."""
    return _decoder.decode(data)
