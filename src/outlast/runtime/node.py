"""The node: hosts runs, takes their turns, has them committed, and lets effects leave after that.

Theory of operation
===================
A hosted run has an inbox. Whoever has an input for it (an attempt that ended, an alarm, mail) puts it there and
calls `wake`. Runs that were woken stand in one line; `_tick`, one callback of the event loop, takes a turn of each
and hands all commits to the committer together. A turn is plain Python without awaits (see `engine.decide`).

    inbox --take_turn--> Decision --Commit--> store --COMMITTED--> effects: attempts, alarms, answers
                             |                  |
                        the turn raises      FENCED / unknown / failed
                             v                  v
                           park            look at the row: mine: load again; not mine: drop

What always holds:
- *Persist, then tell.* Nothing that a decision causes leaves before its commit has been answered.
- One commit per run is on its way at a time; inputs that come meanwhile wait, and share the next.
- The state of a run in memory is that of the journal plus at most the one turn on its way. When that turn is lost,
  the state is thrown away and loaded anew: it is never repaired.
- A run leaves memory only by a commit (closed, released) or because the store says that another node has it.

If the process dies at any point, what is committed is in the journal, and what is not had no effect outside but
attempts that will be counted as lost. Whoever claims the run goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar

import msgspec

from outlast.engine.decide import Decision, begin, close_with_mail, first_turn, resume_work, take_turn
from outlast.engine.replay import replay
from outlast.engine.run import RunState
from outlast.model.errors import Busy, CommitUnknown, InternalError, OutlastError, StoreUnavailable
from outlast.model.events import (
    HistoryEvent,
    TerminalEvent,
    WorkflowExecutionCancelled,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionStarted,
    WorkflowExecutionTerminated,
    decode_events,
    encode_events,
)
from outlast.model.ids import ActivityId, MessageId, NodeId, RunId, TurnId, turn_id
from outlast.model.inputs import AttemptFailed, AttemptLost, AttemptSucceeded, Input, decode_message, encode_message
from outlast.runtime.alarms import Alarms
from outlast.runtime.attempts import Attempts
from outlast.runtime.committer import MAX_PAUSE_S, PAUSE_S, Committer, Entry, Outcome
from outlast.runtime.hosted import Hosted, Stage
from outlast.runtime.ports import AttemptEnd, Clock, Entropy, Host, encode_attempt
from outlast.store.api import (
    Answer,
    Claimed,
    Commit,
    Fence,
    JournalRow,
    Mail,
    NewMail,
    NewRun,
    NewTask,
    Release,
    RunRow,
    RunStatus,
    Store,
)

T = TypeVar("T")

logger = logging.getLogger("outlast")

INPUTS_PER_TURN = 500
"""Inputs of one run in one turn. It bounds how long one turn keeps the others waiting (about 10 ms), and its size."""

TURNS_PER_TICK = 32
"""Turns between two hand-overs to the store. Measured at 64 runs: the store works on one half while the node
takes the turns of the other."""

SUSPECT_CLAIMS = 2
"""Claims without a commit, from which on a run is perhaps the one that kills whoever loads it."""

CLAIMS_BEFORE_QUARANTINE = 3
"""Deaths of a process right after it took a run, after which the run is suspected of having caused them."""

MAX_BACKOFF_S = 60.0
"""A run whose turns fail is tried again at least this often, so that a repaired environment is noticed."""

GIVE_BACK_TRIES = 5
"""A node that stops takes mail which comes at that moment, and tries again to give the run back; but not for ever."""

STATUS_OF_OUTCOME = {
    WorkflowExecutionCompleted: RunStatus.COMPLETED,
    WorkflowExecutionFailed: RunStatus.FAILED,
    WorkflowExecutionCancelled: RunStatus.CANCELLED,
    WorkflowExecutionTerminated: RunStatus.TERMINATED,
}


class _NoProgram:
    """In place of a program that could not be made."""

    def feed(self, event: object, at_us: int, *, replaying: bool) -> NoReturn:
        raise InternalError("a run without a program was given an event")

    def whereabouts(self) -> str:
        return ""

    def close(self) -> None:
        pass


NO_PROGRAM = _NoProgram()


class Quarantined(OutlastError):
    """A run that seems to kill whoever takes it is left alone for a while, and tried again with growing pauses."""


_Attempted: TypeAlias = tuple[ActivityId, int]
"""An activity and the number of an attempt."""


def _reported(mail: Iterable[Mail]) -> dict[RunId, list[_Attempted]]:
    """The attempts whose ends wait in mailboxes. What this release cannot read is left out here as everywhere."""
    found: dict[RunId, list[_Attempted]] = {}
    for item in mail:
        with contextlib.suppress(msgspec.DecodeError):
            message = decode_message(item.body)
            if isinstance(message, AttemptSucceeded | AttemptFailed | AttemptLost):
                found.setdefault(item.run_id, []).append((message.activity_id, message.attempt))
    return found


def _mark_reported(hosted: Hosted, reported: Iterable[_Attempted]) -> None:
    """Attempts whose ends wait in the mailbox are neither lost nor to be begun again."""
    for activity_id, attempt in reported:
        pending = hosted.state.activities.get(activity_id)
        if pending is not None and pending.attempt == attempt:
            hosted.remote.add(activity_id)


def _in_quarantine(row: RunRow, now_us: int) -> bool:
    waits = row.wake_at_us is not None and row.wake_at_us > now_us
    return waits and row.error is not None and Quarantined.__name__ in row.error.partition(":")[0]


def _is_awaited(state: RunState, end: AttemptEnd) -> bool:
    pending = state.activities.get(end.activity_id)
    return pending is not None and pending.attempt == end.attempt


def _history(rows: Iterable[JournalRow]) -> list[HistoryEvent]:
    return [
        HistoryEvent(journal.first_event + index, journal.at_us, event)
        for journal in rows
        for index, event in enumerate(decode_events(journal.events))
    ]


_End: TypeAlias = AttemptSucceeded | AttemptFailed | AttemptLost


def end_id(end: _End) -> MessageId:
    """Under which the end of an attempt goes through a mailbox: the same, however often it is sent."""
    return MessageId(f"activity/{end.activity_id}/{end.attempt}")


class Parked(msgspec.Struct, frozen=True):
    """A run whose turn failed: told to whoever waits for it in this process."""

    run_id: RunId
    error: BaseException


class Node:
    """Hosts runs for one worker. All methods belong to the event loop on which it was made."""

    def __init__(
        self, node_id: NodeId, store: Store, host: Host, clock: Clock, entropy: Entropy, *, attempt_slots: int
    ) -> None:
        self.node_id = node_id
        self.host = host
        self.clock = clock
        self.entropy = entropy
        self.hosted: dict[RunId, Hosted] = {}
        self.on_closed: Callable[[RunId, TerminalEvent], None] = lambda run_id, outcome: None
        """Called after the commit that closed a hosted run."""
        self.on_parked: Callable[[Parked], None] = lambda parked: None
        self.on_left: Callable[[RunId], None] = lambda run_id: None
        """Called when a run leaves this node's memory, for whatever reason."""
        self.on_mail_sent: Callable[[], None] = lambda: None
        """Called when this node has put mail into a mailbox, perhaps into one of its own."""
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._committer = Committer(store)
        self._alarms = Alarms(clock, self._loop)
        self.attempts = Attempts(host, self._loop, attempt_slots)
        self._line: deque[Hosted] = deque()
        self._tick_is_set = False
        self._turns = 0
        self._looks: set[asyncio.Task[None]] = set()
        self._stopping = False

    # --- inputs -----------------------------------------------------------------------------------------------------

    def put(self, hosted: Hosted, item: Input) -> None:
        if hosted.stage is not Stage.GONE:
            hosted.inbox.append(item)
            self._wake(hosted)

    def put_mail(self, mail: Iterable[Mail]) -> None:
        """Mail for hosted runs; what is here already is left out. Mail that this release cannot read is left where
        it is, for a newer node."""
        for item in mail:
            hosted = self.hosted.get(item.run_id)
            if hosted is None or item.mail_id in hosted.mail_ids:
                continue
            try:
                message = decode_message(item.body)
            except msgspec.DecodeError as error:
                logger.error("message %s to run %s cannot be read (%s)", item.message_id, item.run_id, error)
                hosted.mail_ids.add(item.mail_id)  # said once, not in every round
                continue
            hosted.mail_ids.add(item.mail_id)
            hosted.mail.append((item.mail_id, message))
            self._wake(hosted)

    def _wake(self, hosted: Hosted) -> None:
        if hosted.stage is Stage.IDLE and not hosted.ready:
            hosted.ready = True
            self._line.append(hosted)
            self._set_tick()

    def _set_tick(self) -> None:
        if not self._tick_is_set:
            self._tick_is_set = True
            self._loop.call_soon(self._tick)

    # --- turns ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_is_set = False
        entries: list[Entry] = []
        for _ in range(min(len(self._line), TURNS_PER_TICK)):
            hosted = self._line.popleft()
            hosted.ready = False
            if hosted.stage is Stage.IDLE and (hosted.inbox or hosted.mail):
                entry = self._turn(hosted)
                if entry is not None:
                    entries.append(entry)
        if entries:
            self._committer.submit(entries)
            self._committer.flush()
        if self._line:
            self._set_tick()

    def _turn(self, hosted: Hosted) -> Entry | None:
        """Take one turn of a run. None if there is nothing to write."""
        mail = hosted.mail
        inputs: list[Input] = hosted.inbox
        if mail:
            inputs = [message for _, message in mail]
            inputs += hosted.inbox
        if len(inputs) > INPUTS_PER_TURN:
            inputs = inputs[:INPUTS_PER_TURN]
        first_event = hosted.state.next_event
        try:
            decision = take_turn(hosted.state, hosted.program, inputs, self.clock.now_us())
            if decision.outcome is not None and decision.taken < len(mail):
                close_with_mail(hosted.state, decision, [message for _, message in mail[decision.taken :]])
                decision.taken = len(mail)
            return self._entry(hosted, decision)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            return self._park(hosted, first_event, error)

    def _entry(self, hosted: Hosted, decision: Decision) -> Entry | None:
        """Turn a decision into a commit, and take what it used from the inbox."""
        mail = hosted.mail
        consumed: tuple[int, ...] = ()
        if mail:
            consumed = tuple(mail_id for mail_id, _ in mail[: decision.taken])
            hosted.mail = mail[len(consumed) :]
        taken = decision.taken - len(consumed)
        hosted.inbox = hosted.inbox[taken:] if taken < len(hosted.inbox) else []
        if not decision.events and not consumed:
            self._effects(hosted, decision)
            self._rest(hosted)
            return None
        return self._submit(hosted, self._commit(hosted, decision, consumed), decision)

    def _commit(
        self, hosted: Hosted, decision: Decision, consumed: tuple[int, ...], create: NewRun | None = None
    ) -> Commit:
        events = decision.events
        add_tasks: tuple[NewTask, ...] = ()
        drop_tasks: tuple[ActivityId, ...] = ()
        if decision.dispatch:
            add_tasks = self._remote_tasks(hosted, decision)
        if hosted.remote:
            drop_tasks = self._ended_tasks(hosted)
        outcome = decision.outcome
        return Commit(
            hosted.state.run_id,
            self._next_turn_id(),
            decision.at_us,
            encode_events(events) if events else b"",
            len(events),
            create,
            None if create is not None else Fence(self.node_id, decision.first_event),
            None if outcome is None else STATUS_OF_OUTCOME[type(outcome)],
            None,
            consumed,
            add_tasks,
            drop_tasks,
        )

    def _next_turn_id(self) -> TurnId:
        self._turns += 1
        return turn_id(self.node_id, self._turns)

    def _is_local(self, attempt_queue: str | None, activity: str) -> bool:
        return (attempt_queue is None or attempt_queue in self.host.queues) and self.host.hosts_activity(activity)

    def _remote_tasks(self, hosted: Hosted, decision: Decision) -> tuple[NewTask, ...]:
        """Attempts for other nodes: rows that are written with the decision."""
        tasks: list[NewTask] = []
        local: list[ActivityId] = []
        for activity_id in decision.dispatch:
            pending = hosted.state.activities[activity_id]
            if activity_id not in hosted.remote and self._is_local(pending.scheduled.queue, pending.scheduled.activity):
                local.append(activity_id)
                continue
            attempt = hosted.attempt(activity_id, pending)
            if attempt.queue in self.host.queues and attempt.attempt == 1:
                logger.warning(
                    "activity %s of %s/%s is not hosted by this worker; it waits for one that hosts it on queue %r",
                    attempt.activity, attempt.workflow, attempt.workflow_id, attempt.queue,
                )  # fmt: skip
            tasks.append(
                NewTask(
                    activity_id,
                    attempt.activity,
                    attempt.queue,
                    attempt.attempt,
                    pending.not_before_us,
                    encode_attempt(attempt),
                )
            )
            hosted.remote.add(activity_id)
        decision.dispatch = local
        return tuple(tasks)

    def _ended_tasks(self, hosted: Hosted) -> tuple[ActivityId, ...]:
        ended = tuple(each for each in hosted.remote if each not in hosted.state.activities)
        hosted.remote.difference_update(ended)
        return ended

    # --- after the commit -------------------------------------------------------------------------------------------

    def _submit(self, hosted: Hosted, commit: Commit, decision: Decision | None) -> Entry:
        """An entry for the committer. Without a decision, the commit only releases the run."""
        hosted.stage = Stage.COMMITTING
        return Entry(commit, partial(self._answered, hosted, commit, decision))

    def _answered(self, hosted: Hosted, commit: Commit, decision: Decision | None, outcome: Outcome) -> None:
        if hosted.stage is Stage.GONE:
            return
        if outcome is Answer.COMMITTED:
            self._committed(hosted, commit, decision)
            return
        hosted.stage = Stage.LOOKING
        self.background(self._not_committed(hosted, commit, decision, outcome))

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._looks.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._looks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("work of the node failed; please report this bug", exc_info=error)

    async def _not_committed(self, hosted: Hosted, commit: Commit, decision: Decision | None, outcome: Outcome) -> None:
        """Mail came in between; or another node has the run; or it is not known what was written; or it failed."""
        run_id = hosted.run_id
        mail: list[Mail] = []
        failed = isinstance(outcome, BaseException) and not isinstance(outcome, CommitUnknown)
        if failed and decision is None:  # not even its release can be written
            if self._stopping:
                self._leave(hosted)
                return
            await asyncio.sleep(min(PAUSE_S * 2.0 ** min(hosted.failures, 10), MAX_PAUSE_S))
        if outcome is Answer.MAIL_WAITING:
            mail = await self.patiently(lambda: self._store.mail_for([run_id]))
        row = await self.patiently(lambda: self._store.run(run_id))
        if hosted.stage is not Stage.LOOKING:
            return
        if row is not None and row.turn_id == commit.turn_id:
            self._committed(hosted, commit, decision)
        elif row is None or row.status is not RunStatus.OPEN or row.owner != self.node_id:
            logger.warning("run %s was taken over by another node", run_id)
            self._leave(hosted)
        elif isinstance(outcome, BaseException) and failed:
            self._submit_park(hosted, row.next_event, outcome)
        elif commit.fence is None or row.next_event != commit.fence.next_event:
            # The database was set back under us (a restore, a standby that lagged): what it says is what counts.
            self._leave(hosted)
            if not self._stopping:
                await self.adopt([Claimed(row, lost=True)])
        elif mail and decision is None:
            self._rest(hosted)
            self.put_mail(mail)
        else:
            # Nothing of it was written and the run is still ours, so the same decision still holds.
            try:
                if decision is not None and decision.outcome is not None:
                    commit = self._with_mail(hosted, commit, decision, mail)
            except msgspec.DecodeError as error:  # from a newer release: a newer node has to close it
                self._submit_park(hosted, row.next_event, error)
            else:
                self._committer.submit([self._submit(hosted, commit, decision)])

    def _with_mail(self, hosted: Hosted, commit: Commit, decision: Decision, mail: Sequence[Mail]) -> Commit:
        """The commit that closes a run, with the mail that came while it closed put into its history."""
        unseen = [each for each in mail if each.mail_id not in commit.consume]
        close_with_mail(hosted.state, decision, [decode_message(each.body) for each in unseen])
        return msgspec.structs.replace(
            commit,
            events=encode_events(decision.events),
            count=len(decision.events),
            consume=commit.consume + tuple(each.mail_id for each in unseen),
        )

    def _committed(self, hosted: Hosted, commit: Commit, decision: Decision | None) -> None:
        if decision is None:
            self._leave(hosted)
            if hosted.error is not None:
                self.on_parked(Parked(hosted.run_id, hosted.error))
            return
        hosted.failures = 0
        if hosted.ends:
            self._forget_ends(hosted)
        if commit.consume:
            hosted.mail_ids.difference_update(commit.consume)
        if decision.outcome is None:
            self._effects(hosted, decision)
            self._rest(hosted)
        else:
            self.on_closed(hosted.run_id, decision.outcome)
            self._leave(hosted)

    def _forget_ends(self, hosted: Hosted) -> None:
        """Those that the commit has put into the history. Mostly that is all of them."""
        ends = hosted.ends
        if hosted.state.activities.keys().isdisjoint(ends):
            ends.clear()
        else:
            hosted.ends = {key: end for key, end in ends.items() if _is_awaited(hosted.state, end)}

    def _rest(self, hosted: Hosted) -> None:
        hosted.stage = Stage.IDLE
        if hosted.inbox or hosted.mail:
            self._wake(hosted)
        else:
            hosted.idle_since = self.clock.monotonic()

    def _effects(self, hosted: Hosted, decision: Decision) -> None:
        for activity_id in decision.stop:
            self.attempts.stop(hosted.run_id, activity_id)
            hosted.running.discard(activity_id)
        for activity_id in decision.dispatch:
            pending = hosted.state.activities.get(activity_id)
            if pending is None:
                continue
            hosted.running.add(activity_id)
            if pending.not_before_us <= decision.at_us:
                self._dispatch(hosted, activity_id, pending.attempt)
            else:
                self._alarms.set(pending.not_before_us, partial(self._dispatch, hosted, activity_id, pending.attempt))
        for at_us, item in decision.alarms:
            self._alarms.set(at_us, partial(self.put, hosted, item))

    def _dispatch(self, hosted: Hosted, activity_id: ActivityId, attempt: int) -> None:
        if hosted.stage is Stage.GONE or self._stopping:
            return
        pending = hosted.state.activities.get(activity_id)
        if pending is not None and pending.attempt == attempt:
            self.attempts.start(hosted.attempt(activity_id, pending), partial(self._attempt_ended, hosted))

    def _attempt_ended(self, hosted: Hosted, end: AttemptEnd) -> None:
        hosted.running.discard(end.activity_id)
        hosted.ends[end.activity_id] = end
        self.put(hosted, end)

    def _leave(self, hosted: Hosted) -> None:
        """The run leaves memory. Attempts that still run for it are stopped: what they report would be dropped."""
        if hosted.stage is Stage.GONE:
            return
        hosted.stage = Stage.GONE
        if self.hosted.get(hosted.run_id) is hosted:
            del self.hosted[hosted.run_id]
        for activity_id in hosted.running:
            self.attempts.stop(hosted.run_id, activity_id)
        hosted.running.clear()
        hosted.inbox.clear()
        hosted.mail.clear()
        self.on_left(hosted.run_id)
        try:
            hosted.program.close()
        except Exception:
            logger.exception("unwinding the code of run %s failed", hosted.run_id)

    # --- when a turn or a commit fails ------------------------------------------------------------------------------

    def _park(self, hosted: Hosted, first_event: int, error: BaseException) -> Entry | None:
        """The turn failed: nothing of it is written. Give the run back with the error, to be tried again later."""
        started = hosted.state.started
        name = hosted.run_id if started is None else f"{started.workflow}/{started.workflow_id}"
        logger.error("run %s is parked, its turn failed: %s", name, error, exc_info=error)
        hosted.failures += 1
        backoff_s = min(2.0 ** min(hosted.failures, 10) / 2, MAX_BACKOFF_S)
        now_us = self.clock.now_us()
        text = "".join(traceback.format_exception_only(error)).strip()
        hosted.error = error
        release = Release(now_us + int(backoff_s * 1e6), text)
        entry = self._submit(hosted, self._release(hosted, first_event, now_us, release), None)
        ends = self._ends_of(hosted)
        if not ends:
            return entry
        self.background(self._keep_ends(hosted.run_id, ends, entry))
        return None

    def _submit_park(self, hosted: Hosted, first_event: int, error: BaseException) -> None:
        entry = self._park(hosted, first_event, error)
        if entry is not None:
            self._committer.submit([entry])

    def _ends_of(self, hosted: Hosted) -> list[_End]:
        """What is known of attempts and is not in the history: how they ended, or that they are lost with the run."""
        ends: list[_End] = [*hosted.ends.values()]
        ends += [item for item in hosted.inbox if isinstance(item, AttemptLost)]
        for activity_id in hosted.running:
            attempt = self.attempts.begun_number(hosted.run_id, activity_id)
            if attempt is not None:
                self.attempts.stop(hosted.run_id, activity_id)
                ends.append(AttemptLost(activity_id, attempt, "its run was parked", self.entropy.jitter()))
        return ends

    async def _keep_ends(self, run_id: RunId, ends: list[_End], entry: Entry) -> None:
        """Put them into the run's mailbox, and only then release it."""
        now_us = self.clock.now_us()
        mail = [NewMail(run_id, end_id(end), now_us, encode_message(end)) for end in ends]
        try:
            await self.patiently(lambda: self._store.send(mail))
        finally:
            self._committer.submit([entry])

    def _release(self, hosted: Hosted, next_event: int, now_us: int, release: Release) -> Commit:
        fence = Fence(self.node_id, next_event)
        return Commit(hosted.run_id, self._next_turn_id(), now_us, fence=fence, release=release)

    # --- runs come ------------------------------------------------------------------------------------------------

    async def start(self, run_id: RunId, new: NewRun, started: WorkflowExecutionStarted) -> Answer:
        """Create a run that this node hosts, with its first turn in the same commit.

        COMMITTED: it runs. ID_IN_USE: nothing was written. Raises what its first turn raises.
        """
        now_us = self.clock.now_us()
        state = RunState(run_id)
        hosted = Hosted(new.namespace, state, self.host.program(started, run_id, new.namespace, now_us))
        try:
            decision = begin(state, hosted.program, started, now_us)
        except BaseException:
            hosted.program.close()
            raise
        commit = self._commit(hosted, decision, (), create=new)
        hosted.stage = Stage.COMMITTING
        self.hosted[run_id] = hosted
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self._committer.submit([Entry(commit, partial(self._created, hosted, commit, decision, answered))])
        return await answered

    def _created(
        self, hosted: Hosted, commit: Commit, decision: Decision, answered: asyncio.Future[Answer], outcome: Outcome
    ) -> None:
        """The commit that creates a run has its outcome. Nothing here depends on the starter, who may have gone."""
        if isinstance(outcome, CommitUnknown):
            self.background(self._look_for_created(hosted, commit, decision, answered, outcome))
            return
        if outcome is Answer.COMMITTED:
            self._answered(hosted, commit, decision, outcome)
        else:
            self._leave(hosted)
        if answered.done():
            return
        if isinstance(outcome, BaseException):
            answered.set_exception(outcome)
        else:
            answered.set_result(outcome)

    async def _look_for_created(
        self,
        hosted: Hosted,
        commit: Commit,
        decision: Decision,
        answered: asyncio.Future[Answer],
        unknown: CommitUnknown,
    ) -> None:
        row = await self.patiently(lambda: self._store.run(hosted.run_id))
        if row is None and not answered.done():
            answered.set_exception(unknown)
        elif row is not None and not answered.done():
            answered.set_result(Answer.COMMITTED)
        if hosted.stage is Stage.GONE:
            return
        if row is not None and row.turn_id == commit.turn_id:
            self._committed(hosted, commit, decision)
        else:
            self._leave(hosted)

    async def adopt(self, claimed: Sequence[Claimed]) -> None:
        """Load runs that the store says are this node's, and go on with them."""
        if not claimed:
            return
        for each in claimed:
            hosted = self.hosted.get(each.run.run_id)
            if hosted is not None:
                # It was free, so its release was written, though the answer to that is still on its way.
                self._leave(hosted)
        run_ids = [each.run.run_id for each in claimed]
        try:
            histories = await self.patiently(lambda: self._store.histories(run_ids))
            # Tasks before mail: a task whose outcome is delivered in between is seen twice rather than never.
            tasks = await self.patiently(lambda: self._store.tasks_of(run_ids))
            mail = await self.patiently(lambda: self._store.mail_for(run_ids))
        except Exception as error:
            await self._adopt_singly(claimed, error)
            return
        reported = _reported(mail)
        for each in self._by_suspicion(claimed):
            run_id = each.run.run_id
            if run_id not in self.hosted:
                entry = self._load(each, histories.get(run_id, []), tasks.get(run_id, []), reported.get(run_id, ()))
                if entry is not None:
                    self._committer.submit([entry])
                if each.run.claims >= SUSPECT_CLAIMS:
                    await self._progress_of(run_id)
                else:
                    await asyncio.sleep(0)  # many runs are loaded while others want their turns
        self.put_mail(mail)

    def _by_suspicion(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """Those first whose last claim led to something; then the others, in no particular order.

        If one of them kills the process, those before it have made progress by then and are suspects no more. In a
        fixed order the same ones would come after it every time, and share its quarantine for ever.
        """
        suspects = [each for each in claimed if each.run.claims >= SUSPECT_CLAIMS]
        innocent = [each for each in claimed if each.run.claims < SUSPECT_CLAIMS]
        return innocent + sorted(suspects, key=lambda each: self.entropy.jitter())

    async def _progress_of(self, run_id: RunId) -> None:
        """Until what this run's loading led to is on disk: before the next suspect may kill the process."""
        while (hosted := self.hosted.get(run_id)) is not None and hosted.stage is not Stage.IDLE:
            await asyncio.sleep(0.001)

    async def _adopt_singly(self, claimed: Sequence[Claimed], error: Exception) -> None:
        """Reading failed in a way that waiting does not cure: the run that causes it is parked, the others go on."""
        if len(claimed) > 1:
            for each in claimed:
                await self.adopt([each])
            return
        row = claimed[0].run
        hosted = Hosted(row.namespace, RunState(row.run_id), NO_PROGRAM)
        hosted.failures = max(0, row.claims - 1)
        self.hosted[row.run_id] = hosted
        self._submit_park(hosted, row.next_event, error)

    async def patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """Do what must be done before a run can go on, however long the database does not answer.

        Only for what may be done twice: reading, and deliveries, of which the second finds nothing to do.
        """
        pause_s = PAUSE_S
        while True:
            try:
                return await read()
            except (Busy, StoreUnavailable, CommitUnknown) as error:
                logger.warning("the database does not answer (%s); trying again in %.2f s", error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MAX_PAUSE_S)

    def _load(
        self, claimed: Claimed, rows: list[JournalRow], tasks: list[ActivityId], reported: Iterable[_Attempted]
    ) -> Entry | None:
        """Fold and replay a history, and take what follows from it: the first turn, or the loss of attempts."""
        row = claimed.run
        now_us = self.clock.now_us()
        hosted = Hosted(row.namespace, RunState(row.run_id), NO_PROGRAM)
        hosted.failures = max(0, row.claims - 1)
        hosted.remote.update(tasks)
        self.hosted[row.run_id] = hosted
        try:
            if _in_quarantine(row, now_us):
                # Claimed because a new worker takes whatever is parked. New code may help it, but not so soon.
                release = Release(row.wake_at_us, row.error)
                return self._submit(hosted, self._release(hosted, row.next_event, now_us, release), None)
            if claimed.lost and row.claims > CLAIMS_BEFORE_QUARANTINE:
                raise Quarantined(
                    f"the last {row.claims - 1} processes that took this run died before it made progress"
                )
            return self._entry(hosted, self._recall(hosted, claimed, rows, reported, now_us))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if claimed.lost:  # whoever claims it next is not told any more that it was taken from a dead node
                self._recall_lost(hosted, rows, reported, now_us)
            return self._park(hosted, row.next_event, error)

    def _recall(
        self,
        hosted: Hosted,
        claimed: Claimed,
        rows: list[JournalRow],
        reported: Iterable[_Attempted],
        now_us: int,
    ) -> Decision:
        state, row = hosted.state, claimed.run
        history = _history(rows)
        started = history[0].event
        assert isinstance(started, WorkflowExecutionStarted)
        hosted.program = self.host.program(started, row.run_id, row.namespace, history[0].at_us)
        replay(state, hosted.program, history)
        if state.next_event == 2:
            return first_turn(state, hosted.program, now_us)
        _mark_reported(hosted, reported)
        lost = self._lost(hosted, now_us) if claimed.lost else []
        decision = take_turn(state, hosted.program, lost, now_us)
        decision.taken = 0  # they did not come through the inbox
        self._resume(hosted, decision)
        return decision

    def _resume(self, hosted: Hosted, decision: Decision) -> None:
        decision.dispatch.clear()
        decision.alarms.clear()
        resume_work(hosted.state, decision)
        decision.dispatch = [each for each in decision.dispatch if each not in hosted.remote]

    def _recall_lost(self, hosted: Hosted, rows: list[JournalRow], reported: Iterable[_Attempted], now_us: int) -> None:
        """The run cannot go on with this code. Fold its history without it, for the attempts that are lost."""
        hosted.state = RunState(hosted.run_id)
        try:
            for item in _history(rows):
                hosted.state.apply(item.event, item.at_us)
        except Exception:
            logger.exception("the history of run %s cannot be read", hosted.run_id)
            return
        _mark_reported(hosted, reported)
        hosted.inbox = self._lost(hosted, now_us)

    def _lost(self, hosted: Hosted, now_us: int) -> list[Input]:
        """Attempts that the dead owner may have been running: all that were due and are nobody else's task."""
        return [
            AttemptLost(activity_id, pending.attempt, "the process that ran it is gone", self.entropy.jitter())
            for activity_id, pending in hosted.state.activities.items()
            if pending.not_before_us <= now_us and activity_id not in hosted.remote
        ]

    # --- runs go ------------------------------------------------------------------------------------------------------

    def evict(self, hosted: Hosted) -> None:
        """Give back a run that only waits. If mail has come meanwhile, it stays."""
        if hosted.stage is not Stage.IDLE or hosted.inbox or hosted.mail or hosted.running:
            return
        self._committer.submit([self._release_entry(hosted)])

    def _release_entry(self, hosted: Hosted) -> Entry:
        release = Release(hosted.state.wake_at_us())
        commit = self._release(hosted, hosted.state.next_event, self.clock.now_us(), release)
        return self._submit(hosted, commit, None)

    async def stop(self) -> None:
        """Hand everything over: attempts that had begun are journaled as lost, and all runs are given back.

        Afterwards nothing of this node is on its way. What cannot be given back is taken over like after a crash.
        """
        self._stopping = True
        begun = {
            run_id: [each for each in hosted.running if self.attempts.begun(run_id, each)]
            for run_id, hosted in self.hosted.items()
        }
        await self.attempts.stop_all()
        self._alarms.clear()
        for run_id, activity_ids in begun.items():
            hosted = self.hosted.get(run_id)
            if hosted is not None:
                self._give_back(hosted, activity_ids)
        await self._settle()
        for _ in range(GIVE_BACK_TRIES):
            idle = [hosted for hosted in self.hosted.values() if hosted.stage is Stage.IDLE]
            if not idle:
                break
            self._committer.submit([self._release_entry(hosted) for hosted in idle])
            await self._settle()
        for hosted in list(self.hosted.values()):
            self._leave(hosted)

    def _give_back(self, hosted: Hosted, begun: list[ActivityId]) -> None:
        hosted.running.clear()
        for activity_id in begun:
            pending = hosted.state.activities.get(activity_id)
            if pending is not None:
                reason = "its worker was stopped"
                self.put(hosted, AttemptLost(activity_id, pending.attempt, reason, self.entropy.jitter()))

    async def _settle(self) -> None:
        """Until no turn waits and no commit is on its way."""
        while self._line or self._looks or any(each.stage is Stage.COMMITTING for each in self.hosted.values()):
            await self._committer.drain()
            await asyncio.sleep(0)
            if self._looks:
                await asyncio.wait(self._looks)

    def abandon(self) -> None:
        """Another node has declared this one dead: forget everything at once. Nothing of it could be committed."""
        self._stopping = True
        self._alarms.clear()
        self._committer.stop()  # what looks at its row because of that ends by itself: starters wait for the answer
        for hosted in list(self.hosted.values()):
            self._leave(hosted)
