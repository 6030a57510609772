"""Signals, queries and updates between real processes: whoever opens the database reaches every run and is answered."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import outlast
from cluster.databases import Database
from cluster.marks import begun
from cluster.nodes import Cluster
from cluster.programs import Ledger
from outlast import Client, Handle
from outlast.engine.invariants import check_history
from processes import results_of, until

SENDERS = 4
EACH = 25


async def names(handle: Handle[Any]) -> list[str]:
    history = await handle.history()
    check_history(history)
    return [type(each.event).__name__ for each in history]


async def test_a_process_that_hosts_nothing_is_answered(cluster: Cluster, client: Client, database: Database) -> None:
    handle = await client.start(Ledger, id="l")
    await handle.signal(Ledger.enter, "before any worker")
    await cluster.start()
    assert await handle.update(Ledger.book, "one") == 3
    assert await handle.query(Ledger.count) == 2
    async with outlast.connect(database.url) as other:
        untyped = await other.handle("l")
        await untyped.signal("enter", "two")
        assert await handle.query(Ledger.count) == 3
        assert await untyped.update("book", "three") == 5
        with pytest.raises(ValueError, match="nothing to book"):
            await untyped.update("book", "")
        with pytest.raises(outlast.NotRegistered, match="'bok'"):
            await untyped.update("bok", "three")
        with pytest.raises(outlast.NotRegistered, match="'cuont'"):
            await untyped.query("cuont")
        await untyped.signal("close")
        assert await results_of([handle]) == [["before any worker", "one", "two", "three"]]
        assert await handle.query(Ledger.count) == 4
        with pytest.raises(outlast.RunClosed):
            await untyped.signal("enter", "late")
    assert (await names(handle)).count("WorkflowExecutionUpdateAccepted") == 2


async def test_an_accepted_update_is_answered_by_another_process_when_its_owner_is_killed(
    cluster: Cluster, client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    first = await cluster.start()
    handle = await client.start(Ledger, id="l")
    update = await handle.with_id("gate").start_update(Ledger.book_when_open, str(gate))
    waiting = asyncio.ensure_future(update.result())
    await until(lambda: len(begun(cluster.marks, 1)) == 1)
    second = await cluster.start()
    first.kill()
    await until(lambda: len(begun(cluster.marks, 2)) == 1)
    assert {mark.pid for mark in begun(cluster.marks, 2)} == {second.pid}
    (gate / "book-2").touch()
    async with asyncio.timeout(60):
        assert await waiting == "attempt 2"
        assert await handle.with_id("gate").update(Ledger.book_when_open, str(gate)) == "attempt 2"
        assert await handle.query(Ledger.count) == 1
    assert (await names(handle)).count("WorkflowExecutionUpdateAccepted") == 1


async def test_no_message_is_lost_or_counted_twice_while_owners_are_killed_and_asked_to_end(
    cluster: Cluster, client: Client, database: Database
) -> None:
    workers = [await cluster.start(), await cluster.start()]
    handle = await client.start(Ledger, id="l")
    over = asyncio.Event()
    said: dict[str, int] = {}

    async def talk(name: str) -> None:
        """Until there are no more blows, however fast this goes."""
        async with outlast.connect(database.url) as speaker:
            mine = await speaker.handle("l", Ledger)
            while not over.is_set() or said[name] < EACH:
                n = said[name]
                said[name] += 1
                entry = f"{name}-{n}"
                await mine.with_id(entry).signal(Ledger.enter, entry)
                await mine.with_id(entry).signal(Ledger.enter, entry)
                assert await mine.query(Ledger.count) >= n + 1
                if n % 5 == 0:
                    booked = f"{entry}-booked"
                    assert await mine.with_id(booked).update(Ledger.book, booked) > n
                    assert await mine.with_id(booked).update(Ledger.book, booked) > n

    said.update((str(n), 0) for n in range(SENDERS))
    talking = asyncio.gather(*(talk(name) for name in said))
    for blow in ("kill", "ask to end"):
        seen = len(begun(cluster.marks, 1))
        await until(lambda seen=seen: len(begun(cluster.marks, 1)) > seen)
        assert not talking.done()
        worker = workers.pop(0)
        if blow == "kill":
            worker.kill()
        else:
            worker.ask_to_end()
            assert await asyncio.to_thread(worker.wait) == 0
        workers.append(await cluster.start())
    over.set()
    async with asyncio.timeout(120):
        await talking
    await handle.signal(Ledger.close)
    (entries,) = await results_of([handle])
    expected = [f"{name}-{n}" for name, count in said.items() for n in range(count)]
    expected += [f"{name}-{n}-booked" for name, count in said.items() for n in range(0, count, 5)]
    assert sorted(entries) == sorted(expected)
    for name, count in said.items():
        mine = [each for each in entries if each.startswith(f"{name}-") and not each.endswith("booked")]
        assert mine == [f"{name}-{n}" for n in range(count)], "the order of one sender is kept"
    await names(handle)
