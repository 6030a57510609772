"""What becomes of a store on PostgreSQL when connections break, servers restart, and locks are not to be had."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import asyncpg
import pytest

import postgres
from outlast.model.errors import Busy, CommitUnknown, InternalError, StoreUnavailable
from outlast.model.ids import MessageId, NodeId
from outlast.store import postgres as postgres_store
from outlast.store import postgres_connection, postgres_session
from outlast.store import postgres_sql as sql
from outlast.store.api import Answer, RunStatus, Sent
from outlast.store.postgres import PostgresStore
from outlast.store.postgres_connection import Line
from outlast.store.postgres_errors import translated
from store.building import claim, commit_one, mail, marks, row, run_id, start, task, turn, until
from store.staging import Stage, Wire, end, staged
from store.staging import claim as claim_over
from store.staging import commit as commit_over
from store.staging import send as send_over

A = NodeId(1_000)


@pytest.fixture
def url() -> Iterator[str]:
    url = postgres.require(postgres.fresh_database)
    yield url
    postgres.drop_database(url)


@pytest.fixture
async def stage(url: str) -> AsyncIterator[Stage]:
    async with staged(url) as stage:
        yield stage


@pytest.fixture
async def wire(url: str) -> AsyncIterator[Wire]:
    async with Wire(url) as wire:
        yield wire


# --- a commit of which nobody knows ---------------------------------------------------------------------------------


async def test_a_commit_whose_answer_is_lost_is_told_as_unknown_and_found_by_its_turn(stage: Stage, wire: Wire) -> None:
    store = await stage.store(wire.url)
    await store.commit([start(1, owner=A)])
    await store.commit([turn(1, A, 2, turn_id=1)])  # from here on the statement is one message
    wire.deaf = True

    writing = stage.begin(store.commit([turn(1, A, 3, turn_id=7)]))
    await wire.swallowed.wait()
    wire.hang_up()

    with pytest.raises(CommitUnknown, match="Perhaps it was written, perhaps not"):
        await writing
    assert (await row(store, 1)).turn_id == 7
    assert await commit_one(store, turn(1, A, 3, turn_id=7)) is Answer.FENCED
    assert await marks(store, 1) == [(1, 1, None), (2, 1, 1), (3, 1, 7)]


async def test_a_commit_that_was_cut_off_before_it_was_done_is_unknown_and_can_be_made_again(stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    holder = await stage.transaction()
    await holder.execute("SELECT 1 FROM outlast.runs FOR UPDATE")
    writing = await stage.waits(store.commit([turn(1, A, 2, turn_id=7)]))

    await holder.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    )

    with pytest.raises(CommitUnknown):
        await writing
    await end(holder)
    assert (await row(store, 1)).turn_id is None
    assert await commit_one(store, turn(1, A, 2, turn_id=7)) is Answer.COMMITTED


async def test_a_commit_that_lands_late_is_found_by_making_it_again(stage: Stage, wire: Wire) -> None:
    """The connection is gone, and the server still at work: what is read now is not the last word."""
    store = await stage.store(wire.url)
    await store.commit([start(1, owner=A)])
    holder = await stage.transaction()
    await holder.execute("SELECT 1 FROM outlast.runs FOR UPDATE")
    writing = await stage.waits(store.commit([turn(1, A, 2, turn_id=7)]))

    wire.hang_up()
    with pytest.raises(CommitUnknown):
        await writing
    assert (await row(store, 1)).turn_id is None, "not written yet"
    again = stage.begin(store.commit([turn(1, A, 2, turn_id=7)]))

    async def both_wait() -> bool:
        return await stage.blocked() == 2

    await until(both_wait)
    await end(holder)

    assert await again == [Answer.FENCED]
    assert (await row(store, 1)).turn_id == 7
    assert await marks(store, 1) == [(1, 1, None), (2, 1, 7)]


async def test_reading_when_the_connection_breaks_says_that_nothing_was_written(stage: Stage, wire: Wire) -> None:
    store = await stage.store(wire.url)
    await store.commit([start(1)])
    await row(store, 1)
    wire.deaf = True

    reading = stage.begin(store.run(run_id(1)))
    await wire.swallowed.wait()
    wire.hang_up()

    with pytest.raises(StoreUnavailable, match="Nothing was written"):
        await reading
    assert (await row(store, 1)).next_event == 2


# --- locks ----------------------------------------------------------------------------------------------------------


async def test_a_deadlock_means_that_nothing_was_written(url: str, stage: Stage) -> None:
    other = await stage.transaction()
    await other.execute("SET LOCAL deadlock_timeout = '1min'")  # so that it is the store that is given up
    store = await stage.store()
    await store.commit([start(1, owner=A), start(2, owner=A)])
    # The store takes the runs in order: it has the first, and waits for the second.
    await other.execute("SELECT 1 FROM outlast.runs WHERE run_id = $1 FOR UPDATE", run_id(2))
    writing = await stage.waits(store.commit([turn(1, A, 2), turn(2, A, 2)]))

    await other.execute("SELECT 1 FROM outlast.runs WHERE run_id = $1 FOR UPDATE", run_id(1))

    with pytest.raises(Busy, match=r"deadlock detected.*Nothing was written; try again"):
        await writing
    await end(other)
    assert [(await row(store, number)).next_event for number in (1, 2)] == [2, 2]
    assert await store.commit([turn(1, A, 2), turn(2, A, 2)]) == [Answer.COMMITTED] * 2


async def test_runs_of_a_batch_are_locked_in_the_order_of_their_ids(stage: Stage) -> None:
    """Else a batch that was given up, and is still at work, and one that has its runs again could block each other."""
    store = await stage.store()
    await store.commit([start(1, owner=A), start(2, owner=A)])
    holder, other = await stage.transaction(), await stage.connection()
    await holder.execute("SELECT 1 FROM outlast.runs WHERE run_id = $1 FOR UPDATE", run_id(1))

    writing = await stage.waits(store.commit([turn(2, A, 2), turn(1, A, 2)]))

    free = await other.fetch("SELECT run_id FROM outlast.runs FOR UPDATE SKIP LOCKED")
    await end(holder)
    assert await writing == [Answer.COMMITTED] * 2
    assert [found["run_id"] for found in free] == [run_id(2)]


async def test_a_lock_that_is_not_to_be_had_means_that_nothing_was_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert postgres_connection.SETTINGS["lock_timeout"] == "5s"
    monkeypatch.setattr(postgres_connection, "_SET", postgres_connection._SET + "; SET lock_timeout = '50ms'")
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    holder = await stage.transaction()
    await holder.execute("SELECT 1 FROM outlast.runs FOR UPDATE")

    with pytest.raises(Busy, match="Nothing was written; try again"):
        await store.commit([turn(1, A, 2)])
    with pytest.raises(Busy, match="Nothing was written; try again"):
        await store.send([mail(1, "m")])

    await end(holder)
    assert await commit_one(store, turn(1, A, 2)) is Answer.COMMITTED
    assert await store.send([mail(1, "m")]) == [Sent.ACCEPTED]
    assert len(await store.mail_of(A, 10)) == 1


# --- the server -----------------------------------------------------------------------------------------------------


async def test_a_store_survives_that_all_its_connections_are_cut(url: str, stage: Stage) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A)])

    assert len(await postgres.terminate_backends(url)) >= 2

    await until(lambda: _writes(store))


@pytest.mark.parametrize("crash", [False, True])
async def test_what_was_acknowledged_is_there_after_a_restart_of_the_server(
    url: str, stage: Stage, crash: bool
) -> None:
    store = await stage.store()
    await store.commit([start(1, owner=A)])
    await store.commit([turn(1, A, 2)])
    await store.send([mail(1, "m")])

    async with postgres.down(url, crash=crash):
        assert not await _writes(store)  # it may find a connection that it does not yet know to be cut
        with pytest.raises(StoreUnavailable, match="Nothing was written"):
            await store.commit([turn(1, A, 3)])

    await until(lambda: _writes(store))
    assert [each[:2] for each in await marks(store, 1)] == [(1, 1), (2, 1)]
    assert [each.message_id for each in await store.mail_of(A, 10)] == ["m"]


async def _writes(store: PostgresStore) -> bool:
    try:
        return await commit_one(store, start(2)) in (Answer.COMMITTED, Answer.ID_IN_USE)
    except (StoreUnavailable, CommitUnknown):
        return False


# --- who lives ------------------------------------------------------------------------------------------------------


async def _gone(store: PostgresStore, node: NodeId) -> bool:
    [found] = [each for each in await store.nodes() if each.node_id == node]
    return found.gone


async def test_a_restart_of_the_server_makes_nobody_gone(url: str, stage: Stage) -> None:
    """All sessions end with it: that says nothing of the processes at their other ends."""
    store, other = await stage.store(), await stage.store()
    node = await other.join("n")
    await other.close()

    async def is_gone() -> bool:
        return await _gone(store, node)

    await until(is_gone)
    await postgres.restart(url)

    async def works_again() -> bool:
        try:
            return bool(await store.nodes())
        except StoreUnavailable:
            return False

    await until(works_again)
    assert not await _gone(store, node)


async def test_a_node_whose_session_was_cut_comes_back_before_it_is_believed_gone(url: str, stage: Stage) -> None:
    store, other = await stage.store(), await stage.store()
    node = await other.join("n")
    observer = await stage.connection()
    of_session = "SELECT backend_pid FROM outlast.nodes WHERE node_id = $1"
    before = await observer.fetchval(of_session, node)
    seen: set[bool] = set()

    await observer.execute("SELECT pg_terminate_backend($1, 10000)", before)

    async def has_come_back() -> bool:
        seen.add(await _gone(store, node))
        return bool(await observer.fetchval(of_session, node) != before)

    await until(has_come_back)
    seen.add(await _gone(store, node))
    assert seen == {False}


async def test_a_node_whose_session_is_cut_and_has_other_connections_is_not_gone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_session, "GONE_FOR_S", 0.0)  # the second look is believed
    store, other = await stage.store(), await stage.store()
    node = await other.join("n")
    observer = await stage.connection()
    await observer.execute("UPDATE outlast.nodes SET backend_pid = backend_pid + 1000000")  # its session has ended
    assert [await _gone(store, node) for _ in range(3)] == [False, False, False]

    await observer.execute("UPDATE outlast.nodes SET client = 'somebody with no connection'")
    assert [await _gone(store, node) for _ in range(3)] == [False, True, True]


async def test_a_process_of_the_server_with_the_same_number_is_not_taken_for_the_node_s(stage: Stage) -> None:
    store = await stage.store()
    node = await store.join("n")
    observer = await stage.connection()
    await observer.execute(
        "UPDATE outlast.nodes SET client = 'nobody', backend_pid = pg_backend_pid(), "
        "backend_start = backend_start - interval '1 ms'"
    )

    async def is_gone() -> bool:
        return await _gone(store, node)

    await until(is_gone)


async def test_a_crash_of_one_process_of_the_server_makes_nobody_gone(url: str, stage: Stage) -> None:
    """The server then ends all the others too, and begins anew, but is as old as before."""
    store, other = await stage.store(), await stage.store()
    node = await other.join("n")
    await other.close()

    async def is_gone() -> bool:
        return await _gone(store, node)

    await until(is_gone)
    if "://" in os.environ.get(postgres.CHOSEN, ""):
        pytest.skip("the server was not started here, so its processes are not killed here either")
    victim = await stage.connection()
    os.kill(victim.get_server_pid(), signal.SIGKILL)

    async def is_cut() -> bool:
        return bool(victim.is_closed())

    await until(is_cut)

    async def works_again() -> bool:
        try:
            return bool(await store.nodes())
        except StoreUnavailable:
            return False

    await until(works_again)
    observer = await stage.connection()
    assert [each["gone"] for each in await observer.fetch(sql.NODES)] == [False]


async def test_a_heartbeat_that_was_held_up_does_not_bring_a_session_back_that_was_cut(stage: Stage) -> None:
    store = await stage.store()
    node = await store.join("n")
    observer = await stage.connection()
    of_session = "SELECT counter, backend_pid, backend_start FROM outlast.nodes"
    _, pid, started = await observer.fetchrow(of_session)
    await observer.execute(sql.REGISTER, [node], pid + 1, started + timedelta(microseconds=1))

    assert await observer.fetch(sql.HEARTBEAT, node, pid, started)

    assert tuple(await observer.fetchrow(of_session)) == (1, pid + 1, started + timedelta(microseconds=1))


async def test_a_node_that_finds_no_new_session_lives_by_its_heartbeat(url: str, stage: Stage) -> None:
    """As on a server that has no room for one more connection."""
    store, observer = await stage.store(), await stage.connection()
    node = await store.join("n")
    admin = await asyncpg.connect(postgres.server_url())
    name = postgres.database_of(url)
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    session = await observer.fetchval("SELECT backend_pid FROM outlast.nodes")
    await admin.execute("SELECT pg_terminate_backend($1, 10000)", session)

    async def says_so() -> bool:
        return await observer.fetchval("SELECT backend_pid IS NULL FROM outlast.nodes") is True

    await until(says_so)
    assert await store.heartbeat(node)
    assert [each["gone"] for each in await observer.fetch(sql.NODES)] == [False]
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await admin.close()

    async def has_one_again() -> bool:
        return await observer.fetchval("SELECT backend_pid IS NOT NULL FROM outlast.nodes") is True

    await until(has_one_again)


# --- what the role or the database prefers --------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
async def test_settings_of_the_database_do_not_change_what_the_store_rests_on(url: str, pooled: bool) -> None:
    database = await asyncpg.connect(url)
    for setting in ("default_transaction_isolation = 'serializable'", "statement_timeout = 1", "lock_timeout = 1"):
        await database.execute(f"ALTER DATABASE {postgres.database_of(url)} SET {setting}")
    await database.close()
    line = Line(url, "here", "outlast test", pooled=pooled)
    names = ("transaction_isolation", "statement_timeout", "lock_timeout")

    (found,) = await line.fetch("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))

    assert tuple(found) == ("read committed", "15s", "5s")
    await line.close()


async def test_an_error_with_which_the_server_ends_the_session_leaves_a_commit_unknown() -> None:
    """Also one that has no class of its own here: what ended the session may have come after the commit."""
    ended = asyncpg.PostgresError.new({"S": "FATAL", "V": "FATAL", "C": "57P05", "M": "terminating connection"})
    refused = asyncpg.PostgresError.new({"S": "ERROR", "V": "ERROR", "C": "23505", "M": "duplicate key"})

    assert isinstance(translated(ended, "here", writing=True), CommitUnknown)
    assert isinstance(translated(ended, "here", writing=False), StoreUnavailable)
    assert isinstance(translated(refused, "here", writing=True), InternalError)


async def test_a_connection_that_cannot_be_set_up_is_not_left_open(
    url: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = await stage.connection()
    monkeypatch.setattr(postgres_connection, "_SET", "SET nobody_knows_this = 1")
    kept: list[object] = []  # else it ends when it is collected
    connecting = asyncpg.connect

    async def connect(*args: object, **options: object) -> object:
        kept.append(await connecting(*args, **options))
        return kept[-1]

    monkeypatch.setattr(asyncpg, "connect", connect)

    with pytest.raises(StoreUnavailable, match="nobody_knows_this"):
        await postgres_connection.connect(url, "here", "outlast test", pooled=False)

    async def is_closed() -> bool:
        return await observer.fetchval(f"SELECT count(*) FROM ({postgres.BACKENDS}) AS others") == 0

    await until(is_closed)


async def test_a_connection_that_is_cut_while_it_is_made_is_no_bug_of_the_commit_that_wanted_it(
    url: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver then says so with an error of its own. A commit that fails with a bug parks its run."""
    store = await stage.store()
    node = await store.join("n")
    await postgres.terminate_backends(url)
    connecting = asyncpg.connect
    cut = [asyncpg.InternalClientError("got result for unknown protocol state 1") for _ in range(20)]

    async def connect(*args: object, **options: object) -> object:
        if cut:
            raise cut.pop()
        return await connecting(*args, **options)

    monkeypatch.setattr(asyncpg, "connect", connect)
    told: set[type[Exception]] = set()

    async def works_again() -> bool:
        try:
            return await store.commit([start(1, owner=node)]) == [Answer.COMMITTED]
        except (CommitUnknown, StoreUnavailable) as error:  # unknown: it was sent before it was known that it is cut
            told.add(type(error))
            return False

    await until(works_again)
    assert StoreUnavailable in told


