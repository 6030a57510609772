"""The service: the one application API. The client, the command line and every server speak to runs through it.

It needs a store, and no node: any process that can open the database may start, watch and end runs. If a worker
lives in the same process (`membership`), a run that it hosts begins in memory with its first turn in the commit that
creates it, and its end is told without reading the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from outlast.engine.run import RunState
from outlast.model.errors import (
    Busy,
    CommitUnknown,
    DatabaseTooNew,
    InternalError,
    OutlastError,
    OutlastInterrupt,
    RunClosed,
    RunNotFound,
    StoreUnavailable,
)
from outlast.model.events import (
    EVENT_FORMAT,
    TERMINAL_EVENTS,
    Event,
    HistoryEvent,
    TerminalEvent,
    WorkflowExecutionStarted,
    decode_events,
    encode_events,
)
from outlast.model.ids import MessageId, Namespace, RunId, WorkflowId
from outlast.model.inputs import CancelRequested, Message, TerminateRequested, encode_message
from outlast.model.payloads import Arguments
from outlast.runtime.admission import MAX_BACKLOG, Admission
from outlast.runtime.clock import DatabaseClock
from outlast.runtime.ports import Clock, Entropy
from outlast.store.api import (
    Answer,
    Commit,
    IdReuse,
    JournalRow,
    NewMail,
    NewRun,
    RunFilter,
    RunRow,
    RunStatus,
    Sent,
    Store,
)

if TYPE_CHECKING:  # whoever only reads the database need not load the runtime
    from outlast.runtime.membership import Membership
    from outlast.runtime.parking import Parked

logger = logging.getLogger("outlast")

WATCH_S = 0.25
"""How often runs that live elsewhere are looked at when no hint comes."""


class TurnFailed(OutlastError):
    """The run's last turn failed; the text is that of its error. The run stays open and is tried again."""


class StartRequest(Struct, frozen=True):
    workflow: str
    workflow_id: WorkflowId
    queue: str
    arguments: Arguments
    priority: int = 0
    id_reuse: IdReuse = IdReuse.AFTER_CLOSE


class Started(Struct, frozen=True):
    run_id: RunId
    created: bool
    """False: the workflow id was in use by this run; nothing was written."""


class Description(Struct, frozen=True):
    row: RunRow
    state: RunState
    """Folded from the history: what is open, how it ended."""


