"""A process of its own for the tests: `python child.py MODE PATH ...`. What it has to say it writes to its stdout."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence

from outlast.model.errors import CommitUnknown, DurableCallError
from outlast.model.ids import NodeId
from outlast.store.api import Answer, Commit, NewRun, RunFilter, RunStatus, Store
from outlast.store.sqlite import SqliteStore
from outlast.store.sqlite_thread import DatabaseThread
from store.building import NAMESPACE, claim, committed, events, mail, run_id, start, turn


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def exit_code(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


async def append(path: str, first: int) -> None:
    """Append to runs of its own until it is killed, and say each commit that was acknowledged."""
    store = SqliteStore(path)
    await store.open()
    node = await store.join(f"appender {first}")
    numbers = range(first, first + 5)
    answers = await store.commit([start(number, owner=node) for number in numbers])
    assert answers == [Answer.COMMITTED] * 5
    next_event = 2
    while True:
        answers = await store.commit([turn(number, node, next_event, turn_id=next_event) for number in numbers])
        assert answers == [Answer.COMMITTED] * 5
        next_event += 1
        say("\n".join(f"{number} {next_event}" for number in numbers))


async def live(path: str) -> None:
    """Join, say the id, and live until stdin ends."""
    store = SqliteStore(path)
    await store.open()
    say(str(await store.join("lives")))
    sys.stdin.read()
    await store.close()


async def look(path: str) -> None:
    """Say who is gone."""
    store = SqliteStore(path, create=False)
    await store.open()
    say(" ".join(f"{each.node_id}:{each.gone}" for each in await store.nodes()))
    await store.close()


async def once(path: str) -> None:
    """Commit one run and end without closing anything."""
    store = SqliteStore(path)
    await store.open()
    await store.commit([start(1)])
    say("committed")
    os._exit(0)


def fork(path: str) -> None:
    """A fork in the life of a process that has the store open."""
    loop = asyncio.new_event_loop()
    store = SqliteStore(path)
    loop.run_until_complete(store.open())
    node = loop.run_until_complete(store.join("parent"))
    loop.run_until_complete(committed(store, start(1, owner=node)))
    child = os.fork()
    if child == 0:
        asyncio.set_event_loop(None)
        asyncio.run(in_the_child(store, path))
        sys.exit(0)  # the long way, with all finalisers
    assert exit_code(child) == 0
    assert loop.run_until_complete(committed(store, turn(1, node, 2), start(3))) == [Answer.COMMITTED] * 2
    say(str(node))
    sys.stdin.read()
    loop.run_until_complete(store.close())


async def in_the_child(inherited: Store, path: str) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        inherited.open,
        inherited.close,
        lambda: inherited.join("child"),
        lambda: inherited.heartbeat(NodeId(1)),
        inherited.nodes,
        lambda: inherited.declare_dead(NodeId(1)),
        lambda: inherited.commit([start(2)]),
        lambda: inherited.claim(claim(NodeId(1))),
        lambda: inherited.mail_of(NodeId(1), 1),
        lambda: inherited.send([mail(1, "m")]),
        lambda: inherited.run(run_id(1)),
        lambda: inherited.runs(RunFilter(NAMESPACE)),
        lambda: inherited.history(run_id(1)),
    ]
    for call in calls:
        try:
            await call()
            raise AssertionError(f"{call} worked in the child")
        except DurableCallError as error:
            if "fork" not in str(error):
                raise
    own = SqliteStore(path)
    await own.open()
    assert [each.gone for each in await own.nodes()] == [False], "the child took the parent's lock away"
    assert await own.commit([start(2)]) == [Answer.COMMITTED]
    await own.close()


class SlowServer:
    """Is inside an answer until somebody is about to fork, and then still has work to do."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def answer(self, requests: Sequence[str]) -> list[object]:
        self.inside.set()
        self.go_on.wait()
        sum(range(3_000_000))
        self.inside.clear()
        return list(requests)

    def idle(self) -> None:
        return None

    def close(self) -> None:
        pass


async def fork_waits() -> None:
    server = SlowServer()
    os.register_at_fork(before=server.go_on.set)  # of these, the last one registered is called first
    thread: DatabaseThread[str] = DatabaseThread("slow", lambda: server)
    await thread.start()
    answer = thread.submit("a")
    while not server.inside.is_set():
        await asyncio.sleep(0)
    child = os.fork()
    if child == 0:
        os._exit(int(server.inside.is_set()))
    say(str(exit_code(child)))
    assert await answer == "a"
    await thread.close()


async def io_error(path: str) -> None:
    """A disk that fails during COMMIT: no file may grow any more."""
    store = SqliteStore(path)
    await store.open()
    node = await store.join("n")
    await store.commit([start(number, owner=node) for number in (1, 2)])
    big = Commit(run_id(9), None, 1, events(20_000), 20_000, create=NewRun(NAMESPACE, run_id(9), "w", "q", None, None))  # type: ignore[arg-type]
    size = os.stat(path + "-wal").st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, resource.RLIM_INFINITY))
    for batch in ([big], [turn(1, node, 2, status=RunStatus.COMPLETED), big]):
        try:
            # With a call beside it the batch is a transaction of several statements; without, it is only one.
            await asyncio.gather(store.commit(batch), *([store.heartbeat(node)] if len(batch) == 2 else []))
        except CommitUnknown as error:
            say(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    row = await store.run(run_id(1))
    assert row is not None
    assert (row.next_event, row.status) == (2, RunStatus.OPEN)
    assert await store.run(run_id(9)) is None
    assert await store.commit([turn(1, node, 2), big]) == [Answer.COMMITTED] * 2
    await store.close()
    say("usable")


match sys.argv[1:]:
    case ["append", path, first]:
        asyncio.run(append(path, int(first)))
    case ["live", path]:
        asyncio.run(live(path))
    case ["look", path]:
        asyncio.run(look(path))
    case ["once", path]:
        asyncio.run(once(path))
    case ["fork", path]:
        fork(path)
    case ["fork_waits"]:
        asyncio.run(fork_waits())
    case ["io_error", path]:
        asyncio.run(io_error(path))
    case other:
        sys.exit(f"what is {other}?")
