"""Handles: a run, wherever it lives, as a client sees it."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeAlias, TypeVar, overload

from outlast.model.errors import InvalidArgument, PayloadError, WorkflowCancelled, WorkflowTerminated
from outlast.model.events import (
    HistoryEvent,
    TerminalEvent,
    WorkflowExecutionCancelled,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionStarted,
    WorkflowExecutionTerminated,
)
from outlast.model.ids import MessageId, Namespace, RunId
from outlast.model.payloads import Payload
from outlast.model.replies import Accepted, Answered, Failed, Refused, Reply
from outlast.runtime.service import Description, Service
from outlast.sdk.context import refuse_client_in_workflow
from outlast.sdk.durable import Durable
from outlast.sdk.failures import message_failed, workflow_failed
from outlast.sdk.handlers import Handlers, encode_message
from outlast.sdk.message_checks import MessageKind
from outlast.sdk.messages import Query, Signal, Update

if TYPE_CHECKING:
    from outlast.runtime.messages import Recall
    from outlast.sdk.program import PythonProgram

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Co: TypeAlias = Coroutine[Any, Any, T]


class Handle(Generic[T_co]):
    """A run, wherever it lives. Made by `client.start` and `client.handle`; holds nothing that must be closed."""

    def __init__(
        self,
        service: Service,
        workflow_id: str,
        run_id: str,
        target: Durable[..., Any] | None,
        message_id: MessageId | None = None,
    ) -> None:
        self.id = workflow_id
        """The workflow id that the user chose."""
        self.run_id = run_id
        self.__service = service
        self._target = target
        self._message_id = message_id

    @property
    def _service(self) -> Service:
        refuse_client_in_workflow()
        return self.__service

    async def result(self) -> T_co:
        """Wait for the end of the run and return its result.

        Raises WorkflowFailed (WorkflowCancelled, WorkflowTerminated) with the user's own exception as its cause.
        Waiting may be cancelled, and done again, as often as you like, also after the run has ended.
        """
        outcome = await self._service.outcome(RunId(self.run_id))
        result: T_co = self.value(outcome)
        return result

    def value(self, outcome: TerminalEvent) -> Any:
        """The result that the last event of the run holds; raises as `result` does."""
        match outcome:
            case WorkflowExecutionCompleted(result=payload):
                return decode_any(payload) if self._target is None else self._target.plan.decode_result(payload)
            case WorkflowExecutionFailed(failure=failure):
                raise workflow_failed(failure, self.id)
            case WorkflowExecutionCancelled():
                raise WorkflowCancelled(f"workflow {self.id!r} was cancelled")
            case WorkflowExecutionTerminated(reason=reason):
                raise WorkflowTerminated(f"workflow {self.id!r} was terminated" + (f": {reason}" if reason else ""))

    # --- looking ------------------------------------------------------------------------------------------------------

    async def describe(self) -> Description:
        """The run's row, and what its history amounts to at this moment."""
        return await self._service.describe(RunId(self.run_id))

    async def history(self) -> list[HistoryEvent]:
        """Everything that is recorded of the run, in order."""
        return await self._service.history(RunId(self.run_id))

    # --- messages -----------------------------------------------------------------------------------------------------

    def with_id(self, message_id: str) -> Handle[T_co]:
        """The same run; the next signal or update sent through this handle has the id, and counts once however often
        it is sent: `await handle.with_id("payment-17").signal(Order.paid, 120)`.

        A run remembers the last thousand ids.
        """
        if not message_id.strip():
            raise InvalidArgument(f"the id of a message must be some text, not {message_id!r}")
        return Handle(self._service, self.id, self.run_id, self._target, MessageId(message_id))

    @overload
    async def signal(self, signal: Signal[Any, P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    async def signal(self, signal: str, /, *args: object, **kwargs: object) -> None: ...
    async def signal(self, signal: Any, /, *args: Any, **kwargs: Any) -> None:
        """Tell the run something, by method (`Approval.decide`) or by name. When this returns, it is on disk, and its
        handler will get it; should the run end at this very moment, it is in the history all the same.

        Raises NotRegistered if the workflow is known here and has no such signal, PayloadError if an argument
        does not fit, RunClosed, Busy if too many messages wait; then nothing was written.
        """
        name, arguments = encode_message(signal, args, kwargs, "signal", self._handlers())
        await self._service.messages.signal(RunId(self.run_id), name, arguments, self._message_id)

    @overload
    async def query(self, query: Query[Any, P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def query(self, query: str, /, *args: object, **kwargs: object) -> Any: ...
    async def query(self, query: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Ask the run something. It sees all that was acknowledged before; it changes nothing and is not recorded.

        An open run is asked where it lives, so a worker must host it. One that has ended is rebuilt here from its
        history, for which its workflow must be known: `client.handle(id, Approval)`. Raises what the handler raises,
        NotRegistered if there is no such query, PayloadError if an argument
        does not fit, TurnFailed if its code cannot go on, Busy. Waits as long as it takes: put `asyncio.timeout` around
        it.
        """
        name, arguments = encode_message(query, args, kwargs, "query", self._handlers())
        reply = await self._service.messages.query(RunId(self.run_id), name, arguments, self._recall())
        return self.answer(query, "query", reply)

    @overload
    async def update(self, update: Update[Any, P, Co[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def update(self, update: Update[Any, P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def update(self, update: str, /, *args: object, **kwargs: object) -> Any: ...
    async def update(self, update: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Ask the run to do something, and wait for the result.

        Raises what the validator or the handler raises (MessageFailed where its class is not known here), NotRegistered
        if there is no such update, PayloadError if an argument does not fit,
        RunClosed if the run has ended, or ends before it is done, TurnFailed if its code cannot go on (it is done when
        that is put right), Busy. To ask again without doing it twice, give it an id: `handle.with_id(...)`.
        """
        handle: UpdateHandle[Any] = await self._asked(update, args, kwargs, final=True)
        return await handle.result()

    @overload
    async def start_update(
        self, update: Update[Any, P, Co[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> UpdateHandle[R]: ...
    @overload
    async def start_update(
        self, update: Update[Any, P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> UpdateHandle[R]: ...
    @overload
    async def start_update(self, update: str, /, *args: object, **kwargs: object) -> UpdateHandle[Any]: ...
    async def start_update(self, update: Any, /, *args: Any, **kwargs: Any) -> UpdateHandle[Any]:
        """As `update`, but returns when the run has accepted it: from then on it is in the history, and is done
        whatever happens to this process. Raises what the validator raises; the handler's part is in `result()`.
        """
        return await self._asked(update, args, kwargs, final=False)

    async def _asked(self, update: Any, args: Any, kwargs: Any, *, final: bool) -> UpdateHandle[Any]:
        name, arguments = encode_message(update, args, kwargs, "update", self._handlers())
        messages = self._service.messages
        message_id = self._message_id or MessageId(self._service.entropy.token())
        reply = await messages.update(RunId(self.run_id), message_id, name, arguments, final=final)
        return self.accepted(update, message_id, reply)

    def accepted(self, update: Any, message_id: MessageId, reply: Reply) -> UpdateHandle[Any]:
        """For an update that the run has answered so. Raises what the validator raised."""
        if isinstance(reply, Refused):
            raise message_failed(reply.failure)
        return UpdateHandle(self, self._service, update, message_id, reply)

    async def cancel(self, reason: str = "") -> None:
        """Ask the run to cancel: CancelledError is raised in its main task, where it waits.

        When this returns, the wish is on disk; that the run has ended is told by `result()`. Raises RunClosed.
        """
        await self._service.messages.cancel(RunId(self.run_id), reason)

    async def terminate(self, reason: str = "") -> None:
        """End the run without asking its code. When this returns, the wish is on disk. Raises RunClosed."""
        await self._service.messages.terminate(RunId(self.run_id), reason)

    # --- what is known of its code ------------------------------------------------------------------------------------

    def _handlers(self) -> Handlers | None:
        return None if self._target is None else self._target.handlers

    def _recall(self) -> Recall | None:
        return None if self._target is None else recall_with(self._target)

    def answer(self, message: Any, kind: MessageKind, reply: Reply) -> Any:
        """What a query or update has come to, read as the type that its handler returns."""
        if isinstance(reply, Failed | Refused):
            raise message_failed(reply.failure)
        assert isinstance(reply, Answered)
        if isinstance(message, str):
            handlers = self._handlers()
            message = None if handlers is None else handlers.find(kind, message)
        return decode_any(reply.result) if message is None else message.plan.decode_result(reply.result)

    def __repr__(self) -> str:
        return f"<Handle {self.id!r} run_id={self.run_id}>"


class UpdateHandle(Generic[T_co]):
    """An update that a run has accepted."""

    def __init__(
        self, handle: Handle[Any], service: Service, update: Any, message_id: MessageId, reply: Reply | None = None
    ) -> None:
        self.handle = handle
        """The run."""
        self.id: str = message_id
        """Under this id it can be waited for again, by any process: `handle.with_id(id).update(...)`."""
        self.__service = service
        self._update = update
        self._reply = reply

    @property
    def _service(self) -> Service:
        refuse_client_in_workflow()
        return self.__service

    async def result(self) -> T_co:
        """Wait for what the handler returns.

        Raises what the handler raises, and RunClosed if the run ends before it is done. May be cancelled and called
        again.
        """
        reply = self._reply
        if reply is None or isinstance(reply, Accepted):
            run_id, message_id = RunId(self.handle.run_id), MessageId(self.id)
            reply = self._reply = await self._service.messages.outcome_of_update(run_id, message_id, final=True)
        result: T_co = self.handle.answer(self._update, "update", reply)
        return result

    def __repr__(self) -> str:
        return f"<UpdateHandle {self.id} of {self.handle.id!r}>"


def recall_with(target: Durable[..., Any]) -> Recall:
    """How to rebuild runs of this workflow here, to ask them."""

    def recall(started: WorkflowExecutionStarted, run_id: RunId, namespace: Namespace, at_us: int) -> PythonProgram:
        from outlast.sdk.program import PythonProgram  # only who rebuilds a run needs all of it

        return PythonProgram(target, started, run_id, namespace, at_us)

    return recall


def decode_any(payload: Payload) -> Any:
    """A result whose type is not known here: as JSON gives it."""
    if payload.encoding != "json":
        raise PayloadError(
            f"the result is recorded as {payload.encoding!r}, and only plain JSON can be read without knowing the "
            "workflow. Get the handle with it: `client.handle(id, fulfil_order)`."
        )
    return json.loads(payload.to_bytes())
