"""What a run is asked: it answers wherever it lives, sees all that was acknowledged before, and nothing is changed."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

import outlast
from outlast import DurableCallError, MessageArguments, activity, workflow
from outlast.model.ids import RunId
from outlast.runtime.membership import IDLE_S
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@activity
async def double(n: int) -> int:
    return n * 2


@activity
def double_in_thread(n: int) -> int:
    return n * 2


@dataclass
class Total:
    sum: int
    items: tuple[int, ...]


class NoSuchItem(Exception):
    def __init__(self, place: int) -> None:
        super().__init__(f"no item {place}")
        self.place = place


@workflow
class Basket:
    def __init__(self) -> None:
        self.items: list[int] = []
        self.paid = False

    @workflow.run
    async def run(self) -> int:
        workflow.logger.error("the run begins")
        await workflow.wait(lambda: self.paid)
        return sum(self.items)

    @workflow.signal
    def put(self, item: int) -> None:
        self.items.append(item)

    @workflow.signal
    def pay(self) -> None:
        self.paid = True

    @workflow.query
    def total(self) -> Total:
        return Total(sum(self.items), tuple(self.items))

    @workflow.query(name="item-at")
    def item(self, place: int) -> int:
        if place >= len(self.items):
            raise NoSuchItem(place)
        return self.items[place]

    @workflow.query(dynamic=True)
    def anything(self, name: str, args: MessageArguments) -> str:
        return f"{name}: {args.decode(int)[0]}"


@workflow
class Meddler:
    """Its queries do what queries may not."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait(lambda: False)

    @workflow.query
    def meddle(self, how: str) -> Any:
        match how:
            case "activity":
                return double_in_thread(1)
            case "async activity":
                double(1).send(None)  # type: ignore[attr-defined]
            case "start":
                workflow.start(double, 1)
            case "sleep":
                workflow.sleep(1)
            case "wait":
                workflow.wait(lambda: True)
            case "handler":
                workflow.set_signal_handler("x", lambda: None)
            case "exit":
                sys.exit(3)
            case "task":
                asyncio.get_running_loop().create_task(asyncio.sleep(1))
            case "timer":
                asyncio.get_running_loop().call_later(1, print)
            case _:
                return [str(workflow.info().workflow_id), workflow.now().year]
        return None


HOSTED = (Basket, Meddler, double, double_in_thread)


def virtually(work: Coroutine[Any, Any, Any]) -> Any:
    return run_virtual(asyncio.wait_for(work, 10_000))


async def kinds(handle: outlast.Handle[Any]) -> list[str]:
    return [type(each.event).__name__ for each in await handle.history()]


@pytest.mark.parametrize("state", ["open", "evicted", "closed"])
def test_a_run_answers_wherever_it_lives_and_nothing_is_written(state: str) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await host.start(Basket, id="b")
            await handle.signal(Basket.put, 3)
            await handle.signal(Basket.put, 4)
            if state == "closed":
                await handle.signal(Basket.pay)
                await handle.result()
            else:
                assert await handle.query(Basket.total) == Total(7, (3, 4))
            written = await kinds(handle)
            for asker in (handle, await far.handle("b", Basket), await host.handle("b")):
                if state == "evicted":
                    await asyncio.sleep(3 * IDLE_S)
                    assert not host.service.is_hosted(RunId(handle.run_id))
                assert await asker.query(Basket.total) == Total(7, (3, 4))
                assert await asker.query("item-at", place=1) == 4
                assert await asker.query("size", 9) == "size: 9"
                with pytest.raises(NoSuchItem) as caught:
                    await asker.query(Basket.item, 2)
                assert caught.value.args == ("no item 2",)
            untyped = await host.handle("b")
            assert await untyped.query("total") == {"sum": 7, "items": [3, 4]}
            assert await kinds(handle) == written

    virtually(scenario())


def test_an_open_run_needs_no_code_where_it_is_asked_and_a_closed_one_does() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await host.start(Basket, id="b")
            untyped = await far.handle("b")
            for pause_s in (0, 3 * IDLE_S):
                await asyncio.sleep(pause_s)
                with pytest.raises((NoSuchItem, outlast.MessageFailed), match="no item 0"):
                    await untyped.query("item-at", 0)
                assert await untyped.query("total") == {"sum": 0, "items": []}
            await handle.signal(Basket.pay)
            await handle.result()
            with pytest.raises(outlast.NotRegistered, match="needs its code"):
                await untyped.query("total")
            assert await (await far.handle("b", Basket)).query(Basket.total) == Total(0, ())

    virtually(scenario())


