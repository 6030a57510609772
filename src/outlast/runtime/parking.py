"""Parking: a run whose turn failed is given back with its error, and tried again after a growing pause.

Theory of operation
===================
A turn fails when the code raises what is no outcome of a run, when replay and history differ, or when its commit
cannot be written. Nothing of the turn counts. The run's state and program are thrown away, and a commit that appends
no event gives the run back: no owner, the error to be seen, due when the pause is over. Mail does not wake a parked
run, since it could not take any before its code or its environment has changed.

One thing must not be lost with the turn: how attempts have ended. An activity that has run must not run again for a
mistake in the workflow's code. So the ends that are known, and the losses, are put into the run's own mailbox first;
the run is released only when they are on disk, and whoever loads it next finds them there.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, NoReturn

import msgspec

from outlast.model.errors import InternalError, UsageError
from outlast.model.ids import RunId
from outlast.model.inputs import AttemptLost, encode_message
from outlast.runtime.attempts import AttemptOver, end_id
from outlast.runtime.committer import Entry
from outlast.runtime.hosted import Hosted
from outlast.runtime.patience import patiently
from outlast.store.api import Commit, Fence, NewMail, Release

if TYPE_CHECKING:
    from outlast.runtime.node import Node

logger = logging.getLogger("outlast")

MAX_BACKOFF_S = 60.0
"""A run whose turns fail is tried again at least this often, so that a repaired environment is noticed."""


class Parked(msgspec.Struct, frozen=True):
    """A run whose turn failed: told to whoever waits for it in this process."""

    run_id: RunId
    error: BaseException


class _NoProgram:
    """In place of a program that could not be made, or is not needed."""

    def feed(self, event: object, at_us: int, *, replaying: bool) -> NoReturn:
        raise InternalError("a run without a program was given an event")

    def refuse_update(self, update: str, arguments: object) -> NoReturn:
        raise InternalError("a run without a program was asked for an update")

    def answer_query(self, query: str, arguments: object) -> NoReturn:
        raise InternalError("a run without a program was asked something")

    def whereabouts(self) -> str:
        return ""

    def close(self) -> None:
        pass


NO_PROGRAM = _NoProgram()


def exited(error: SystemExit) -> UsageError:
    """What is told instead: a SystemExit that is raised in whoever waits for the run would end that program too."""
    told = UsageError(
        f"the workflow's code raised SystemExit({'' if error.code is None else repr(error.code)}), as sys.exit() does. "
        "A workflow cannot end its worker. To end the run, return, or raise an exception of another kind."
    )
    told.__cause__ = error
    return told


def park(node: Node, hosted: Hosted, first_event: int, error: BaseException) -> Entry | None:
    """The turn failed: nothing of it is written. None: the release follows when the ends of attempts are on disk."""
    if isinstance(error, SystemExit):
        error = exited(error)
    started = hosted.state.started
    name = hosted.run_id if started is None else f"{started.workflow}/{started.workflow_id}"
    logger.error("run %s is parked, its turn failed: %s", name, error, exc_info=error)
    hosted.failures += 1
    # Spread, so that a run which was only near when another killed its process is not due together with that again.
    spread = 1 - node.entropy.jitter() / 2
    backoff_s = min(2.0 ** min(hosted.failures, 10) / 2, MAX_BACKOFF_S) * spread
    text = "".join(traceback.format_exception_only(error)).strip()
    hosted.error = error
    release = Release(node.clock.now_us() + int(backoff_s * 1e6), text)
    entry = node.submit(hosted, release_of(node, hosted, first_event, release), None)
    ends = _ends_of(node, hosted)
    if not ends:
        return entry
    node.background(_keep_ends(node, hosted.run_id, ends, entry))
    return None


def submit_park(node: Node, hosted: Hosted, first_event: int, error: BaseException) -> None:
    """Park a run outside the node's round of turns."""
    entry = park(node, hosted, first_event, error)
    if entry is not None:
        node.committer.submit([entry])


def release_of(node: Node, hosted: Hosted, next_event: int, release: Release) -> Commit:
    fence = Fence(node.node_id, next_event)
    return Commit(hosted.run_id, node.next_turn_id(), node.clock.now_us(), fence=fence, release=release)


def _ends_of(node: Node, hosted: Hosted) -> list[AttemptOver]:
    """What is known of attempts and is not in the history: how they ended, or that they are lost with the run."""
    ends: list[AttemptOver] = [*hosted.ends.values()]
    ends += [item for item in hosted.inbox if isinstance(item, AttemptLost)]
    for activity_id in hosted.running:
        attempt = node.attempts.begun_number(hosted.run_id, activity_id)
        node.attempts.stop(hosted.run_id, activity_id)  # one that waits for a slot too: it must not begin any more
        if attempt is not None:
            ends.append(AttemptLost(activity_id, attempt, "its run was parked", node.entropy.jitter()))
    return ends


async def _keep_ends(node: Node, run_id: RunId, ends: list[AttemptOver], entry: Entry) -> None:
    """Put them into the run's mailbox, and only then release it."""
    now_us = node.clock.now_us()
    mail = [NewMail(run_id, end_id(end), now_us, encode_message(end), beyond_limit=True) for end in ends]
    try:
        await patiently(lambda: node.store.send(mail))
    finally:
        node.committer.submit([entry])
