"""Loading: runs that the store has given to this node come into its memory, and go on.

Theory of operation
===================
A claim brings rows. Their histories, tasks and mail are read; each history is folded and replayed, and what follows
from it is committed: the first turn, or the loss of the attempts that a dead owner had begun. Then the run rests
among the hosted ones and takes its mail.

What can go wrong is the run's own code, and it must harm nobody else:
- Replay fails: the run is parked (see `parking`). For what it has lost its history is folded without its code.
- Somebody has asked to terminate the run: that needs no code, so it comes before everything else. The history is
  only folded, and the end is journaled; a run whose code diverges or kills its process can be ended like any other.
- Loading or running it kills the process. A claim raises `RunRow.claims`; a commit sets it back. One that is loaded
  and only waits has done no harm: that is put on record by a commit without events. So whoever is found with a claim
  that led to nothing, on a node that died, was just being loaded then, and is a *suspect*. Suspects are claimed
  alone, those with the fewest claims first, each when what the one before it led to is on disk (`adopt_suspects`):
  the one that kills is soon alone with its claims, and no other run shares its fate. Runs that are parked may kill
  too when they are tried again: they come last of their batch, one after the other. Who has outlived too many nodes
  is left alone for a while (quarantine), visibly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from outlast.engine.decide import Decision, first_turn, resume_work, take_turn
from outlast.engine.replay import replay
from outlast.engine.run import RunState
from outlast.model.errors import OutlastError
from outlast.model.events import HistoryEvent, WorkflowExecutionStarted, decode_events
from outlast.model.ids import ActivityId, RunId
from outlast.model.inputs import (
    AttemptFailed,
    AttemptLost,
    AttemptSucceeded,
    Message,
    TerminateRequested,
    decode_message,
)
from outlast.runtime.clock import APART_US
from outlast.runtime.committer import Entry, Outcome
from outlast.runtime.hosted import SOON_US, Hosted, Stage
from outlast.runtime.interrupts import interruptible
from outlast.runtime.parking import NO_PROGRAM, park, release_of, submit_park
from outlast.runtime.patience import patiently
from outlast.store.api import Claimed, JournalRow, Mail, Release, RunRow

if TYPE_CHECKING:
    from outlast.runtime.node import Node

logger = logging.getLogger("outlast")

SUSPECT_CLAIMS = 2
"""Claims without progress, the present one among them, from which on a run is loaded when no other is."""

CLAIMS_BEFORE_QUARANTINE = 3
"""Deaths of a process right after it took a run, after which the run is suspected of having caused them."""

EVENTS_AT_A_TIME = 20_000
"""Of the histories that are read at a time, unless a single one has more: some 10 MB."""

BUSY_S = 1.0
"""Who has made progress, and goes on for so long without a pause, is no killer; the others wait for it meanwhile."""

CLOCK_BEHIND_US = 1_000_000
"""More than nodes that read one clock can disagree by."""


class Quarantined(OutlastError):
    """A run that seems to kill whoever takes it is left alone for a while, and tried again with growing pauses."""


class _Found(NamedTuple):
    """What the store has of a claimed run."""

    claimed: Claimed
    rows: list[JournalRow]
    tasks: list[ActivityId]
    mail: list[Mail]


async def adopt(node: Node, claimed: Sequence[Claimed]) -> None:
    """Load runs that the store says are this node's, and go on with them."""
    for each in claimed:
        hosted = node.hosted.get(each.run.run_id)
        if hosted is not None:
            # It was free, so its release was written, though the answer to that is still on its way.
            node.leave(hosted)
    written: list[asyncio.Future[None]] = []
    for portion in _portions(_by_suspicion(node, claimed)):
        await _adopt_portion(node, portion, written)


def _portions(claimed: Iterable[Claimed]) -> Iterator[list[Claimed]]:
    """So many runs at a time as have histories of a bounded size together; at least one."""
    portion: list[Claimed] = []
    events = 0
    for each in claimed:
        if portion and events + each.run.next_event > EVENTS_AT_A_TIME:
            yield portion
            portion, events = [], 0
        portion.append(each)
        events += each.run.next_event
    if portion:
        yield portion


async def _adopt_portion(node: Node, claimed: Sequence[Claimed], written: list[asyncio.Future[None]]) -> None:
    """`written`: commits of those before, which a suspect waits for."""
    run_ids = [each.run.run_id for each in claimed]
    try:
        # Side by side: nobody else writes a history of ours.
        histories, (tasks, mail) = await asyncio.gather(
            patiently(lambda: node.store.histories(run_ids)), _tasks_and_mail(node, claimed)
        )
    except Exception as error:
        await _adopt_singly(node, claimed, error)
        return
    mail_of: dict[RunId, list[Mail]] = {}
    for item in mail:
        mail_of.setdefault(item.run_id, []).append(item)
    for each in claimed:
        run_id = each.run.run_id
        if run_id in node.hosted:
            continue
        if each.run.claims >= SUSPECT_CLAIMS and written:
            await asyncio.wait(written)
            written.clear()
        entry = _load(node, _Found(each, histories.pop(run_id, []), tasks.get(run_id, []), mail_of.get(run_id, [])))
        if entry is not None:
            written.append(asyncio.get_running_loop().create_future())
            node.committer.submit([Entry(entry.commit, partial(_written, written[-1], entry))])
        if each.run.claims >= SUSPECT_CLAIMS:
            node.put_mail(mail_of.get(run_id, ()))
            await _progress_of(node, run_id)
        else:
            await asyncio.sleep(0)  # many runs are loaded while others want their turns
    node.put_mail(mail)


