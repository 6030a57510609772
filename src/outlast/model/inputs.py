"""Inputs: what can happen to a run. The owner takes them in turns; messages from other processes are inputs too,
written as JSON in the mailbox (a published format: nodes of two releases share it during an upgrade).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from outlast.model.failures import Failure
from outlast.model.ids import ActivityId, MessageId, TimerId
from outlast.model.payloads import NO_ARGUMENTS, Arguments, Payload


class _Input(Struct, frozen=True, omit_defaults=True, tag_field="type", gc=False):
    """Base of all inputs; the tag is the class name."""


class AttemptSucceeded(_Input, frozen=True, tag=True):
    activity_id: ActivityId
    attempt: int
    started_at_us: int
    result: Payload


class AttemptFailed(_Input, frozen=True, tag=True):
    activity_id: ActivityId
    attempt: int
    started_at_us: int
    failure: Failure
    jitter: float
    """Drawn from [0, 1) where the attempt ran, since the engine draws nothing."""


class AttemptLost(_Input, frozen=True, tag=True):
    """Nobody knows how the attempt ended: its process is gone."""

    activity_id: ActivityId
    attempt: int
    reason: str
    jitter: float


class ActivityDeadlinePassed(_Input, frozen=True, tag=True):
    """The schedule-to-close timeout ran out."""

    activity_id: ActivityId


class TimerDue(_Input, frozen=True, tag=True):
    timer_id: TimerId


class CancelRequested(_Input, frozen=True, tag=True):
    message_id: MessageId
    reason: str = ""


class TerminateRequested(_Input, frozen=True, tag=True):
    message_id: MessageId
    reason: str = ""


class SignalReceived(_Input, frozen=True, tag=True):
    """Something the run is told. The sender hears that it is on disk, and nothing else."""

    message_id: MessageId
    signal: str
    arguments: Arguments = NO_ARGUMENTS


class UpdateRequested(_Input, frozen=True, tag=True):
    """Something the run is asked to do, and to answer. The program may refuse it: then it leaves no trace."""

    message_id: MessageId
    update: str
    arguments: Arguments = NO_ARGUMENTS


class QueryRequested(_Input, frozen=True, tag=True):
    """Something the run is asked to tell. It changes nothing, and is not recorded."""

    message_id: MessageId
    query: str
    arguments: Arguments = NO_ARGUMENTS


Message: TypeAlias = (
    AttemptSucceeded
    | AttemptFailed
    | AttemptLost
    | CancelRequested
    | TerminateRequested
    | SignalReceived
    | UpdateRequested
    | QueryRequested
)
"""What may come through a mailbox."""

Input: TypeAlias = Message | ActivityDeadlinePassed | TimerDue

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode_message(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_message(data: bytes) -> Message:
    """Raises msgspec.DecodeError if `data` is not a message that this release knows."""
    return _decoder.decode(data)
