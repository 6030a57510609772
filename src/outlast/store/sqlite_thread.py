"""A thread that answers the requests of an event loop, all that wait at once.

Theory of operation
===================
The loop's side collects the requests of one tick and puts them into a `SimpleQueue` as one list, at the end of the
tick: so the thread wakes up once, and finds the whole batch. (A list that both sides touch lost requests in a
prototype.) The thread drains the queue, answers everything together, and calls the loop back once.

`Server` is what it does in between: opened, used and closed in the thread, and nowhere else.

Forks. Before one, every thread is waited for to leave SQLite, so that the child inherits neither a half-done
transaction nor a mutex that nobody will release. In the child the thread does not exist; its server is kept alive for
ever, since closing an inherited connection may write to files that the parent uses.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from outlast.model.errors import StoreUnavailable

logger = logging.getLogger("outlast")

Request = TypeVar("Request")
_Request_contra = TypeVar("_Request_contra", contravariant=True)


class Server(Protocol[_Request_contra]):
    def answer(self, requests: Sequence[_Request_contra]) -> Sequence[object]:
        """One answer for each request: a result, or an exception to raise in the caller."""
        ...

    def idle(self) -> float | None:
        """Called when nothing is to be done, and at first. How many seconds until it wants to be called again."""
        ...

    def close(self) -> None: ...


_Waiting: TypeAlias = "list[tuple[Request, asyncio.Future[Any]]]"

HAND_OVER_S = 0.0005
"""How long the loop waits for the thread to take a batch: about as long as a quick disk needs for the one before (see
docs/decisions/004)."""

LOOK_AT_LOOP_S = 0.5
"""How often the thread looks whether its event loop is still there: one that was closed without `close` ends it."""


class DatabaseThread(Generic[Request]):
    def __init__(self, name: str, connect: Callable[[], Server[Request]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect = connect
        self._collected: list[tuple[Request, asyncio.Future[Any]]] = []
        self._queue: SimpleQueue[list[tuple[Request, asyncio.Future[Any]]] | None] = SimpleQueue()
        self._closed = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._server: Server[Request] | None = None
        self._taken = threading.Lock()
        """Released by the thread when it has taken what was handed over; else held."""
        self._taken.acquire()
        self.in_sqlite = threading.Lock()
        # A daemon: a process may end without closing; whatever is under way is then as if the process had crashed.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        _threads.add(self)

    # --- the loop's side ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect. Raises what `connect` raises; `close` is then still to be called."""
        self._thread.start()
        await self._ready

    def submit(self, request: Request) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreUnavailable("the store is closed. Nothing was written. Open it again, or close it later.")
        future = self._loop.create_future()
        if not self._collected:
            self._loop.call_soon(self.hand_over)
        self._collected.append((request, future))
        return future

    def hand_over(self) -> None:
        """Give the thread what was submitted. It happens by itself at the end of the tick."""
        if self._collected:
            self._queue.put(self._collected)
            self._collected = []
            # Let the thread have the interpreter until it is inside SQLite. It would get it otherwise only when this
            # loop has nothing left to do, so that the two never worked at the same time.
            self._taken.acquire(timeout=HAND_OVER_S)

    async def close(self) -> None:
        """Answer what was submitted, then end. Idempotent."""
        if not self._closed:
            self._closed = True
            self.hand_over()
            self._queue.put(None)
        if self._thread.ident is not None:
            await asyncio.shield(self._ended)

    # --- the thread's side --------------------------------------------------------------------------------------

    def call_loop(self, callback: Callable[..., object], *arguments: object) -> bool:
        """False if the loop is no more."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True

    def _work(self) -> None:
        try:
            with self.in_sqlite:
                self._server = self._connect()
        except BaseException as error:
            self.call_loop(_resolve, [(self._ready, error), (self._ended, None)])
            return
        self.call_loop(_resolve, [(self._ready, None)])
        try:
            self._serve(self._server)
        finally:
            with self.in_sqlite:
                self._server.close()
            self.call_loop(_resolve, [(self._ended, None)])

    def _serve(self, server: Server[Request]) -> None:
        going_on = True
        while going_on:
            waiting, going_on = self._next(server)
            if waiting:
                if self._taken.locked():
                    self._taken.release()
                with self.in_sqlite:
                    answers = _answers(server, [request for request, _ in waiting])
                futures = [future for _, future in waiting]
                going_on &= self.call_loop(_resolve, list(zip(futures, answers, strict=True)))

    def _next(self, server: Server[Request]) -> tuple[list[tuple[Request, asyncio.Future[Any]]], bool]:
        """All that waits, and whether more may come. Blocks until there is something."""
        waiting: list[tuple[Request, asyncio.Future[Any]]] = []
        while not waiting:
            with self.in_sqlite:
                pause_s = _idle(server)
            try:
                batch = self._queue.get(timeout=pause_s)
            except Empty:
                if self._loop.is_closed():
                    return [], False
                continue
            while batch is not None:
                waiting += batch
                try:
                    batch = self._queue.get_nowait()
                except Empty:
                    break
            else:
                return waiting, False
        return waiting, True


def _idle(server: Server[Any]) -> float:
    try:
        pause_s = server.idle()
    except Exception as error:
        # Such as a disk that fails under a checkpoint. Nobody waits for this; the next caller will be told.
        logger.warning("the database could not be looked after (%s); trying again", error)
        pause_s = None
    return LOOK_AT_LOOP_S if pause_s is None else pause_s


def _answers(server: Server[Request], requests: list[Request]) -> Sequence[object]:
    try:
        return server.answer(requests)
    except Exception as error:
        return [error] * len(requests)


def _resolve(answers: list[tuple[asyncio.Future[Any], object]]) -> None:
    for future, answer in answers:
        if future.done():
            continue  # the caller was cancelled; what it asked for was done all the same
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)


# --- forks ------------------------------------------------------------------------------------------------------

_threads: weakref.WeakSet[DatabaseThread[Any]] = weakref.WeakSet()
_kept_out: list[DatabaseThread[Any]] = []


def _keep_out() -> None:
    _kept_out.extend(_threads)
    for thread in _kept_out:
        thread.in_sqlite.acquire()


def _let_in() -> None:
    for thread in _kept_out:
        thread.in_sqlite.release()
    _kept_out.clear()


def _keep_for_ever() -> None:
    # One reference too many, since a list in this module would be cleared when the interpreter ends.
    import ctypes

    for thread in _kept_out:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thread))
    _kept_out.clear()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_keep_out, after_in_parent=_let_in, after_in_child=_keep_for_ever)