class Service:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        entropy: Entropy,
        namespace: Namespace,
        *,
        max_backlog: int | None = MAX_BACKLOG,
    ) -> None:
        self.store = store
        self.clock = clock
        self.entropy = entropy
        self.namespace = namespace
        self.membership: Membership | None = None
        self._admission = Admission(store, clock, namespace, max_backlog)
        self._watched: dict[RunId, set[asyncio.Future[TerminalEvent]]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._hint = asyncio.Event()
        self._raise_parked: set[RunId] = set()
        store.on_change(self._changed)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        for futures in self._watched.values():
            for future in futures:
                future.cancel()
        self._watched.clear()

    def _changed(self) -> None:
        self._hint.set()
        if self.membership is not None:
            self.membership.hint()

    async def _now_us(self) -> int:
        """A process without a node has no heartbeat that keeps its clock right."""
        if isinstance(self.clock, DatabaseClock):
            await self.clock.refresh()
        return self.clock.now_us()

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> Started:
        """Create a run. When this returns, the run is on disk and will run to its end.

        Raises Busy if too many runs wait already (see `admission`); then nothing was written.
        """
        now_us = await self._now_us()
        run_id = self.entropy.run_id(now_us)
        started = WorkflowExecutionStarted(
            request.workflow, request.workflow_id, request.queue, request.arguments, format=EVENT_FORMAT
        )
        here = await self._start_here(run_id, request, started)
        if isinstance(here, Answer):
            answer = here
        else:
            try:
                async with self._admission.start(request.queue):
                    answer = await self._start_anywhere(run_id, request, started, now_us)
            except Busy:
                # Who only asks for a run that is there already adds nothing to what waits.
                there = await self.store.find(self.namespace, request.workflow_id)
                if there is None or (there.status is not RunStatus.OPEN and request.id_reuse is not IdReuse.NEVER):
                    raise
                return Started(there.run_id, created=there.run_id == run_id)
        if answer is Answer.COMMITTED:
            return Started(run_id, created=True)
        row = await self.store.find(self.namespace, request.workflow_id)
        if row is None:
            raise InternalError(f"workflow id {request.workflow_id!r} is in use by a run that does not exist")
        if isinstance(here, CommitUnknown) and row.run_id != run_id and request.id_reuse is not IdReuse.NEVER:
            raise here  # its run may yet be created, when the one that has the id now has ended
        return Started(row.run_id, created=row.run_id == run_id)

    async def _start_here(
        self, run_id: RunId, request: StartRequest, started: WorkflowExecutionStarted
    ) -> Answer | CommitUnknown | None:
        """In the memory of this process' own node, if it hosts the workflow. None: not here."""
        membership = self.membership
        if membership is None or not membership.hosts(request.workflow, request.queue):
            return None
        try:
            new = self._new_run(request, membership)
            return await membership.node.start(run_id, new, started)
        except CommitUnknown as unknown:
            return unknown
        except (OutlastInterrupt, Exception) as error:
            # The first turn failed. The start must not be lost for that: the run is created all the same, and
            # parked by whoever takes it, with the error to be seen.
            logger.debug("the first turn of %s failed: %r", request.workflow_id, error)
            return None

    async def _start_anywhere(
        self, run_id: RunId, request: StartRequest, started: WorkflowExecutionStarted, now_us: int
    ) -> Answer:
        """Without an owner: a node that hosts it takes it."""
        commit = Commit(run_id, None, now_us, encode_events([started]), 1, create=self._new_run(request, None, now_us))
        answers = await self.store.commit([commit])
        if self.membership is not None:
            self.membership.hint()
        return answers[0]

    def _new_run(self, request: StartRequest, membership: Membership | None, wake_at_us: int | None = None) -> NewRun:
        return NewRun(
            self.namespace,
            request.workflow_id,
            request.workflow,
            request.queue,
            None if membership is None else membership.node.node_id,
            wake_at_us,
            request.priority,
            format=EVENT_FORMAT,
            id_reuse=request.id_reuse,
        )

    # --- waiting for the end ------------------------------------------------------------------------------------------

    async def outcome(self, run_id: RunId, *, raise_parked: bool = False) -> TerminalEvent:
        """Wait until the run has ended; returns its last event. Raises RunNotFound.

        With `raise_parked`, raises the error of a turn that failed in this process, instead of waiting for somebody
        to put the code right.
        """
        future: asyncio.Future[TerminalEvent] = asyncio.get_running_loop().create_future()
        self._watched.setdefault(run_id, set()).add(future)
        if raise_parked:
            self._raise_parked.add(run_id)
        try:
            if not self._is_hosted(run_id):
                row = await self.find_run(run_id)
                if row.status is not RunStatus.OPEN:
                    return await self._last_event(row)
                # A worker that has just begun will take parked runs, this one too: perhaps its code is right now.
                begins = self.membership is not None and self.membership.takes_parked
                if raise_parked and row.error is not None and not begins:
                    raise TurnFailed(row.error)
                self._watch()
            return await future
        finally:
            watched = self._watched.get(run_id)
            if watched is not None:
                watched.discard(future)
                if not watched:
                    del self._watched[run_id]
                    self._raise_parked.discard(run_id)

    def closed(self, run_id: RunId, outcome: TerminalEvent) -> None:
        """The local node has closed a run."""
        for future in self._watched.get(run_id, ()):
            if not future.done():
                future.set_result(outcome)

    def parked(self, parked: Parked) -> None:
        """The local node has parked a run."""
        if parked.run_id in self._raise_parked:
            for future in self._watched.get(parked.run_id, ()):
                if not future.done():
                    future.set_exception(parked.error)

    def left(self, run_id: RunId) -> None:
        """A run has left the local node's memory: whoever waits for its end must look into the database."""
        if run_id in self._watched:
            self._watch()

    def _is_hosted(self, run_id: RunId) -> bool:
        return self.membership is not None and run_id in self.membership.node.hosted

    def _watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch_elsewhere())

    async def _watch_elsewhere(self) -> None:
        """Look at watched runs that live elsewhere, as long as there are any."""
        while self._watched:
            self._hint.clear()  # first: a hint that comes while this looks is a reason to look again
            elsewhere = [run_id for run_id in self._watched if not self._is_hosted(run_id)]
            try:
                for row in await self.store.closed_of(elsewhere) if elsewhere else ():
                    await self._tell_end(row)
            except (Busy, StoreUnavailable) as error:
                logger.warning("the database does not answer (%s); trying again", error)
            except Exception:
                logger.exception("looking for the ends of runs failed; please report this bug")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._hint.wait()

    async def _tell_end(self, row: RunRow) -> None:
        """One run that cannot be read must not leave those who wait for others without an answer."""
        try:
            self.closed(row.run_id, await self._last_event(row))
        except DatabaseTooNew as error:
            for future in self._watched.get(row.run_id, ()):
                if not future.done():
                    future.set_exception(error)
        except (Busy, StoreUnavailable):
            raise
        except Exception:
            logger.exception("looking for the end of run %s failed; please report this bug", row.run_id)

    async def _last_event(self, row: RunRow) -> TerminalEvent:
        rows = await self.store.history(row.run_id, row.next_event - 1)
        event = (await self._events(rows[-1]))[-1]
        if not isinstance(event, TERMINAL_EVENTS):
            raise InternalError(f"the last event of closed run {row.run_id} is {type(event).__name__}")
        return event

    # --- looking ------------------------------------------------------------------------------------------------------

    async def find(self, workflow_id: WorkflowId) -> RunRow:
        """The open run with this id, else the last one. Raises RunNotFound."""
        row = await self.store.find(self.namespace, workflow_id)
        if row is None:
            raise RunNotFound(f"there is no run with the id {workflow_id!r}")
        return row

    async def find_run(self, run_id: RunId) -> RunRow:
        """Raises RunNotFound."""
        row = await self.store.run(run_id)
        if row is None:
            raise RunNotFound(f"there is no run {run_id}")
        return row

    async def describe(self, run_id: RunId) -> Description:
        row = await self.find_run(run_id)
        state = RunState(run_id)
        for item in await self.history(run_id):
            state.apply(item.event, item.at_us)
        return Description(row, state)

    async def history(self, run_id: RunId) -> list[HistoryEvent]:
        rows = await self.store.history(run_id)
        if not rows:
            raise RunNotFound(f"there is no run {run_id}")
        return [
            HistoryEvent(row.first_event + index, row.at_us, event)
            for row in rows
            for index, event in enumerate(await self._events(row))
        ]

    async def _events(self, journal: JournalRow) -> list[Event]:
        """Raises DatabaseTooNew for what a newer release has written."""
        try:
            return decode_events(journal.events)
        except msgspec.DecodeError as error:
            row = await self.find_run(journal.run_id)
            if row.format <= EVENT_FORMAT:
                raise
            raise DatabaseTooNew(
                f"run {row.run_id} ({row.workflow}/{row.workflow_id}) is written in event format {row.format}, and "
                f"this release of Outlast reads formats up to {EVENT_FORMAT}. Nothing was changed; workers of the "
                "newer release go on with it. Upgrade Outlast here, too, to look at it."
            ) from error

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        return await self.store.runs(wanted)

    # --- messages -----------------------------------------------------------------------------------------------------

    async def cancel(self, run_id: RunId, reason: str = "") -> None:
        """Ask the run to cancel: CancelledError is raised in its main task. When this returns, the wish is on disk."""
        message_id = MessageId(self.entropy.token())
        await self._send(run_id, message_id, CancelRequested(message_id, reason))

    async def terminate(self, run_id: RunId, reason: str = "") -> None:
        """End the run without asking its code. When this returns, the wish is on disk.

        A run that nobody owns is ended here and now: its workflow may be hosted nowhere any more.
        """
        from outlast.runtime.ending import end_unhosted  # the rest of a service does without the runtime

        message_id = MessageId(self.entropy.token())
        await self._send(run_id, message_id, TerminateRequested(message_id, reason))
        outcome = await end_unhosted(self.store, self.clock, self.entropy, run_id)
        if outcome is not None:
            self.closed(run_id, outcome)

    async def _send(self, run_id: RunId, message_id: MessageId, message: Message) -> None:
        mail = NewMail(run_id, message_id, await self._now_us(), encode_message(message))
        (sent,) = await self.store.send([mail])
        if sent is Sent.NO_SUCH_RUN:
            raise RunNotFound(f"there is no run {run_id}")
        if sent is Sent.CLOSED:
            raise RunClosed(f"run {run_id} has ended already; nothing was sent")
        if sent is Sent.FULL:
            raise Busy(f"run {run_id} has too many messages waiting; nothing was sent, try again later")
        if self.membership is not None:
            self.membership.hint()