def test_a_query_sees_all_that_was_acknowledged_before() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await host.start(Basket, id="b")
            others = [handle, await far.handle("b", Basket), await far.handle("b")]
            sent = 0
            for round_ in range(30):
                for sender in others:
                    await sender.signal("put", 1)
                    sent += 1
                    for asker in others:
                        assert await asker.query("item-at", sent - 1) == 1
                if round_ % 10 == 5:
                    await asyncio.sleep(3 * IDLE_S)
            # More of them than one turn takes.
            for _ in range(1_200):
                await others[1].signal(Basket.put, 1)
            assert (await handle.query(Basket.total)).sum == sent + 1_200

    virtually(scenario())


def test_a_run_that_nobody_has_taken_yet_answers_where_its_code_is(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client:
            handle = await client.start(Basket, id="b")
            assert await handle.query(Basket.total) == Total(0, ())
            assert await kinds(handle) == ["WorkflowExecutionStarted"]
            # Without its code, or with mail that only a worker can take, it waits for one.
            await handle.signal(Basket.put, 1)
            asked = [asyncio.ensure_future(each.query("total")) for each in (handle, await client.handle("b"))]
            await asyncio.sleep(5)
            assert not any(each.done() for each in asked)
            assert not caplog.records, "the first turn was looked at, not taken"
            async with client.worker(*HOSTED):
                assert await asyncio.gather(*asked) == [Total(1, (1,)), {"sum": 1, "items": [1]}]

    caplog.set_level(logging.WARNING)
    virtually(scenario())


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("how", ["activity", "async activity", "start", "sleep", "wait", "handler"])
def test_a_query_that_asks_for_something_durable_is_told_so_and_changes_nothing(how: str, closed: bool) -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED):
            handle = await client.start(Meddler, id="m")
            if closed:
                await handle.terminate()
                with pytest.raises(outlast.WorkflowTerminated):
                    await handle.result()
            before = await kinds(handle)
            with pytest.raises(DurableCallError, match="query"):
                await handle.query(Meddler.meddle, how)
            assert await handle.query(Meddler.meddle, "look") == ["m", 2026]
            assert await kinds(handle) == before

    virtually(scenario())


@pytest.mark.parametrize("how", ["task", "timer"])
def test_a_query_cannot_leave_anything_behind_on_the_loop(how: str) -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED):
            handle = await client.start(Meddler, id="m")
            with pytest.raises(Exception, match="query"):
                await handle.query(Meddler.meddle, how)
            assert await handle.query(Meddler.meddle, "look") == ["m", 2026]
            assert await kinds(handle) == ["WorkflowExecutionStarted"]

    virtually(scenario())


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_a_query_that_exits_ends_neither_the_run_nor_whoever_asks(closed: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await host.start(Meddler, id="m")
            if closed:
                await handle.terminate()
            for each in (handle, await far.handle("m", Meddler)):
                with pytest.raises(outlast.OutlastError, match=r"SystemExit\(3\)"):
                    await each.query(Meddler.meddle, "exit")
            assert (await handle.describe()).row.error is None
            assert await handle.query(Meddler.meddle, "look") == ["m", 2026]

    virtually(scenario())


@workflow
async def counter() -> int:
    n = 0

    def count(by: int) -> None:
        nonlocal n
        n += by

    workflow.set_signal_handler("count", count)
    workflow.set_query_handler("n", lambda: n)
    await workflow.wait(lambda: n >= 3)
    return n


def test_a_function_answers_by_the_handlers_that_it_has_set() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(counter):
            handle = await host.start(counter, id="c")
            far_handle = await far.handle("c", counter)
            await far_handle.signal("count", 2)
            assert await handle.query("n") == 2
            assert await far_handle.query("n") == 2
            with pytest.raises(outlast.NotRegistered, match=r"no handler for the query 'm'. It has: n\."):
                await far_handle.query("m")
            await handle.signal("count", 1)
            assert await handle.result() == 3
            assert await handle.query("n") == 3
            assert await far_handle.query("n") == 3

    virtually(scenario())


def test_what_cannot_be_asked_is_said_to_the_asker() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await host.start(Meddler, id="m")
            untyped = await far.handle("m")
            with pytest.raises(outlast.NotRegistered, match=r"Meddler has no query called 'meddel'.*'meddle'"):
                await handle.query("meddel")
            with pytest.raises(outlast.NotRegistered, match="'meddel'"):
                await untyped.query("meddel")
            with pytest.raises(outlast.PayloadError):
                await handle.query(Meddler.meddle, 5)  # type: ignore[arg-type]
            with pytest.raises(outlast.OutlastError):
                await untyped.query("meddle", 5)
            with pytest.raises(outlast.OutlastError):
                await untyped.query("meddle")
            nobody = outlast.Handle[int](far.service, "nobody", "0" * 32, None)
            with pytest.raises(outlast.RunNotFound):
                await nobody.query("meddle")
            assert await kinds(handle) == ["WorkflowExecutionStarted"]

    virtually(scenario())