async def _tasks_and_mail(node: Node, claimed: Sequence[Claimed]) -> tuple[dict[RunId, list[ActivityId]], list[Mail]]:
    """Tasks before mail: a task whose outcome is delivered in between is seen twice rather than never."""
    begun = [each.run.run_id for each in claimed if each.run.next_event > 2]  # the others have asked for nothing yet
    tasks = await patiently(lambda: node.store.tasks_of(begun)) if begun else {}
    return tasks, await patiently(lambda: node.store.mail_for([each.run.run_id for each in claimed]))


def _written(written: asyncio.Future[None], entry: Entry, outcome: Outcome) -> None:
    written.set_result(None)
    entry.done(outcome)


async def adopt_suspects(node: Node, claim: Callable[[], Awaitable[Sequence[Claimed]]]) -> bool:
    """Claim and load one suspect after the other, for a while: mail for others waits meanwhile. `claim` takes one, or
    none. Whether there may be more."""
    loop = asyncio.get_running_loop()
    until = loop.time() + BUSY_S
    while not node.stopping and (claimed := await claim()):
        await adopt(node, claimed)
        if loop.time() >= until:
            return True
    return False


async def _adopt_singly(node: Node, claimed: Sequence[Claimed], error: Exception) -> None:
    """Reading failed in a way that waiting does not cure: the run that causes it is parked, the others go on."""
    if len(claimed) > 1:
        for each in claimed:
            await adopt(node, [each])
        return
    row = claimed[0].run
    submit_park(node, _take_in(node, row), row.next_event, error)


# --- suspicion --------------------------------------------------------------------------------------------------------


def _by_suspicion(node: Node, claimed: Sequence[Claimed]) -> list[Claimed]:
    """Those first whose last claim led to something; then the others (they were parked), in no particular order.

    If one of them kills the process, those before it have made progress by then. In a fixed order the same ones would
    come after it every time.
    """
    suspects = [each for each in claimed if each.run.claims >= SUSPECT_CLAIMS]
    innocent = [each for each in claimed if each.run.claims < SUSPECT_CLAIMS]
    return innocent + sorted(suspects, key=lambda each: node.entropy.jitter())


async def _progress_of(node: Node, run_id: RunId) -> None:
    """Until what this run can do at once is on disk: before the next suspect may kill the process."""
    loop = asyncio.get_running_loop()
    until = loop.time() + BUSY_S
    while (hosted := node.hosted.get(run_id)) is not None and _has_work(node, hosted) and not node.stopping:
        if not hosted.failures and loop.time() >= until:
            return
        await asyncio.sleep(0.001)


def _has_work(node: Node, hosted: Hosted) -> bool:
    if hosted.stage is not Stage.IDLE or hosted.inbox or hosted.mail:
        return True
    now_us = node.clock.now_us()
    return any(timer.fires_at_us <= now_us for timer in hosted.state.timers.values())


def _is_cleared(hosted: Hosted, found: _Found, decision: Decision, now_us: int) -> bool:
    """It is loaded and has nothing to do for a while: that is worth a record, though nothing else is written.

    Not if it has something to do soon: perhaps it is just this that kills its process.
    """
    if decision.events or found.mail or decision.dispatch:
        return False
    wake_at_us = hosted.wake_at_us()
    return wake_at_us is None or wake_at_us > now_us + SOON_US


def _in_quarantine(row: RunRow, now_us: int) -> bool:
    waits = row.wake_at_us is not None and row.wake_at_us > now_us + APART_US
    return waits and row.error is not None and Quarantined.__name__ in row.error.partition(":")[0]


# --- one run ----------------------------------------------------------------------------------------------------------


def _take_in(node: Node, row: RunRow) -> Hosted:
    hosted = Hosted(row.namespace, RunState(row.run_id), NO_PROGRAM)
    hosted.failures = max(0, row.claims - 1)
    node.hosted[row.run_id] = hosted
    return hosted


