"""The service: the one application API. The client, the command line and every server speak to runs through it.

It needs a store, and no node: any process that can open the database may start, watch and end runs. If a worker
lives in the same process (`membership`), a run that it hosts begins in memory with its first turn in the commit that
creates it, and its end is told without reading the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
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
from outlast.model.payloads import Arguments
from outlast.runtime.admission import MAX_BACKLOG, Admission
from outlast.runtime.clock import DatabaseClock
from outlast.runtime.ports import Clock, Entropy
from outlast.store.api import (
    Answer,
    Commit,
    IdReuse,
    JournalRow,
    NewRun,
    RunFilter,
    RunRow,
    RunStatus,
    Store,
)

if TYPE_CHECKING:  # whoever only reads the database need not load the runtime
    from outlast.model.replies import Reply
    from outlast.runtime.hosted import Hosted
    from outlast.runtime.membership import Membership
    from outlast.runtime.messages import Messages, Recall
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
    mail: tuple[tuple[MessageId, bytes], ...] = ()
    """Messages that are in the new run's mailbox from the beginning, as `encode_message` writes them."""


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
        self._followers: set[asyncio.Event] = set()
        self._raise_parked: set[RunId] = set()
        self._messages: Messages | None = None
        store.on_change(self._changed)

    @property
    def messages(self) -> Messages:
        """What may be said to runs, and asked of them."""
        if self._messages is None:
            from outlast.runtime.messages import Messages  # whoever only reads the database need not load the runtime

            self._messages = Messages(self)
        return self._messages

    async def close(self) -> None:
        if self._messages is not None:
            await self._messages.asking.close()
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
        for follower in self._followers:
            follower.set()
        if self._messages is not None:
            self._messages.asking.hint()
        if self.membership is not None:
            self.membership.hint()

    async def now_us(self) -> int:
        """A process without a node has no heartbeat that keeps its clock right."""
        if isinstance(self.clock, DatabaseClock):
            await self.clock.refresh()
        return self.clock.now_us()

    # --- starting -----------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> Started:
        """Create a run. When this returns, the run is on disk and will run to its end.

        Raises Busy if too many runs wait already (see `admission`); then nothing was written.
        """
        now_us = await self.now_us()
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
            answer = await membership.node.start(run_id, new, started)
            if request.mail:
                membership.hint()
            return answer
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
            mail=request.mail,
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
            if not self.is_hosted(run_id):
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

    def replied(self, run_id: RunId, reply: Reply) -> None:
        """The local node has answered a query or update."""
        if self._messages is not None:
            self._messages.asking.told(run_id, reply)

    def left(self, hosted: Hosted) -> None:
        """A run has left the local node's memory: whoever waits for its end must look into the database."""
        if hosted.run_id in self._watched:
            self._watch()
        if self._messages is not None:
            self._messages.asking.left(hosted.run_id, hosted.asked_here)

    def hosted(self, run_id: RunId) -> Hosted | None:
        """The run in the memory of this process' own node."""
        return None if self.membership is None else self.membership.node.hosted.get(run_id)

    def is_hosted(self, run_id: RunId) -> bool:
        return self.hosted(run_id) is not None

    async def check_not_parked(self, run_id: RunId) -> None:
        """Raises TurnFailed if the run cannot go on with the code that it has found."""
        row = await self.find_run(run_id)
        if row.error is not None:
            raise TurnFailed(
                f"the run cannot answer: its last turn failed, and it waits to be tried again. {row.error}"
            )

    def recall_of(self, row: RunRow) -> Recall | None:
        """How to make the run's program, if the local worker hosts its workflow."""
        membership = self.membership
        return None if membership is None else membership.recall_of(row.workflow)

    def _watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch_elsewhere())

    async def _watch_elsewhere(self) -> None:
        """Look at watched runs that live elsewhere, as long as there are any."""
        while self._watched:
            self._hint.clear()  # first: a hint that comes while this looks is a reason to look again
            elsewhere = [run_id for run_id in self._watched if not self.is_hosted(run_id)]
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

    async def history(self, run_id: RunId, from_event: int = 1) -> list[HistoryEvent]:
        """What is recorded, from this position on. Raises RunNotFound."""
        rows = await self.store.history(run_id, from_event)
        if not rows:
            await self.find_run(run_id)
        items = [
            HistoryEvent(row.first_event + index, row.at_us, event)
            for row in rows
            for index, event in enumerate(await self._events(row))
        ]
        return items if from_event == 1 else [item for item in items if item.position >= from_event]

    async def follow(self, run_id: RunId) -> AsyncGenerator[list[HistoryEvent], None]:
        """What is recorded of the run, then what comes to it, in order, until it has ended. Raises RunNotFound."""
        changed = asyncio.Event()
        self._followers.add(changed)
        position = 1
        try:
            while True:
                changed.clear()
                try:
                    row = await self.find_run(run_id)
                    items = await self.history(run_id, position) if row.next_event > position else []
                except (Busy, StoreUnavailable) as error:
                    logger.warning("the database does not answer (%s); trying again", error)
                else:
                    if items:
                        position = items[-1].position + 1
                        yield items
                        continue
                    if row.status is not RunStatus.OPEN:
                        return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_S):
                        await changed.wait()
        finally:
            self._followers.discard(changed)

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
