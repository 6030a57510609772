"""Messages: what may be said to a run, and asked of it, by any process that can open the database.

Theory of operation
===================
- *Signals*, and the wishes to cancel and to terminate, are acknowledged when they are in the run's mailbox, on disk.
  Each gets into the history once, whatever happens: also at the very moment in which the run closes.
- *Updates* are answered twice: when the run has accepted them, and when their handler is done. One that the run refuses
  leaves no trace. An update has an id; asked again under the same id, it is not done twice, and the answer is that of
  the first time, which the history has.
- *Queries* change nothing and are not recorded. They see all that was acknowledged before they were asked. An open run
  is asked where it lives: through its mailbox, or directly if that is in this process. One that has ended, or that
  nobody owns, is rebuilt from its history here and asked, if its code is known here (`Recall`); else an open one is
  woken by the question like by any other mail.

How the answers find their way back is told in `asking`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from outlast.engine.program import Program
from outlast.engine.replay import replay
from outlast.engine.run import RunState
from outlast.model.errors import Busy, InvalidArgument, NotRegistered, RunClosed, RunNotFound, StoreUnavailable
from outlast.model.events import (
    WorkflowExecutionSignaled,
    WorkflowExecutionStarted,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)
from outlast.model.failures import Failure
from outlast.model.ids import MessageId, Namespace, RunId
from outlast.model.inputs import (
    CancelRequested,
    Message,
    QueryRequested,
    SignalReceived,
    TerminateRequested,
    UpdateRequested,
    decode_message,
    encode_message,
)
from outlast.model.payloads import Arguments
from outlast.model.replies import Accepted, Answered, Ended, Failed, Recorded, Reply
from outlast.runtime.asking import Asking, Left
from outlast.runtime.service import Started, StartRequest
from outlast.store.api import IdReuse, Mail, NewMail, RunRow, RunStatus, Sent

if TYPE_CHECKING:
    from outlast.runtime.hosted import Hosted
    from outlast.runtime.node import Node
    from outlast.runtime.service import Service

Recall: TypeAlias = Callable[[WorkflowExecutionStarted, RunId, Namespace, int], Program]
"""Makes the program of a run whose code is known in this process, as `Host.program` does."""

PATIENCE_S = 1.0
"""How long a question may go unanswered before it is looked whether the run is parked, again and again."""


class Messages:
    def __init__(self, service: Service) -> None:
        self._service = service
        self.asking = Asking(service.store, service.is_hosted)

    async def signal(
        self, run_id: RunId, signal: str, arguments: Arguments, message_id: MessageId | None = None
    ) -> None:
        """When this returns, the signal is on disk. Raises RunNotFound, RunClosed, Busy."""
        message_id = message_id or self._token()
        await self.send(run_id, message_id, SignalReceived(message_id, signal, arguments))

    async def cancel(self, run_id: RunId, reason: str = "") -> None:
        """Ask the run to cancel: CancelledError is raised in its main task. When this returns, the wish is on disk."""
        message_id = self._token()
        await self.send(run_id, message_id, CancelRequested(message_id, reason))

    async def terminate(self, run_id: RunId, reason: str = "") -> None:
        """End the run without asking its code. When this returns, the wish is on disk.

        A run that nobody owns is ended here and now: its workflow may be hosted nowhere any more.
        """
        from outlast.runtime.ending import end_unhosted  # the rest of a service does without the runtime

        service = self._service
        message_id = self._token()
        await self.send(run_id, message_id, TerminateRequested(message_id, reason))
        outcome = await end_unhosted(service.store, service.clock, service.entropy, run_id)
        if outcome is not None:
            service.closed(run_id, outcome)

    async def with_start(self, request: StartRequest, message_id: MessageId, message: Message) -> Started:
        """Send a message to the open run that has the workflow id, or start one that has it from the beginning.

        Whichever it is, the message is in exactly one run's mailbox when this returns. Raises as `Service.start` does.
        """
        service = self._service
        request = msgspec.structs.replace(request, mail=((message_id, encode_message(message)),))
        while True:
            row = await service.store.find(service.namespace, request.workflow_id)
            if row is not None and row.status is RunStatus.OPEN:
                with contextlib.suppress(RunClosed):
                    await self.send(row.run_id, message_id, message)
                    return Started(row.run_id, created=False)
            started = await service.start(request)
            if started.created or request.id_reuse is IdReuse.NEVER:
                return started
            # Somebody else was faster, and that run is the one to be told.

    def _token(self) -> MessageId:
        return MessageId(self._service.entropy.token())

    async def send(self, run_id: RunId, message_id: MessageId, message: Message) -> None:
        """Put a message into the run's mailbox. The same id again is the same message. Raises as `signal` does."""
        service = self._service
        mail = NewMail(run_id, message_id, await service.now_us(), encode_message(message))
        (sent,) = await service.store.send([mail])
        if sent is Sent.NO_SUCH_RUN:
            raise RunNotFound(f"there is no run {run_id}")
        if sent is Sent.CLOSED:
            raise RunClosed(f"run {run_id} has ended already; nothing was sent")
        if sent is Sent.FULL:
            raise Busy(f"run {run_id} has too many messages waiting; nothing was sent, try again later")
        membership = service.membership
        if membership is None:
            return
        if service.is_hosted(run_id):  # sooner than its next round
            membership.node.put_mail(await service.store.mail_for([run_id]))
        else:
            membership.hint()

    # --- updates ------------------------------------------------------------------------------------------------------

    async def update(
        self, run_id: RunId, message_id: MessageId, update: str, arguments: Arguments, *, final: bool
    ) -> Reply:
        """Ask for an update, and wait until it is done, or only accepted: Answered, Failed, Refused, or Accepted.

        Raises RunNotFound, RunClosed (also if the run ended before the update was done), Busy, TurnFailed.
        """
        try:
            await self.send(run_id, message_id, UpdateRequested(message_id, update, arguments))
        except RunClosed:
            return await self._recorded(run_id, message_id)
        return await self.outcome_of_update(run_id, message_id, final=final)

    async def outcome_of_update(self, run_id: RunId, message_id: MessageId, *, final: bool) -> Reply:
        """Wait for an update that was asked for, perhaps long ago."""

        async def look() -> Reply | None:
            found = await self._in_history(run_id, message_id)
            return None if final and isinstance(found, Accepted) else found

        reply = await self._patiently(run_id, self.asking.answer(run_id, message_id, final=final), look)
        return await self._recorded(run_id, message_id) if isinstance(reply, Recorded | Ended) else reply

    async def _in_history(self, run_id: RunId, message_id: MessageId) -> Reply | None:
        """What the history knows of an update. Raises InvalidArgument if it knows the id from another message."""
        accepted: Reply | None = None
        for item in await self._service.history(run_id):
            match item.event:
                case WorkflowExecutionUpdateAccepted(message_id=found) if found == message_id:
                    accepted = Accepted(message_id)
                case WorkflowExecutionUpdateCompleted(message_id=found, result=result, failure=failure) if (
                    found == message_id
                ):
                    return Answered(message_id, result) if failure is None else Failed(message_id, failure)
                case WorkflowExecutionSignaled(message_id=found, signal=signal) if found == message_id:
                    raise InvalidArgument(
                        f"{message_id!r} is the id of a signal {signal!r} that run {run_id} has had, so the update did "
                        "nothing. An id stands for one message: give the update another one."
                    )
                case _:
                    pass
        return accepted

    async def _recorded(self, run_id: RunId, message_id: MessageId) -> Reply:
        """What the history knows of an update that is over. Raises RunClosed if that is nothing, or not its end."""
        found = await self._in_history(run_id, message_id)
        if isinstance(found, Answered | Failed):
            return found
        if found is not None:
            raise RunClosed(f"run {run_id} ended before update {message_id!r}, which it had accepted, was done")
        raise RunClosed(f"run {run_id} has ended; update {message_id!r} was not accepted, and did nothing")

    # --- queries ------------------------------------------------------------------------------------------------------

    async def query(self, run_id: RunId, query: str, arguments: Arguments, recall: Recall | None) -> Reply:
        """Answered or Failed. Raises RunNotFound, Busy, TurnFailed; NotRegistered if code is needed that is not here;
        NondeterminismError if the run is rebuilt here, and this code is not what it was begun with.
        """
        service = self._service
        while True:
            hosted = service.hosted(run_id)
            # The row after the mail: a run that is this node's even then has all that was acknowledged in the node's
            # memory or in that mail. The node may have been declared dead, and not know it yet.
            mail = [] if hosted is None else await service.store.mail_for([run_id])
            row = await service.find_run(run_id)
            if row.status is not RunStatus.OPEN:
                return await self._recall_and_ask(row, query, arguments, recall)
            message_id = self._token()
            message = QueryRequested(message_id, query, arguments)
            try:
                if hosted is not None and service.hosted(run_id) is hosted and row.owner == self._node().node_id:
                    return await self._patiently(run_id, self._ask_here(hosted, mail, message))
                if row.owner is None and recall is not None and not await self._mail_changes(run_id):
                    return await self._recall_and_ask(row, query, arguments, recall)
                await self.send(run_id, message_id, message)
                reply = await self._patiently(run_id, self.asking.answer(run_id, message_id))
            except (Left, RunClosed):
                continue
            if not isinstance(reply, Ended):
                return reply

    async def _mail_changes(self, run_id: RunId) -> bool:
        """Whether mail waits that the answer must have seen. Questions that nobody took change nothing."""
        mail = await self._service.store.mail_for([run_id])
        try:
            return not all(isinstance(decode_message(each.body), QueryRequested) for each in mail)
        except msgspec.DecodeError:  # from a newer release
            return True

    def _node(self) -> Node:
        membership = self._service.membership
        assert membership is not None
        return membership.node

    async def _ask_here(self, hosted: Hosted, mail: Sequence[Mail], message: QueryRequested) -> Reply:
        """Of the node in this process; behind the mail that waits for the run."""
        if self._service.hosted(hosted.run_id) is not hosted:
            raise Left
        node = self._node()
        node.put_mail(mail)
        node.ask(hosted, message)
        return await self.asking.answer(hosted.run_id, message.message_id, by_row=False)

    async def _recall_and_ask(self, row: RunRow, query: str, arguments: Arguments, recall: Recall | None) -> Reply:
        service = self._service
        if recall is None:
            recall = service.recall_of(row)
        if recall is None:
            raise NotRegistered(
                f"run {row.run_id} ({row.workflow}/{row.workflow_id}) has ended: to be asked, it is rebuilt from its "
                f"history, which needs its code. Give the handle its workflow, `client.handle({row.workflow_id!r}, "
                f"TheWorkflow)`, or ask in a process whose worker hosts {row.workflow!r}."
            )
        history = await service.history(row.run_id)
        started = history[0].event
        assert isinstance(started, WorkflowExecutionStarted)
        program = recall(started, row.run_id, row.namespace, history[0].at_us)
        try:
            state = RunState(row.run_id)
            replay(state, program, history)
            if len(history) == 1:  # it has not had its first turn, and has it here, unrecorded and unheard
                program.feed(started, history[0].at_us, replaying=True)
            answer = program.answer_query(query, arguments)
        finally:
            program.close()
        message_id = self._token()
        return Failed(message_id, answer) if isinstance(answer, Failure) else Answered(message_id, answer)

    async def _patiently(
        self,
        run_id: RunId,
        answer: Coroutine[Any, Any, Reply],
        look: Callable[[], Coroutine[Any, Any, Reply | None]] | None = None,
    ) -> Reply:
        """Wait, and look now and then whether the run can answer at all, or if `look` finds that it has."""
        waiting = asyncio.ensure_future(answer)
        times = 0
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=PATIENCE_S)
                if done:
                    return waiting.result()
                times += 1
                with contextlib.suppress(
                    Busy, StoreUnavailable
                ):  # what was asked is on disk: it comes when that is back
                    await self._service.check_not_parked(run_id)
                    if look is not None and times & (times - 1) == 0:  # more and more rarely: it reads a whole history
                        found = await look()
                        if found is not None:
                            return found
        finally:
            waiting.cancel()
