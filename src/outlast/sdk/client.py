"""The client: starts runs, waits for them, looks at them. Works in any process that can open the database."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, TypeVarTuple, Unpack, overload

from outlast.model.errors import (
    AlreadyStarted,
    InternalError,
    InvalidArgument,
)
from outlast.model.ids import DEFAULT_NAMESPACE, DEFAULT_QUEUE, MessageId, RunId, WorkflowId
from outlast.model.inputs import SignalReceived, UpdateRequested
from outlast.runtime.admission import MAX_BACKLOG
from outlast.runtime.clock import clock_of
from outlast.runtime.limits import Limits
from outlast.runtime.ports import SystemEntropy
from outlast.runtime.service import Service, StartRequest
from outlast.sdk.context import refuse_client_in_workflow
from outlast.sdk.decorators import Durable
from outlast.sdk.handle import Handle, UpdateHandle
from outlast.sdk.handlers import encode_message
from outlast.sdk.messages import MessageCall
from outlast.sdk.options import StartOptions, check_start_options
from outlast.sdk.registry import Registry, workflow_of
from outlast.sdk.url import open_store
from outlast.sdk.worker import Worker
from outlast.store.api import IdReuse, RunFilter, RunRow, RunStatus, Store

P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)
Co: TypeAlias = Coroutine[Any, Any, T]
Kind: TypeAlias = Literal["signal", "update"]


class RunClass(Protocol[Unpack[Ts], R_co]):
    """A workflow class whose run method is called with positional arguments."""

    @property
    def run(self) -> Callable[[Unpack[Ts]], R_co]: ...


class RunClassP(Protocol[P, R_co]):
    """A workflow class whose run method has this signature."""

    @property
    def run(self) -> Callable[P, R_co]: ...


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

    @overload
    async def signal_with_start(
        self,
        wf: Callable[[], RunClass[Unpack[Ts], Co[T]]],
        /,
        *args: Unpack[Ts],
        signal: MessageCall[Any],
        **options: Unpack[StartOptions],
    ) -> Handle[T]: ...
    @overload
    async def signal_with_start(
        self,
        wf: Callable[[Unpack[Ts]], Co[T]],
        /,
        *args: Unpack[Ts],
        signal: MessageCall[Any],
        **options: Unpack[StartOptions],
    ) -> Handle[T]: ...
    @overload
    async def signal_with_start(
        self,
        wf: Callable[[Unpack[Ts]], T],
        /,
        *args: Unpack[Ts],
        signal: MessageCall[Any],
        **options: Unpack[StartOptions],
    ) -> Handle[T]: ...
    async def signal_with_start(self, wf: Any, /, *args: Any, signal: Any, **options: Any) -> Any:  # type: ignore[misc]
        """Send a signal to the open run with this id; if there is none, start one that gets it as its first message.

        `await client.signal_with_start(Cart, "c-7", id="cart-7", signal=Cart.add.call("book"))`. When this returns, the
        signal is in exactly one run's mailbox, on disk. Raises as `start` and `Handle.signal` do.
        """
        handle, _ = await _with_start(self, wf, args, check_start_options(options), signal, "signal")
        return handle

    @overload
    async def update_with_start(
        self,
        wf: Callable[[], RunClass[Unpack[Ts], Any]],
        /,
        *args: Unpack[Ts],
        update: MessageCall[Co[R]],
        **options: Unpack[StartOptions],
    ) -> UpdateHandle[R]: ...
    @overload
    async def update_with_start(
        self,
        wf: Callable[[], RunClass[Unpack[Ts], Any]],
        /,
        *args: Unpack[Ts],
        update: MessageCall[R],
        **options: Unpack[StartOptions],
    ) -> UpdateHandle[R]: ...
    @overload
    async def update_with_start(
        self,
        wf: Callable[[Unpack[Ts]], Any],
        /,
        *args: Unpack[Ts],
        update: MessageCall[R],
        **options: Unpack[StartOptions],
    ) -> UpdateHandle[R]: ...
    async def update_with_start(self, wf: Any, /, *args: Any, update: Any, **options: Any) -> Any:  # type: ignore[misc]
        """Ask the open run with this id for an update; if there is none, start one that gets it as its first message.

        Returns when the run has accepted the update: `await (await client.update_with_start(...)).result()`; the run
        itself is `.handle`. Raises as `start` and `Handle.start_update` do; a run that was started stays, also if it
        refuses the update.
        """
        handle, message_id = await _with_start(self, wf, args, check_start_options(options), update, "update")
        reply = await self.service.messages.outcome_of_update(RunId(handle.run_id), message_id, final=False)
        return handle.accepted(update.message, message_id, reply)

    def options(self, **options: Unpack[StartOptions]) -> Starter:
        """Set the options of a start apart from the workflow's arguments, which may then be given by keyword too."""
        return _Starter(self, check_start_options(options))

    async def handle(self, workflow_id: str, workflow: Any = None) -> Handle[Any]:
        """The open run with this id, else the last one. Raises RunNotFound.

        Give the `workflow` to have its result decoded as the workflow's type; else it is what JSON gives.
        """
        refuse_client_in_workflow()
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
    target, request = _request(client, wf, args, kwargs, options, id_reuse)
    started = await client.service.start(request)
    return Handle(client.service, request.workflow_id, started.run_id, target), started.created


def _request(
    client: Client,
    wf: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: StartOptions,
    id_reuse: IdReuse,
) -> tuple[Durable[..., Any], StartRequest]:
    refuse_client_in_workflow()
    target = workflow_of(wf)
    request = StartRequest(
        target.name,
        WorkflowId(options.get("id") or client.service.entropy.token()),
        options.get("queue") or target.default_options.queue or DEFAULT_QUEUE,
        target.plan.encode_arguments(args, kwargs),
        options.get("priority", 0),
        id_reuse,
    )
    return target, request


async def _with_start(
    client: Client, wf: object, args: tuple[Any, ...], options: StartOptions, call: object, kind: Kind
) -> tuple[Handle[Any], MessageId]:
    if not isinstance(call, MessageCall):
        raise InvalidArgument(
            f"{kind}= expects a message with its arguments, `Approval.decide.call(...)`, not {call!r}"
        )
    if "id" not in options:
        raise InvalidArgument(
            f"client.{kind}_with_start() needs an id: it is by this id that the run is found which gets the {kind}"
        )
    target, request = _request(client, wf, args, {}, options, IdReuse.AFTER_CLOSE)
    name, arguments = encode_message(call.message, call.args, call.kwargs, kind, target.handlers)
    service = client.service
    message_id = MessageId(service.entropy.token())
    message = (SignalReceived if kind == "signal" else UpdateRequested)(message_id, name, arguments)
    started = await service.messages.with_start(request, message_id, message)
    return Handle(service, request.workflow_id, started.run_id, target), message_id


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
