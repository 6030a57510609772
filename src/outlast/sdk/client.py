"""The client: starts runs, waits for them, looks at them. Works in any process that can open the database."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, TypeVarTuple, Unpack, overload

from outlast.model.errors import (
    AlreadyStarted,
    DurableCallError,
    InternalError,
    InvalidArgument,
    PayloadError,
    WorkflowCancelled,
    WorkflowTerminated,
)
from outlast.model.events import (
    HistoryEvent,
    TerminalEvent,
    WorkflowExecutionCancelled,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionTerminated,
)
from outlast.model.ids import DEFAULT_NAMESPACE, DEFAULT_QUEUE, RunId, WorkflowId
from outlast.model.payloads import Payload
from outlast.runtime.admission import MAX_BACKLOG
from outlast.runtime.clock import clock_of
from outlast.runtime.limits import Limits
from outlast.runtime.ports import SystemEntropy
from outlast.runtime.service import Description, Service, StartRequest
from outlast.sdk.context import current_run
from outlast.sdk.decorators import Durable
from outlast.sdk.failures import workflow_failed
from outlast.sdk.options import StartOptions, check_start_options
from outlast.sdk.registry import Registry, workflow_of
from outlast.sdk.url import open_store
from outlast.sdk.worker import Worker
from outlast.store.api import IdReuse, RunFilter, RunRow, RunStatus, Store

P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
Co: TypeAlias = Coroutine[Any, Any, T]


class RunClass(Protocol[Unpack[Ts], R_co]):
    """A workflow class whose run method is called with positional arguments."""

    @property
    def run(self) -> Callable[[Unpack[Ts]], R_co]: ...


class RunClassP(Protocol[P, R_co]):
    """A workflow class whose run method has this signature."""

    @property
    def run(self) -> Callable[P, R_co]: ...


class Handle(Generic[T_co]):
    """A run, wherever it lives. Made by `client.start` and `client.handle`; holds nothing that must be closed."""

    def __init__(self, service: Service, workflow_id: str, run_id: str, target: Durable[..., Any] | None) -> None:
        self.id = workflow_id
        """The workflow id that the user chose."""
        self.run_id = run_id
        self._service = service
        self._target = target

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

    async def describe(self) -> Description:
        """The run's row, and what its history amounts to at this moment."""
        return await self._service.describe(RunId(self.run_id))

    async def history(self) -> list[HistoryEvent]:
        """Everything that is recorded of the run, in order."""
        return await self._service.history(RunId(self.run_id))

    async def cancel(self, reason: str = "") -> None:
        """Ask the run to cancel: CancelledError is raised in its main task, where it waits.

        When this returns, the wish is on disk; that the run has ended is told by `result()`. Raises RunClosed.
        """
        await self._service.cancel(RunId(self.run_id), reason)

    async def terminate(self, reason: str = "") -> None:
        """End the run without asking its code. When this returns, the wish is on disk. Raises RunClosed."""
        await self._service.terminate(RunId(self.run_id), reason)

    def __repr__(self) -> str:
        return f"<Handle {self.id!r} run_id={self.run_id}>"


def decode_any(payload: Payload) -> Any:
    """A result whose type is not known here: as JSON gives it."""
    if payload.encoding != "json":
        raise PayloadError(
            f"the result is recorded as {payload.encoding!r}, and only plain JSON can be read without knowing the "
            "workflow. Get the handle with it: `client.handle(id, fulfil_order)`."
        )
    return json.loads(payload.to_bytes())