# --- hints ----------------------------------------------------------------------------------------------------------


async def test_hints_come_again_after_all_connections_were_cut(url: str, stage: Stage) -> None:
    store, other = await stage.store(), await stage.store()
    await store.claim(claim(await store.join("n")))
    heard = asyncio.Event()
    store.on_change(heard.set)
    await postgres.terminate_backends(url)
    await asyncio.wait_for(heard.wait(), 30)  # that it has missed some
    heard.clear()
    number = 0

    async def hears() -> bool:
        nonlocal number
        number += 1
        try:
            await other.commit([start(number)])
        except (StoreUnavailable, CommitUnknown):
            return False
        return heard.is_set()

    await until(hears)


async def test_what_is_told_just_when_the_last_hint_is_out_is_told_too(stage: Stage) -> None:
    store, other = await stage.store(), await stage.store()
    session, hearer = store._session, other._session
    assert session is not None
    assert hearer is not None
    heard: list[str] = []
    hearer._concerns = heard.append
    connection = session._connection

    class ThenTells:
        async def execute(self, *given: object) -> None:
            session._connection = connection
            await connection.execute(*given)
            asyncio.get_running_loop().call_soon(session.tell, "second")

    session._connection = ThenTells()
    session.tell("first")

    async def both_were_heard() -> bool:
        return heard == ["first", "second"]

    await until(both_were_heard)


