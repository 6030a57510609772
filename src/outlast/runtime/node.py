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

How runs come into memory is in `loading`; how they leave it again in `handover` and, when a turn fails, in `parking`;
which attempts are run here and which by others, in `dispatch`. Those are functions that take the node; what they use
of it has no underscore.

*A commit of which nobody knows*: if the row shows its turn, it was written. If not, that is not the last word: the
database may still be at work on the first try, and finish it after the look. So the same commit is written again, which
waits for the first. COMMITTED: the first is refused if it still comes. FENCED (ID_IN_USE for a start): look again. That
holds for a commit without events too: the fence counts turns as well. A start that finds its workflow id taken by
another run is the exception: when that run ends, the first try may still create this one. Its starter is told that
nobody knows, and what comes late is found by its row (see `strays`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from outlast.engine.decide import Decision, begin, close_with_mail, take_turn
from outlast.engine.run import RunState
from outlast.model.errors import CommitUnknown
from outlast.model.events import (
    TerminalEvent,
    WorkflowExecutionCancelled,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionStarted,
    WorkflowExecutionTerminated,
    encode_events,
)
from outlast.model.ids import ActivityId, NodeId, RunId, TurnId, turn_id
from outlast.model.inputs import Input, QueryRequested, decode_message
from outlast.model.replies import Reply, encode_reply, reply_id
from outlast.runtime import dispatch, loading, parking
from outlast.runtime.alarms import Alarms, Due, NextAttempt
from outlast.runtime.attempts import AttemptOver, Attempts
from outlast.runtime.committer import Committer, Entry, Outcome
from outlast.runtime.hosted import Hosted, Stage
from outlast.runtime.interrupts import interruptible
from outlast.runtime.parking import Parked
from outlast.runtime.patience import MAX_PAUSE_S, PAUSE_S, patiently
from outlast.runtime.ports import AttemptEnd, Clock, Entropy, Host
from outlast.store.api import Answer, Claimed, Commit, Fence, IdReuse, Mail, NewReply, NewRun, NewTask, RunStatus, Store

logger = logging.getLogger("outlast")

INPUTS_PER_TURN = 500
"""Inputs of one run in one turn. It bounds how long one turn keeps the others waiting (about 10 ms), and its size."""

TURNS_PER_TICK = 32
"""Turns between two hand-overs to the store. Measured at 64 runs: the store works on one half while the node
takes the turns of the other."""

STATUS_OF_OUTCOME = {
    WorkflowExecutionCompleted: RunStatus.COMPLETED,
    WorkflowExecutionFailed: RunStatus.FAILED,
    WorkflowExecutionCancelled: RunStatus.CANCELLED,
    WorkflowExecutionTerminated: RunStatus.TERMINATED,
}


def _replies(hosted: Hosted, decision: Decision) -> tuple[NewReply, ...]:
    """Rows for whoever has asked from elsewhere."""
    return tuple(
        NewReply(reply_id(hosted.run_id, reply.message_id), encode_reply(reply))
        for reply in decision.replies.values()
        if reply.message_id not in hosted.asked_here
    )


def _is_awaited(state: RunState, end: AttemptOver) -> bool:
    pending = state.activities.get(end.activity_id)
    return pending is not None and pending.attempt == end.attempt


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
        self.on_reply: Callable[[RunId, Reply], None] = lambda run_id, reply: None
        """Called with each answer to a query or update, after the commit of the turn that made it."""
        self.on_left: Callable[[Hosted], None] = lambda hosted: None
        """Called when a run leaves this node's memory, for whatever reason."""
        self.on_late_start: Callable[[], None] = lambda: None
        """Called when a run may yet be created that this node owns and does not host."""
        self.on_mail_sent: Callable[[], None] = lambda: None
        """Called when this node has put mail into a mailbox, perhaps into one of its own."""
        self.store = store
        self._loop = asyncio.get_running_loop()
        self.committer = Committer(store)
        self.alarms = Alarms(clock, self._loop, self._alarm)
        self.attempts = Attempts(host, self._loop, attempt_slots)
        self.line: deque[Hosted] = deque()
        self._tick_is_set = False
        self._turns = 0
        self.looks: set[asyncio.Task[None]] = set()
        self.stopping = False

    # --- inputs -----------------------------------------------------------------------------------------------------

    def put(self, hosted: Hosted, item: Input) -> None:
        if hosted.stage is not Stage.GONE:
            hosted.inbox.append(item)
            self.wake(hosted)

    def ask(self, hosted: Hosted, query: QueryRequested) -> None:
        """A query from this process. If the run leaves memory before it has answered, nobody will: see `on_left`."""
        hosted.asked_here.add(query.message_id)
        self.put(hosted, query)

    def put_mail(self, mail: Iterable[Mail]) -> int:
        """Mail for hosted runs; what is here already is left out. Mail that this release cannot read is left where
        it is, for a newer node. Returns how much of it is new."""
        new = 0
        for item in mail:
            hosted = self.hosted.get(item.run_id)
            if hosted is None or item.mail_id in hosted.mail_ids:
                continue
            new += 1
            try:
                message = decode_message(item.body)
            except msgspec.DecodeError as error:
                logger.error("message %s to run %s cannot be read (%s)", item.message_id, item.run_id, error)
                hosted.mail_ids.add(item.mail_id)  # said once, not in every round
                continue
            hosted.mail_ids.add(item.mail_id)
            hosted.mail.append((item.mail_id, message))
            self.wake(hosted)
        return new

    def wake(self, hosted: Hosted) -> None:
        if hosted.stage is Stage.IDLE and not hosted.ready:
            hosted.ready = True
            self.line.append(hosted)
            self._set_tick()

    def _set_tick(self) -> None:
        if not self._tick_is_set:
            self._tick_is_set = True
            self._loop.call_soon(self._tick)

    # --- turns ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_is_set = False
        entries: list[Entry] = []
        for _ in range(min(len(self.line), TURNS_PER_TICK)):
            hosted = self.line.popleft()
            hosted.ready = False
            if hosted.stage is Stage.IDLE and (hosted.inbox or hosted.mail):
                entry = self._turn(hosted)
                if entry is not None:
                    entries.append(entry)
        if entries:
            self.committer.submit(entries)
            self.committer.flush()
        if self.line:
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
            decision = interruptible(take_turn, hosted.state, hosted.program, inputs, self.clock.now_us())
            if decision.outcome is not None and decision.taken < len(mail):
                close_with_mail(hosted.state, decision, [message for _, message in mail[decision.taken :]])
                decision.taken = len(mail)
            return self.entry(hosted, decision)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return parking.park(self, hosted, first_event, error)

    def entry(self, hosted: Hosted, decision: Decision) -> Entry | None:
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
            self._reply(hosted, decision)
            self.rest(hosted)
            return None
        return self.submit(hosted, self.commit(hosted, decision, consumed), decision)

    def commit(
        self, hosted: Hosted, decision: Decision, consumed: tuple[int, ...], create: NewRun | None = None
    ) -> Commit:
        events = decision.events
        add_tasks: tuple[NewTask, ...] = ()
        drop_tasks: tuple[ActivityId, ...] = ()
        if decision.dispatch:
            add_tasks = dispatch.remote_tasks(self, hosted, decision)
        if hosted.remote:
            drop_tasks = dispatch.ended_tasks(hosted)
        outcome = decision.outcome
        return Commit(
            hosted.state.run_id,
            self.next_turn_id(),
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
            _replies(hosted, decision) if decision.replies else (),
        )

    def next_turn_id(self) -> TurnId:
        self._turns += 1
        return turn_id(self.node_id, self._turns)

    # --- after the commit -------------------------------------------------------------------------------------------

    def submit(self, hosted: Hosted, commit: Commit, decision: Decision | None) -> Entry:
        """An entry for the committer. Without a decision, the commit only releases the run."""
        hosted.stage = Stage.COMMITTING
        return Entry(commit, partial(self._answered, hosted, commit, decision))

    def _answered(self, hosted: Hosted, commit: Commit, decision: Decision | None, outcome: Outcome) -> None:
        if hosted.stage is Stage.GONE:
            return
        if outcome is Answer.COMMITTED:
            self.committed(hosted, commit, decision)
            return
        hosted.stage = Stage.LOOKING
        self.background(self._not_committed(hosted, commit, decision, outcome))

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self.looks.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self.looks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("work of the node failed; please report this bug", exc_info=error)

    async def _not_committed(self, hosted: Hosted, commit: Commit, decision: Decision | None, outcome: Outcome) -> None:
        """Mail came in between; or another node has the run; or it is not known what was written; or it failed."""
        run_id = hosted.run_id
        mail: list[Mail] = []
        failed = isinstance(outcome, BaseException) and not isinstance(outcome, CommitUnknown)
        parks = commit.release is not None and commit.release.error is not None
        if failed and decision is None:  # not even its release can be written
            if self.stopping:
                self.leave(hosted)
                return
            await asyncio.sleep(min(PAUSE_S * 2.0 ** min(hosted.failures, 10), MAX_PAUSE_S))
        if outcome is Answer.MAIL_WAITING:
            mail = await patiently(lambda: self.store.mail_for([run_id]))
            if not mail or parks:  # a sender is just putting it there
                await asyncio.sleep(PAUSE_S)
        row = await patiently(lambda: self.store.run(run_id))
        if hosted.stage is not Stage.LOOKING:
            return
        if row is not None and row.turn_id == commit.turn_id:
            self.committed(hosted, commit, decision)
        elif row is None or row.status is not RunStatus.OPEN or row.owner != self.node_id:
            logger.warning("run %s was taken over by another node", run_id)
            self.leave(hosted)
        elif isinstance(outcome, BaseException) and failed:
            parking.submit_park(self, hosted, row.next_event, outcome)
        elif commit.fence is None or row.next_event != commit.fence.next_event:
            # The database was set back under us (a restore, a standby that lagged): what it says is what counts.
            self.leave(hosted)
            if not self.stopping:
                await loading.adopt(self, [Claimed(row, lost=True)])
        elif mail and decision is None and not parks:  # who is parked can take none: its state is that of a failed turn
            self.rest(hosted)
            self.put_mail(mail)
        else:
            # Nothing of it was written and the run is still ours, so the same decision still holds.
            try:
                if decision is not None and decision.outcome is not None:
                    commit = self._with_mail(hosted, commit, decision, mail)
            except msgspec.DecodeError as error:  # from a newer release: a newer node has to close it
                parking.submit_park(self, hosted, row.next_event, error)
            else:
                self.committer.submit([self.submit(hosted, commit, decision)])

    def _with_mail(self, hosted: Hosted, commit: Commit, decision: Decision, mail: Sequence[Mail]) -> Commit:
        """The commit that closes a run, with the mail that came while it closed put into its history."""
        unseen = [each for each in mail if each.mail_id not in commit.consume]
        close_with_mail(hosted.state, decision, [decode_message(each.body) for each in unseen])
        return msgspec.structs.replace(
            commit,
            events=encode_events(decision.events),
            count=len(decision.events),
            consume=commit.consume + tuple(each.mail_id for each in unseen),
            replies=_replies(hosted, decision),
        )

    def committed(self, hosted: Hosted, commit: Commit, decision: Decision | None) -> None:
        if decision is None:
            self.leave(hosted)
            if hosted.error is not None:
                self.on_parked(Parked(hosted.run_id, hosted.error))
            return
        hosted.failures = 0
        if hosted.ends:
            self._forget_ends(hosted)
        if commit.consume:
            hosted.mail_is_consumed(commit.consume)
        if decision.replies:
            self._reply(hosted, decision)
        if decision.outcome is None:
            self._effects(hosted, decision)
            self.rest(hosted)
        else:
            self.on_closed(hosted.run_id, decision.outcome)
            self.leave(hosted)

    def _reply(self, hosted: Hosted, decision: Decision) -> None:
        for reply in decision.replies.values():
            hosted.asked_here.discard(reply.message_id)
            self.on_reply(hosted.run_id, reply)

    def _forget_ends(self, hosted: Hosted) -> None:
        """Those that the commit has put into the history. Mostly that is all of them."""
        ends = hosted.ends
        if hosted.state.activities.keys().isdisjoint(ends):
            ends.clear()
        else:
            hosted.ends = {key: end for key, end in ends.items() if _is_awaited(hosted.state, end)}

    def rest(self, hosted: Hosted) -> None:
        hosted.stage = Stage.IDLE
        if hosted.inbox or hosted.mail:
            self.wake(hosted)
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
                self.alarms.set(pending.not_before_us, hosted, NextAttempt(activity_id, pending.attempt))
        for at_us, item in decision.alarms:
            self.alarms.set(at_us, hosted, item)

    def _alarm(self, hosted: Hosted, due: Due) -> None:
        if isinstance(due, NextAttempt):
            self._dispatch(hosted, due.activity_id, due.attempt)
        else:
            self.put(hosted, due)

    def _dispatch(self, hosted: Hosted, activity_id: ActivityId, attempt: int) -> None:
        # A run that is being parked has told its mailbox what it knows of attempts: whatever begins now, nobody counts.
        if hosted.stage is Stage.GONE or self.stopping or hosted.error is not None:
            return
        pending = hosted.state.activities.get(activity_id)
        if pending is not None and pending.attempt == attempt:
            self.attempts.start(hosted.attempt(activity_id, pending), partial(self._attempt_ended, hosted))

    def _attempt_ended(self, hosted: Hosted, end: AttemptEnd) -> None:
        hosted.running.discard(end.activity_id)
        hosted.ends[end.activity_id] = end
        self.put(hosted, end)

    def leave(self, hosted: Hosted) -> None:
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
        self.on_left(hosted)
        self._unwind(hosted)

    def _unwind(self, hosted: Hosted) -> None:
        try:
            interruptible(hosted.program.close)
        except KeyboardInterrupt:
            raise
        except BaseException:
            logger.exception("unwinding the code of run %s failed", hosted.run_id)

    # --- runs begin -------------------------------------------------------------------------------------------------

    async def start(self, run_id: RunId, new: NewRun, started: WorkflowExecutionStarted) -> Answer | None:
        """Create a run that this node hosts, with its first turn in the same commit.

        COMMITTED: it runs. ID_IN_USE: nothing was written. None: nothing was written either, since the run would end
        before it has had the mail that it is created with. Raises what its first turn raises.
        """
        now_us = self.clock.now_us()
        state = RunState(run_id)
        hosted = Hosted(new.namespace, state, self.host.program(started, run_id, new.namespace, now_us))
        try:
            decision = interruptible(begin, state, hosted.program, started, now_us)
        except BaseException as error:
            self._unwind(hosted)
            if isinstance(error, SystemExit):
                raise parking.exited(error) from error
            raise
        if decision.outcome is not None and new.mail:
            self._unwind(hosted)
            return None
        commit = self.commit(hosted, decision, (), create=new)
        hosted.stage = Stage.COMMITTING
        self.hosted[run_id] = hosted
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self.committer.submit([Entry(commit, partial(self._created, hosted, commit, decision, answered))])
        return await answered

    def _created(
        self, hosted: Hosted, commit: Commit, decision: Decision, answered: asyncio.Future[Answer], outcome: Outcome
    ) -> None:
        """The commit that creates a run has its outcome. Nothing here depends on the starter, who may have gone."""
        if isinstance(outcome, CommitUnknown):
            self.background(self._create_again(hosted, commit, decision, answered, outcome))
            return
        if outcome is Answer.COMMITTED:
            self._answered(hosted, commit, decision, outcome)
        else:
            self.leave(hosted)
        if answered.done():
            return
        if isinstance(outcome, BaseException):
            answered.set_exception(outcome)
        else:
            answered.set_result(outcome)

    async def _create_again(
        self,
        hosted: Hosted,
        commit: Commit,
        decision: Decision,
        answered: asyncio.Future[Answer],
        unknown: CommitUnknown,
    ) -> None:
        assert commit.create is not None
        is_final = commit.create.id_reuse is IdReuse.NEVER  # an id in use stays so
        if hosted.stage is Stage.GONE:  # this node is no more: whoever is alive shall begin it
            create = msgspec.structs.replace(commit.create, owner=None, wake_at_us=commit.at_us)
            commit = msgspec.structs.replace(commit, create=create)
        row = None
        try:
            (outcome,) = await patiently(lambda: self.store.commit([commit]))
            if outcome is Answer.ID_IN_USE:
                row = await patiently(lambda: self.store.run(hosted.run_id))
        except asyncio.CancelledError:  # the node ends, and the database does not answer
            if not answered.done():
                answered.set_exception(unknown)
            raise
        except Exception as error:  # nothing was written, nor will be
            self.leave(hosted)
            if not answered.done():
                answered.set_exception(error)
            return
        if outcome is Answer.ID_IN_USE and row is None and not is_final:
            self.leave(hosted)
            self.on_late_start()
            if not answered.done():
                answered.set_exception(unknown)
            return
        if not answered.done():
            answered.set_result(outcome if row is None else Answer.COMMITTED)
        is_first_try = row is not None and row.turn_id == commit.turn_id and row.owner in (self.node_id, None)
        if hosted.stage is not Stage.GONE and (outcome is Answer.COMMITTED or is_first_try):
            self.committed(hosted, commit, decision)
        else:
            self.leave(hosted)