class Starter(Protocol):
    """`client.options(id=...)`: then every argument of the workflow, by position or keyword, is checked by type."""

    @overload
    async def start(self, wf: Callable[[], RunClassP[P, Co[T]]], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...
    @overload
    async def start(self, wf: Callable[P, Co[T]], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...
    @overload
    async def start(self, wf: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...
    @overload
    async def execute(self, wf: Callable[[], RunClassP[P, Co[T]]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def execute(self, wf: Callable[P, Co[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def execute(self, wf: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


class _Starter:
    def __init__(self, client: Client, options: StartOptions) -> None:
        self._client = client
        self._options = options

    async def start(self, wf: Any, /, *args: Any, **kwargs: Any) -> Any:
        handle, created = await begin(self._client, wf, args, kwargs, self._options)
        if not created:
            raise await _in_use(self._client, handle)
        return handle

    async def execute(self, wf: Any, /, *args: Any, **kwargs: Any) -> Any:
        handle, _ = await begin(self._client, wf, args, kwargs, self._options, IdReuse.NEVER)
        return await handle.result()


class Client:
    """An open database. Made by `outlast.connect`; belongs to the event loop on which it was opened."""

    def __init__(self, service: Service) -> None:
        self.service = service

    # The three forms below: a workflow class, an async function, a plain function. Arguments of the workflow by
    # position; keywords are options of the start.
    @overload
    async def start(
        self, wf: Callable[[], RunClass[Unpack[Ts], Co[T]]], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> Handle[T]: ...
    @overload
    async def start(
        self, wf: Callable[[Unpack[Ts]], Co[T]], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> Handle[T]: ...
    @overload
    async def start(
        self, wf: Callable[[Unpack[Ts]], T], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> Handle[T]: ...
    async def start(self, wf: Any, /, *args: Any, **options: Any) -> Any:  # type: ignore[misc]
        """Create a run. When this returns, it is on disk and will run to its end wherever a worker hosts it.

        Raises AlreadyStarted if an open run has the id, PayloadError if an argument does not fit, InvalidArgument
        for an unknown option, Busy if too many runs wait already; then nothing was written. CommitUnknown: the
        connection was lost, and nobody can say yet whether the run was created; start it again under the same id.
        """
        return await _Starter(self, check_start_options(options)).start(wf, *args)

    @overload
    async def execute(
        self, wf: Callable[[], RunClass[Unpack[Ts], Co[T]]], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> T: ...
    @overload
    async def execute(
        self, wf: Callable[[Unpack[Ts]], Co[T]], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> T: ...
    @overload
    async def execute(
        self, wf: Callable[[Unpack[Ts]], T], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> T: ...
    async def execute(self, wf: Any, /, *args: Any, **options: Any) -> Any:  # type: ignore[misc]
        """Start a run and wait for its result. If the id is in use, or was used, that run's result is returned:
        calling it again after a crash starts nothing twice.
        """
        return await _Starter(self, check_start_options(options)).execute(wf, *args)

    def options(self, **options: Unpack[StartOptions]) -> Starter:
        """Set the options of a start apart from the workflow's arguments, which may then be given by keyword too."""
        return _Starter(self, check_start_options(options))

    async def handle(self, workflow_id: str, workflow: Any = None) -> Handle[Any]:
        """The open run with this id, else the last one. Raises RunNotFound.

        Give the `workflow` to have its result decoded as the workflow's type; else it is what JSON gives.
        """
        row = await self.service.find(WorkflowId(workflow_id))
        target = None if workflow is None else workflow_of(workflow)
        return Handle(self.service, row.workflow_id, row.run_id, target)

    async def runs(self, *, workflow: str | None = None, status: str | None = None, limit: int = 100) -> list[RunRow]:
        """Runs, newest first."""
        try:
            wanted_status = None if status is None else RunStatus(status)
        except ValueError:
            known = ", ".join(RunStatus)
            raise InvalidArgument(f"unknown status {status!r}; known are: {known}") from None
        return await self.service.runs(
            RunFilter(self.service.namespace, workflow=workflow, status=wanted_status, limit=limit)
        )

    def worker(
        self,
        *hosted: object,
        queue: str | Sequence[str] = DEFAULT_QUEUE,
        name: str | None = None,
        limits: Limits | None = None,
    ) -> Worker:
        """Host workflows and activities in this process: `async with client.worker(fulfil_order, charge_payment):`.

        Takes decorated functions and classes, modules, and instances with activity methods.
        """
        queues = (queue,) if isinstance(queue, str) else tuple(queue)
        return Worker(self.service, Registry(*hosted), queues, name or process_name(), limits or Limits())


async def begin(
    client: Client,
    wf: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: StartOptions,
    id_reuse: IdReuse = IdReuse.AFTER_CLOSE,
) -> tuple[Handle[Any], bool]:
    """Start a run, or find the one that has the id. True: it is new."""
    if current_run.get() is not None:
        raise DurableCallError(
            "a client was used inside a workflow. Workflow code asks for what is recorded: call an activity, and "
            "use the client there."
        )
    target = workflow_of(wf)
    service = client.service
    workflow_id = WorkflowId(options.get("id") or service.entropy.token())
    request = StartRequest(
        target.name,
        workflow_id,
        options.get("queue") or target.default_options.queue or DEFAULT_QUEUE,
        target.plan.encode_arguments(args, kwargs),
        options.get("priority", 0),
        id_reuse,
    )
    started = await service.start(request)
    return Handle(service, workflow_id, started.run_id, target), started.created


async def _in_use(client: Client, handle: Handle[Any]) -> AlreadyStarted:
    row = await client.service.find_run(RunId(handle.run_id))
    return AlreadyStarted(
        f"workflow id {handle.id!r} is in use by run {handle.run_id} ({row.status}); nothing was started. Choose "
        f"another id, wait for that run with `client.handle({handle.id!r})`, or use `client.execute`, which does.",
        handle.run_id,
    )


def process_name() -> str:
    """How a node shows up for the reader: host and process id."""
    return f"{socket.gethostname()}/{os.getpid()}"


class Connecting(AbstractAsyncContextManager[Client]):
    """`await outlast.connect(...)`, or `async with outlast.connect(...) as client:`, which closes it at the end."""

    def __init__(self, store: Store, max_backlog: int | None = MAX_BACKLOG) -> None:
        self._store = store
        self._max_backlog = max_backlog
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, Any, Client]:
        return self._open().__await__()

    async def _open(self) -> Client:
        if self._client is not None:
            raise InternalError("this connection has been opened already; call outlast.connect again")
        await self._store.open()
        try:
            clock = await clock_of(self._store)
        except BaseException:
            await self._store.close()
            raise
        self._client = Client(
            Service(self._store, clock, SystemEntropy(), DEFAULT_NAMESPACE, max_backlog=self._max_backlog)
        )
        return self._client

    async def __aenter__(self) -> Client:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.service.close()
        await self._store.close()


def connect(url: str | None = None, *, create: bool = True, max_backlog: int | None = MAX_BACKLOG) -> Connecting:
    """Open a database. Default: the URL in OUTLAST_URL, else `sqlite:///outlast.db` in the current folder.

    The file is made if there is none, unless `create` is False. While `max_backlog` runs of a queue wait for a
    worker to take them, starting another on it raises Busy; None takes that limit away. Raises NotADatabase,
    DatabaseTooNew, InvalidArgument.
    """
    if max_backlog is not None and max_backlog < 1:
        raise InvalidArgument(f"max_backlog must be 1 or more, or None for no limit, not {max_backlog!r}")
    return Connecting(open_store(url, create=create), max_backlog)