async def test_a_hint_for_a_queue_whose_name_has_a_line_s_end_is_heard(stage: Stage) -> None:
    store, other = await stage.store(), await stage.store()
    await store.claim(claim(await store.join("n"), queues=["a\nqueue"]))
    heard = asyncio.Event()
    store.on_change(heard.set)

    await other.commit([start(1, queue="a\nqueue")])

    await asyncio.wait_for(heard.wait(), 30)


async def test_a_reply_is_told_of_without_the_pause_that_the_ends_of_runs_make(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked waits for it, also while the news that a run has closed waits for more of its kind."""
    monkeypatch.setattr(postgres_session, "CLOSED_PAUSE_S", 3_600)
    store, other = await stage.store(), await stage.store()
    await other.commit([start(1, owner=A), start(2, owner=A)])
    assert await store.replies([MessageId("m")]) == {}
    heard = asyncio.Event()
    store.on_change(heard.set)
    await other.commit([turn(1, A, 2, status=RunStatus.COMPLETED)])
    await asyncio.sleep(0)

    await other.commit([turn(2, A, 2, replies={"m": b"1"})])

    await asyncio.wait_for(heard.wait(), 30)


async def test_only_who_has_asked_for_replies_a_moment_ago_is_told_of_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await stage.store()
    session = store._session
    assert session is not None
    assert not session._concerns("r")

    await store.closed_of([run_id(1)])
    assert not session._concerns("r")
    await store.replies([MessageId("m")])
    assert session._concerns("r")
    assert not (await stage.store())._session._concerns("r")  # type: ignore[union-attr]

    monkeypatch.setattr(postgres_store, "ENDS_S", -1.0)  # as if it was longer ago
    await store.replies([MessageId("m")])
    assert not session._concerns("r")


async def test_a_session_whose_other_end_is_gone_without_a_word_is_opened_again(
    stage: Stage, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "COMMAND_TIMEOUT_S", 0.2)
    store, other = await stage.store(wire.url), await stage.store()
    node = await store.join("n")
    await store.claim(claim(node))
    observer = await stage.connection()
    before = await observer.fetchval("SELECT backend_pid FROM outlast.nodes")
    session = store._session
    assert session is not None
    wire.deaf = True
    session.tell("q")
    await wire.swallowed.wait()

    async def is_cut() -> bool:
        return session.pid is None

    await until(is_cut)
    wire.hang_up()  # and from now on it works again

    async def has_another() -> bool:
        return await observer.fetchval("SELECT backend_pid FROM outlast.nodes") not in (None, before)

    await until(has_another)
    heard = asyncio.Event()
    store.on_change(heard.set)
    await other.commit([start(1)])
    await asyncio.wait_for(heard.wait(), 30)


async def _write_everything(stage: Stage) -> None:
    """In one transaction. PostgreSQL prepares none that has notified: so that it succeeds is the proof."""
    node = await (await stage.store()).join("n")
    writer = await stage.transaction()
    assert await commit_over(writer, [start(1, owner=node), start(2, mail=["m"])]) == {}
    assert await commit_over(writer, [turn(1, node, 2, add_tasks=[task()], replies={"m": b"1"})]) == {}
    assert await send_over(writer, mail(1, "m")) == "accepted"
    assert await claim_over(writer, claim(node)) == [run_id(2)]
    taken = [each["mail_id"] for each in await writer.fetch(sql.MAIL_FOR, [run_id(2)])]
    assert await commit_over(writer, [turn(2, node, 2, status=RunStatus.COMPLETED, consume=taken)]) == {}
    name = postgres.database_of(stage.url)
    await writer.execute(f"PREPARE TRANSACTION '{name}'")
    await writer.execute(f"ROLLBACK PREPARED '{name}'")


async def test_no_transaction_that_writes_notifies(stage: Stage) -> None:
    """All transactions of a server that have notified wait for one lock when they commit."""
    await _write_everything(stage)


async def test_a_transaction_that_notifies_is_found(stage: Stage) -> None:
    await stage.spoil("send_mail_1", "answer := 'accepted'", "answer := 'accepted'; NOTIFY outlast")

    with pytest.raises(asyncpg.FeatureNotSupportedError, match="NOTIFY"):
        await _write_everything(stage)
