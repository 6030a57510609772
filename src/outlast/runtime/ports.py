"""What the runtime needs from outside: a clock, entropy, and somebody who has the user's code.

Everything that could make two equal executions differ comes in through here, so that a simulator can give each node
a clock and a source of randomness of its own. Waiting comes from the event loop (`call_later`), which a simulator
replaces as a whole.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from outlast.engine.program import Program
from outlast.model.events import WorkflowExecutionStarted
from outlast.model.ids import ActivityId, Namespace, RunId, WorkflowId
from outlast.model.inputs import AttemptFailed, AttemptSucceeded
from outlast.model.payloads import Arguments
from outlast.model.policies import RetryPolicy


class Clock(Protocol):
    def now_us(self) -> int:
        """Microseconds since 1970 UTC: the database's clock. May be set back or forward."""
        ...

    def monotonic(self) -> float:
        """Seconds, never set back. Only differences mean anything."""
        ...


class Entropy(Protocol):
    def run_id(self, now_us: int) -> RunId: ...

    def token(self) -> str:
        """A name that nobody else will choose."""
        ...

    def jitter(self) -> float:
        """From [0, 1)."""
        ...


class SystemClock:
    """For SQLite, whose nodes share a machine: the system's clock is the database's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        return time.monotonic()


class SystemEntropy:
    def __init__(self) -> None:
        self._random = random.Random(os.urandom(32))

    def run_id(self, now_us: int) -> RunId:
        """A UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then the version, then random bits."""
        bits = self._random.getrandbits(74)
        value = (now_us // 1_000) << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | bits & (1 << 62) - 1
        return RunId(f"{value:032x}")

    def token(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def jitter(self) -> float:
        return self._random.random()


class Attempt(Struct, frozen=True, omit_defaults=True, gc=False):
    """One attempt of an activity: everything that whoever runs it needs. As JSON, the body of a task: published."""

    namespace: Namespace
    workflow: str
    workflow_id: WorkflowId
    run_id: RunId
    activity_id: ActivityId
    activity: str
    queue: str
    attempt: int
    scheduled_at_us: int
    arguments: Arguments
    retry: RetryPolicy
    start_to_close_us: int | None = None
    deadline_us: int | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Attempt)


def encode_attempt(attempt: Attempt) -> bytes:
    return _encoder.encode(attempt)


def decode_attempt(data: bytes) -> Attempt:
    return _decoder.decode(data)


AttemptEnd: TypeAlias = AttemptSucceeded | AttemptFailed


class Host(Protocol):
    """Who has the user's code: the SDK's worker. All of it is called on the node's event loop."""

    queues: tuple[str, ...]

    def workflow_names(self) -> Sequence[str]:
        """Workflow types it can build programs for, aliases included."""
        ...

    def activity_names(self) -> Sequence[str]: ...

    def hosts_activity(self, activity: str) -> bool: ...

    @property
    def threads(self) -> int:
        """How many activities that are plain functions can run at a time."""
        ...

    def needs_thread(self, activity: str) -> bool:
        """Whether it is a plain function. False for one that is not hosted here."""
        ...

    def program(self, started: WorkflowExecutionStarted, run_id: RunId, namespace: Namespace, at_us: int) -> Program:
        """A new program for a run that began at `at_us`. It has been fed nothing yet."""
        ...

    def run_attempt(self, attempt: Attempt) -> Coroutine[Any, Any, AttemptEnd]:
        """Run an attempt to its end. Whatever the user's code does is an AttemptFailed; the coroutine itself raises
        only CancelledError, when it is cancelled."""
        ...