def _load(node: Node, found: _Found) -> Entry | None:
    """Fold and replay a history, and take what follows from it: the first turn, or the loss of attempts."""
    claimed, row = found.claimed, found.claimed.run
    now_us = node.clock.now_us()
    hosted = _take_in(node, row)
    hosted.remote.update(found.tasks)
    messages = _readable(found.mail)
    try:
        if any(isinstance(message, TerminateRequested) for _, message in messages):
            _terminate(node, hosted, found, messages)
            return None
        if _in_quarantine(row, now_us):
            # Claimed because a new worker takes whatever is parked. New code may help it, but not so soon.
            release = Release(row.wake_at_us, row.error)
            return node.submit(hosted, release_of(node, hosted, row.next_event, release), None)
        if claimed.lost and row.claims > CLAIMS_BEFORE_QUARANTINE:
            raise Quarantined(f"the last {row.claims - 1} processes that took this run died before it made progress")
        decision = interruptible(_recall, node, hosted, found, messages, now_us)
        if _is_cleared(hosted, found, decision, now_us):
            return node.submit(hosted, node.commit(hosted, decision, ()), decision)
        return node.entry(hosted, decision)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if claimed.lost:  # whoever claims it next is not told any more that it was taken from a dead node
            _recall_lost(node, hosted, found, messages, now_us)
        return park(node, hosted, row.next_event, error)


def _terminate(node: Node, hosted: Hosted, found: _Found, messages: list[tuple[Mail, Message]]) -> None:
    """Have the next turn end the run: it needs no program, so the history is only folded.

    What else waits in the mailbox comes after the wish to terminate: nobody could take it any more, and so it gets
    into the history as unhandled.
    """
    _fold(hosted, found)
    messages.sort(key=lambda each: not isinstance(each[1], TerminateRequested))
    node.put_mail([item for item, _ in messages])


def _recall(
    node: Node, hosted: Hosted, found: _Found, messages: Iterable[tuple[Mail, Message]], now_us: int
) -> Decision:
    state, row = hosted.state, found.claimed.run
    history = _history(found.rows)
    started = history[0].event
    assert isinstance(started, WorkflowExecutionStarted)
    hosted.program = node.host.program(started, row.run_id, row.namespace, history[0].at_us)
    replay(state, hosted.program, history)
    if state.last_at_us > now_us + CLOCK_BEHIND_US:
        logger.warning(
            "the clock is %.1f s behind the last event of run %s: it was set back. Times in this run stand still "
            "until the clock has caught up, and timers that it starts before that fire late by as much.",
            (state.last_at_us - now_us) / 1e6, row.run_id,
        )  # fmt: skip
    if state.next_event == 2:
        return first_turn(state, hosted.program, now_us)
    _mark_reported(hosted, messages)
    lost = _lost(node, hosted, now_us) if found.claimed.lost else []
    hosted.ends.update((each.activity_id, each) for each in lost)
    decision = take_turn(state, hosted.program, lost, now_us)
    decision.taken = 0  # they did not come through the inbox
    _resume(hosted, decision)
    return decision


def _resume(hosted: Hosted, decision: Decision) -> None:
    decision.dispatch.clear()
    decision.alarms.clear()
    resume_work(hosted.state, decision)
    decision.dispatch = [each for each in decision.dispatch if each not in hosted.remote]


def _recall_lost(
    node: Node, hosted: Hosted, found: _Found, messages: Iterable[tuple[Mail, Message]], now_us: int
) -> None:
    """The run cannot go on with this code. Fold its history without it, for the attempts that are lost."""
    hosted.state = RunState(hosted.run_id)
    try:
        _fold(hosted, found)
    except Exception:
        logger.exception("the history of run %s cannot be read", hosted.run_id)
        return
    _mark_reported(hosted, messages)
    hosted.inbox = [*_lost(node, hosted, now_us)]


def _fold(hosted: Hosted, found: _Found) -> None:
    for item in _history(found.rows):
        hosted.state.apply(item.event, item.at_us)


def _lost(node: Node, hosted: Hosted, now_us: int) -> list[AttemptLost]:
    """Attempts that the dead owner may have been running: all that were due and are nobody else's task.

    Due by the clock of the dead owner, which perhaps was ahead of this one, or was read before the clock was set back:
    rather count one that had not begun than run one twice under the same number.
    """
    due_us = max(now_us, hosted.state.last_at_us) + CLOCK_BEHIND_US
    return [
        AttemptLost(activity_id, pending.attempt, "the process that ran it is gone", node.entropy.jitter())
        for activity_id, pending in hosted.state.activities.items()
        if pending.not_before_us <= due_us and activity_id not in hosted.remote
    ]


# --- what was read ----------------------------------------------------------------------------------------------------


def _history(rows: Iterable[JournalRow]) -> list[HistoryEvent]:
    return [
        HistoryEvent(journal.first_event + index, journal.at_us, event)
        for journal in rows
        for index, event in enumerate(decode_events(journal.events))
    ]


def _readable(mail: Iterable[Mail]) -> list[tuple[Mail, Message]]:
    """What this release cannot read is left out here as everywhere."""
    found: list[tuple[Mail, Message]] = []
    for item in mail:
        with contextlib.suppress(msgspec.DecodeError):
            found.append((item, decode_message(item.body)))
    return found


def _mark_reported(hosted: Hosted, messages: Iterable[tuple[Mail, Message]]) -> None:
    """Attempts whose ends wait in the mailbox are neither lost nor to be begun again."""
    for _, message in messages:
        if isinstance(message, AttemptSucceeded | AttemptFailed | AttemptLost):
            pending = hosted.state.activities.get(message.activity_id)
            if pending is not None and pending.attempt == message.attempt:
                hosted.remote.add(message.activity_id)
