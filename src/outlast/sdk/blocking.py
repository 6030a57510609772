"""Blocking ways in: `outlast.run` for a program that is one workflow, `BlockingClient` for Flask, Django, scripts.

Both put the event loop on a thread of its own and wait for it, so that Ctrl-C reaches the caller at once.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, TypeVarTuple, Unpack, overload

from outlast.model.errors import AlreadyStarted, DurableCallError
from outlast.model.events import HistoryEvent
from outlast.model.ids import DEFAULT_QUEUE, RunId
from outlast.runtime.admission import MAX_BACKLOG
from outlast.runtime.limits import Limits
from outlast.runtime.service import Description
from outlast.sdk.client import Client, Co, Connecting, RunClass, begin, connect
from outlast.sdk.handle import Handle, UpdateHandle
from outlast.sdk.messages import MessageCall, Query, Signal, Update
from outlast.sdk.options import StartOptions
from outlast.sdk.registry import companions, workflow_of
from outlast.sdk.worker import Worker
from outlast.store.api import IdReuse, RunRow

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Ts = TypeVarTuple("Ts")


class LoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="outlast", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it. Interrupted, it is cancelled and waited for."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _refuse_inside_a_loop(what: str, instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise DurableCallError(f"{what} blocks, and was called on a running event loop. Use `{instead}` there.")


@overload
def run(
    wf: Callable[[], RunClass[Unpack[Ts], Co[T]]], /, *args: Unpack[Ts], url: str | None = None, id: str | None = None
) -> T: ...
@overload
def run(
    wf: Callable[[Unpack[Ts]], Co[T]], /, *args: Unpack[Ts], url: str | None = None, id: str | None = None
) -> T: ...
@overload
def run(wf: Callable[[Unpack[Ts]], T], /, *args: Unpack[Ts], url: str | None = None, id: str | None = None) -> T: ...
def run(wf: Any, /, *args: Any, url: str | None = None, id: str | None = None) -> Any:  # type: ignore[misc]
    """Run a workflow in this process to its end and return its result.

    With an `id` that has been used before, nothing is started: an open run goes on where it was (and one line on
    stderr says so), an ended one gives its recorded result. The activities that are declared in this process are
    hosted. Raises WorkflowFailed; NondeterminismError and other errors of a turn, after which the run stays open.
    """
    _refuse_inside_a_loop("outlast.run", "async with outlast.connect(...) as client: await client.execute(...)")
    thread = LoopThread()
    try:
        return thread.call(run_to_end(wf, args, {}, url, id))
    finally:
        thread.close()


async def run_to_end(
    wf: object, args: tuple[Any, ...], kwargs: dict[str, Any], url: str | None, workflow_id: str | None
) -> Any:
    """What `outlast.run` does, on an event loop."""
    target = workflow_of(wf)
    options: StartOptions = {} if workflow_id is None else {"id": workflow_id}
    queue = target.default_options.queue or DEFAULT_QUEUE
    async with connect(url) as client:
        target.plan.encode_arguments(args, kwargs)  # does not fit: before a worker begins anything
        async with client.worker(wf, *companions(target), queue=queue):
            handle, created = await begin(client, wf, args, kwargs, options, IdReuse.NEVER)
            if not created:
                await _announce(client, handle, (target.name, *target.aliases))
            outcome = await client.service.outcome(RunId(handle.run_id), raise_parked=True)
            return handle.value(outcome)


async def _announce(client: Client, handle: Handle[Any], names: tuple[str, ...]) -> None:
    row = await client.service.find_run(RunId(handle.run_id))
    if row.workflow not in names:
        raise AlreadyStarted(
            f"workflow id {handle.id!r} is in use by a run of {row.workflow!r}, not of {names[0]!r}; nothing was "
            "started. Choose another id.",
            handle.run_id,
        )
    verb = "resuming" if row.closed_at_us is None else "already finished:"
    print(
        f"outlast: {verb} {row.workflow}/{handle.id} ({row.next_event - 1} events are recorded)",
        file=sys.stderr,
        flush=True,
    )


class BlockingHandle(Generic[T_co]):
    """A run, seen from blocking code: the verbs of `Handle`."""

    def __init__(self, thread: LoopThread, handle: Handle[T_co], timeout: float | None = None) -> None:
        self.id = handle.id
        self.run_id = handle.run_id
        self._thread = thread
        self._handle = handle
        self._timeout = timeout

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for the end and return the result. Raises WorkflowFailed; TimeoutError after `timeout` seconds."""
        return self._thread.call(asyncio.wait_for(self._handle.result(), timeout))

    def describe(self) -> Description:
        """As `Handle.describe`."""
        return self._thread.call(self._handle.describe())

    def history(self) -> list[HistoryEvent]:
        """As `Handle.history`."""
        return self._thread.call(self._handle.history())

    def with_id(self, message_id: str) -> BlockingHandle[T_co]:
        """As `Handle.with_id`."""
        return BlockingHandle(self._thread, self._handle.with_id(message_id), self._timeout)

    def with_timeout(self, timeout: float) -> BlockingHandle[T_co]:
        """The same run; what is asked through this handle raises TimeoutError when no answer has come after so many
        seconds: `handle.with_timeout(5).query(Approval.status)`.

        An update may be done all the same. Given an id (`with_id`), it can be asked for again.
        """
        return BlockingHandle(self._thread, self._handle, timeout)

    @overload
    def signal(self, signal: Signal[Any, P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def signal(self, signal: str, /, *args: object, **kwargs: object) -> None: ...
    def signal(self, signal: Any, /, *args: Any, **kwargs: Any) -> None:
        """As `Handle.signal`."""
        self._thread.call(self._handle.signal(signal, *args, **kwargs))

    @overload
    def query(self, query: Query[Any, P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def query(self, query: str, /, *args: object, **kwargs: object) -> Any: ...
    def query(self, query: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `Handle.query`. Waits as long as it takes, unless `with_timeout` says otherwise."""
        return self._wait(self._handle.query(query, *args, **kwargs))

    @overload
    def update(self, update: Update[Any, P, Co[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def update(self, update: Update[Any, P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def update(self, update: str, /, *args: object, **kwargs: object) -> Any: ...
    def update(self, update: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `Handle.update`. Waits as long as it takes, unless `with_timeout` says otherwise."""
        return self._wait(self._handle.update(update, *args, **kwargs))

    @overload
    def start_update(
        self, update: Update[Any, P, Co[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingUpdateHandle[R]: ...
    @overload
    def start_update(
        self, update: Update[Any, P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> BlockingUpdateHandle[R]: ...
    @overload
    def start_update(self, update: str, /, *args: object, **kwargs: object) -> BlockingUpdateHandle[Any]: ...
    def start_update(self, update: Any, /, *args: Any, **kwargs: Any) -> BlockingUpdateHandle[Any]:
        """As `Handle.start_update`. Waits as long as it takes, unless `with_timeout` says otherwise."""
        accepted: UpdateHandle[Any] = self._wait(self._handle.start_update(update, *args, **kwargs))
        return BlockingUpdateHandle(self._thread, accepted)

    def cancel(self, reason: str = "") -> None:
        """As `Handle.cancel`."""
        self._thread.call(self._handle.cancel(reason))

    def terminate(self, reason: str = "") -> None:
        """As `Handle.terminate`."""
        self._thread.call(self._handle.terminate(reason))

    def _wait(self, answer: Coroutine[Any, Any, T]) -> T:
        return self._thread.call(asyncio.wait_for(answer, self._timeout))

    def __repr__(self) -> str:
        return f"<BlockingHandle {self.id!r} run_id={self.run_id}>"


class BlockingUpdateHandle(Generic[T_co]):
    """An update that a run has accepted, seen from blocking code."""

    def __init__(self, thread: LoopThread, update: UpdateHandle[T_co]) -> None:
        self.handle: BlockingHandle[Any] = BlockingHandle(thread, update.handle)
        """The run."""
        self.id = update.id
        """Under this id it can be waited for again, by any process: `handle.with_id(id).update(...)`."""
        self._thread = thread
        self._update = update

    def result(self, timeout: float | None = None) -> T_co:
        """As `UpdateHandle.result`; raises TimeoutError after `timeout` seconds."""
        return self._thread.call(asyncio.wait_for(self._update.result(), timeout))

    def __repr__(self) -> str:
        return f"<BlockingUpdateHandle {self.id} of {self.handle.id!r}>"


class BlockingWorker(AbstractContextManager["BlockingWorker"]):
    """Hosts workflows and activities as long as it is entered."""

    def __init__(self, thread: LoopThread, worker: Worker) -> None:
        self._thread = thread
        self._worker = worker

    def __enter__(self) -> BlockingWorker:
        self._thread.call(self._worker.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.call(self._worker.__aexit__(kind, error, trace))


class BlockingClient(AbstractContextManager["BlockingClient"]):
    """The verbs of `Client` for blocking code; safe to use from several threads.

    `with outlast.connect_blocking("sqlite:///orders.db") as client: client.start(order, 1, id="order-1")`
    """

    def __init__(self, connecting: Connecting) -> None:
        self._thread = LoopThread()
        self._connecting = connecting
        try:
            self._client = self._thread.call(connecting.__aenter__())
        except BaseException:
            self._thread.close()
            raise

    @overload
    def start(
        self, wf: Callable[[], RunClass[Unpack[Ts], Co[T]]], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> BlockingHandle[T]: ...
    @overload
    def start(
        self, wf: Callable[[Unpack[Ts]], Co[T]], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> BlockingHandle[T]: ...
    @overload
    def start(
        self, wf: Callable[[Unpack[Ts]], T], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> BlockingHandle[T]: ...
    def start(self, wf: Any, /, *args: Any, **options: Any) -> Any:  # type: ignore[misc]
        """As `Client.start`."""
        return BlockingHandle(self._thread, self._thread.call(self._client.start(wf, *args, **options)))

    @overload
    def execute(
        self, wf: Callable[[], RunClass[Unpack[Ts], Co[T]]], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> T: ...
    @overload
    def execute(
        self, wf: Callable[[Unpack[Ts]], Co[T]], /, *args: Unpack[Ts], **options: Unpack[StartOptions]
    ) -> T: ...
    @overload
    def execute(self, wf: Callable[[Unpack[Ts]], T], /, *args: Unpack[Ts], **options: Unpack[StartOptions]) -> T: ...
    def execute(self, wf: Any, /, *args: Any, **options: Any) -> Any:  # type: ignore[misc]
        """As `Client.execute`."""
        return self._thread.call(self._client.execute(wf, *args, **options))

    @overload
    def signal_with_start(
        self,
        wf: Callable[[], RunClass[Unpack[Ts], Co[T]]],
        /,
        *args: Unpack[Ts],
        signal: MessageCall[Any],
        **options: Unpack[StartOptions],
    ) -> BlockingHandle[T]: ...
    @overload
    def signal_with_start(
        self,
        wf: Callable[[Unpack[Ts]], Co[T]],
        /,
        *args: Unpack[Ts],
        signal: MessageCall[Any],
        **options: Unpack[StartOptions],
    ) -> BlockingHandle[T]: ...
    @overload
    def signal_with_start(
        self,
        wf: Callable[[Unpack[Ts]], T],
        /,
        *args: Unpack[Ts],
        signal: MessageCall[Any],
        **options: Unpack[StartOptions],
    ) -> BlockingHandle[T]: ...
    def signal_with_start(self, wf: Any, /, *args: Any, signal: Any, **options: Any) -> Any:  # type: ignore[misc]
        """As `Client.signal_with_start`."""
        started = self._thread.call(self._client.signal_with_start(wf, *args, signal=signal, **options))
        return BlockingHandle(self._thread, started)

    @overload
    def update_with_start(
        self,
        wf: Callable[[], RunClass[Unpack[Ts], Any]],
        /,
        *args: Unpack[Ts],
        update: MessageCall[Co[R]],
        **options: Unpack[StartOptions],
    ) -> BlockingUpdateHandle[R]: ...
    @overload
    def update_with_start(
        self,
        wf: Callable[[], RunClass[Unpack[Ts], Any]],
        /,
        *args: Unpack[Ts],
        update: MessageCall[R],
        **options: Unpack[StartOptions],
    ) -> BlockingUpdateHandle[R]: ...
    @overload
    def update_with_start(
        self,
        wf: Callable[[Unpack[Ts]], Any],
        /,
        *args: Unpack[Ts],
        update: MessageCall[R],
        **options: Unpack[StartOptions],
    ) -> BlockingUpdateHandle[R]: ...
    def update_with_start(self, wf: Any, /, *args: Any, update: Any, **options: Any) -> Any:  # type: ignore[misc]
        """As `Client.update_with_start`."""
        accepted: UpdateHandle[Any] = self._thread.call(
            self._client.update_with_start(wf, *args, update=update, **options)
        )
        return BlockingUpdateHandle(self._thread, accepted)

    def handle(self, workflow_id: str, workflow: Any = None) -> BlockingHandle[Any]:
        """As `Client.handle`."""
        return BlockingHandle(self._thread, self._thread.call(self._client.handle(workflow_id, workflow)))

    def runs(self, *, workflow: str | None = None, status: str | None = None, limit: int = 100) -> list[RunRow]:
        """As `Client.runs`."""
        return self._thread.call(self._client.runs(workflow=workflow, status=status, limit=limit))

    def worker(
        self,
        *hosted: object,
        queue: str | Sequence[str] = DEFAULT_QUEUE,
        name: str | None = None,
        limits: Limits | None = None,
    ) -> BlockingWorker:
        """As `Client.worker`: `with client.worker(order, charge):`. It runs on the client's own thread."""
        return BlockingWorker(self._thread, self._client.worker(*hosted, queue=queue, name=name, limits=limits))

    def close(self) -> None:
        """Close the database. The client is of no more use."""
        self._thread.call(self._connecting.__aexit__(None, None, None))
        self._thread.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect_blocking(
    url: str | None = None, *, create: bool = True, max_backlog: int | None = MAX_BACKLOG
) -> BlockingClient:
    """Open a database for blocking code. As `connect`; close it, or use it as a context manager."""
    _refuse_inside_a_loop("outlast.connect_blocking", "async with outlast.connect(...)")
    return BlockingClient(connect(url, create=create, max_backlog=max_backlog))
