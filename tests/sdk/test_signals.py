"""What a run is told: every handler that can be written, in the order of the sender, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

import outlast
from outlast import MessageArguments, MessageCall, activity, workflow
from outlast.model.ids import RunId
from outlast.runtime.membership import IDLE_S
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@activity
async def shout(text: str) -> str:
    return text.upper()


@activity
def shout_in_thread(text: str) -> str:
    return text.upper()


@workflow
class Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.stopped = False

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait(lambda: self.stopped)
        await workflow.wait(workflow.all_handlers_finished)
        return self.heard

    @workflow.signal
    def hear(self, text: str) -> None:
        self.heard.append(text)

    @workflow.signal
    async def hear_slowly(self, text: str) -> None:
        self.heard.append(await shout(text))

    @workflow.signal
    def hear_plainly(self, text: str) -> None:
        workflow.sleep(1)
        self.heard.append(shout_in_thread(text))

    @workflow.signal(name="by-another-name", aliases=["by-an-old-name"])
    def named(self, *texts: str, loud: bool = False) -> None:
        self.heard.append(("LOUD " if loud else "") + " ".join(texts))

    @workflow.signal(dynamic=True)
    def anything(self, name: str, args: MessageArguments) -> None:
        self.heard.append(f"{name} {args.get(0, int) + 1} {len(args)}")

    @workflow.signal
    def fail(self, why: str) -> None:
        raise LookupError(why)

    @workflow.signal
    async def fail_later(self, why: str) -> None:
        await workflow.sleep(1)
        raise LookupError(why)

    @workflow.signal
    def stop(self) -> None:
        self.stopped = True


HOSTED = (Listener, shout, shout_in_thread)


def virtually(work: Coroutine[Any, Any, Any]) -> Any:
    return run_virtual(asyncio.wait_for(work, 10_000))


async def kinds(handle: outlast.Handle[Any]) -> list[str]:
    return [type(each.event).__name__ for each in await handle.history()]


def test_every_kind_of_handler_is_called_by_method_and_by_name() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED):
            handle = await client.start(Listener, id="l")
            untyped = await client.handle("l")
            await handle.signal(Listener.hear, "one")
            await untyped.signal("hear", text="two")
            await handle.signal(Listener.hear_slowly, "three")
            await handle.signal(Listener.hear_plainly, "four")
            await handle.signal(Listener.named, "five", "six", loud=True)
            await untyped.signal("by-an-old-name", "seven")
            await untyped.signal("whatever", 8, True)
            await asyncio.sleep(2)
            await handle.signal(Listener.stop)
            heard = await handle.result()
            assert [each for each in heard if each in ("THREE", "FOUR")] == ["THREE", "FOUR"]
            assert [each for each in heard if each not in ("THREE", "FOUR")] == [
                "one", "two", "LOUD five six", "seven", "whatever 9 2"
            ]  # fmt: skip

    virtually(scenario())


@pytest.mark.parametrize("hosted", [True, False], ids=["hosted here", "hosted elsewhere"])
def test_the_order_of_one_sender_is_kept(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await (host if hosted else far).start(Listener, id="l")
            sent = [str(n) for n in range(700)]  # more than one turn takes
            for text in sent:
                await handle.signal(Listener.hear, text)
            await handle.signal(Listener.stop)
            assert await handle.result() == sent

    virtually(scenario())


def test_signals_that_come_before_a_worker_exists_wait_for_it_in_order() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as far, client_on(data.connect()) as host:
            handle = await far.start(Listener, id="l")
            sent = [str(n) for n in range(20)]
            for text in sent:
                await handle.signal(Listener.hear, text)
            await handle.signal(Listener.stop)
            assert await kinds(handle) == ["WorkflowExecutionStarted"]
            async with host.worker(*HOSTED):
                assert await handle.result() == sent

    virtually(scenario())


def test_a_signal_wakes_a_run_that_has_left_memory() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED):
            handle = await client.start(Listener, id="l")
            await handle.signal(Listener.hear, "one")
            await asyncio.sleep(3 * IDLE_S)
            assert not client.service.is_hosted(RunId(handle.run_id))
            await handle.signal(Listener.hear, "two")
            await handle.signal(Listener.stop)
            assert await handle.result() == ["one", "two"]

    virtually(scenario())


@workflow
async def late_listener() -> list[str]:
    heard: list[str] = []
    await workflow.sleep(5)

    def hear(text: str) -> None:
        heard.append(text)

    async def hear_slowly(text: str) -> None:
        heard.append(await shout(text))

    def anything(name: str, args: MessageArguments) -> None:
        heard.append(f"{name}{args.decode(int)[0]}")

    workflow.set_signal_handler("hear", hear)
    workflow.set_signal_handler("slowly", hear_slowly)
    await workflow.sleep(5)
    workflow.set_signal_handler(None, anything)
    await workflow.wait(lambda: len(heard) >= 5)
    await workflow.wait(workflow.all_handlers_finished)
    return heard


def test_signals_wait_until_a_function_sets_its_handler() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(late_listener, shout):
            handle = await client.start(late_listener, id="l")
            await handle.signal("x", 1)
            await handle.signal("hear", "a")
            await handle.signal("x", 2)
            await handle.signal("hear", "b")
            await handle.signal("slowly", "c")
            assert await handle.result() == ["a", "b", "C", "x1", "x2"]

    virtually(scenario())


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fail", "fail_later"])
def test_an_exception_in_a_handler_fails_the_run(how: str) -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED):
            handle = await client.start(Listener, id="l")
            await handle.signal(how, "no such page")
            with pytest.raises(outlast.WorkflowFailed) as caught:
                await handle.result()
            assert isinstance(caught.value.__cause__, LookupError)
            assert str(caught.value.__cause__) == "no such page"
            assert (await kinds(handle))[-1] == "WorkflowExecutionFailed"

    virtually(scenario())


def test_an_exception_in_a_handler_counts_also_when_the_run_ends_in_the_same_turn() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(Careless):
            handle = await client.start(Careless, id="c")
            await handle.signal(Careless.stop_and_fail)
            with pytest.raises(outlast.WorkflowFailed, match="LookupError: too late"):
                await handle.result()

    virtually(scenario())


outside: list[outlast.Handle[Any]] = []


@workflow
class Careless:
    def __init__(self) -> None:
        self.stopped = False

    @workflow.run
    async def run(self) -> None:
        await workflow.wait(lambda: self.stopped)

    @workflow.signal
    def stop_and_fail(self) -> None:
        self.stopped = True
        raise LookupError("too late")

    @workflow.signal
    async def use_the_client(self, how: str) -> None:
        (handle,) = outside
        await {"signal": handle.signal, "query": handle.query, "update": handle.update}[how]("stop_and_fail")


@pytest.mark.parametrize("how", ["signal", "query", "update"])
def test_a_handler_that_uses_a_client_is_told_to_do_it_in_an_activity(how: str) -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(Careless):
            handle = await client.start(Careless, id="c")
            outside[:] = [await client.handle("c")]
            await handle.signal(Careless.use_the_client, how)
            with pytest.raises(outlast.WorkflowFailed, match="a client was used inside a workflow"):
                await handle.result()
            assert await kinds(handle) == [
                "WorkflowExecutionStarted", "WorkflowExecutionSignaled", "WorkflowExecutionFailed"
            ]  # fmt: skip

    virtually(scenario())


def test_arguments_that_do_not_fit_are_skipped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await host.start(Listener, id="l")
            untyped = await far.handle("l")
            await untyped.signal("hear", 5)
            await untyped.signal("hear")
            await untyped.signal("hear", "a", "b")
            await untyped.signal("hear", "good")
            await handle.signal(Listener.stop)
            assert await handle.result() == ["good"]
            assert (await kinds(handle)).count("WorkflowExecutionSignaled") == 5

    with caplog.at_level(logging.ERROR, "outlast.workflow"):
        virtually(scenario())
    errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(errors) == 3
    assert all("signal hear does not fit its handler" in each and "is skipped" in each for each in errors)


def test_a_handler_that_is_not_waited_for_is_cut_off_by_the_end() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(Hasty, shout):
            handle = await client.start(Hasty, id="h")
            await handle.signal(Hasty.hear)
            assert await handle.result() == []

    virtually(scenario())


@workflow
class Hasty:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.began = False

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait(lambda: self.began)
        assert not workflow.all_handlers_finished()
        return self.heard

    @workflow.signal
    async def hear(self) -> None:
        self.began = True
        await workflow.sleep(10)
        self.heard.append("too late")


def test_what_cannot_be_sent_is_said_to_the_sender_and_nothing_is_written() -> None:
    async def scenario() -> None:
        data = MemoryStore(mailbox_limit=2)
        async with client_on(data) as client:
            handle = await client.start(Strict, id="s")
            with pytest.raises(outlast.NotRegistered, match=r"Strict has no signal called 'putt'.*'put'"):
                await handle.signal("putt", 1)
            with pytest.raises(outlast.PayloadError, match="n"):
                await handle.signal(Strict.put, "one")  # type: ignore[arg-type]
            with pytest.raises(outlast.PayloadError):
                await handle.signal("put", "one")
            with pytest.raises(outlast.OutlastError):
                await handle.signal(Strict.put)  # type: ignore[call-arg]
            with pytest.raises(outlast.InvalidArgument, match="is a query"):
                await handle.signal(Strict.total)  # type: ignore[call-overload]
            with pytest.raises(outlast.InvalidArgument, match="id of a message"):
                handle.with_id(" ")
            assert await client.service.store.mail_for([RunId(handle.run_id)]) == []
            await handle.signal(Strict.put, 1)
            await handle.signal(Strict.put, 1)
            with pytest.raises(outlast.Busy, match="nothing was sent"):
                await handle.signal(Strict.put, 1)
            assert len(await client.service.store.mail_for([RunId(handle.run_id)])) == 2
            nobody = outlast.Handle[int](client.service, "nobody", "0" * 32, None)
            with pytest.raises(outlast.RunNotFound):
                await nobody.signal("put", 1)
            async with client.worker(Strict):
                assert await handle.result() == 2
            with pytest.raises(outlast.RunClosed):
                await handle.signal(Strict.put, 1)

    virtually(scenario())


@workflow
class Strict:
    def __init__(self) -> None:
        self.n = 0

    @workflow.run
    async def run(self) -> int:
        await workflow.wait(lambda: self.n >= 2)
        return self.n

    @workflow.signal
    def put(self, n: int) -> None:
        self.n += n

    @workflow.query
    def total(self) -> int:
        return self.n

    @workflow.update
    def add(self, n: int) -> int:
        self.n += n
        return self.n


# --- signal_with_start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosted", [True, False], ids=["hosted here", "hosted elsewhere"])
def test_signal_with_start_starts_a_run_or_tells_the_open_one(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(Strict):
            client = host if hosted else far
            first = await client.signal_with_start(Strict, id="s", signal=Strict.put.call(1))
            again = await client.signal_with_start(Strict, id="s", signal=MessageCall("put", (1,)))
            assert again.run_id == first.run_id
            assert await again.result() == 2
            # The run has ended: another one begins.
            other = await client.signal_with_start(Strict, id="s", signal=Strict.put.call(5))
            assert other.run_id != first.run_id
            assert await other.result() == 5
            assert len(await client.runs()) == 2

    virtually(scenario())


def test_racing_signals_with_start_start_one_run_that_gets_them_all() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            racing = [
                client.signal_with_start(Listener, id="l", signal=Listener.hear.call(str(n)))
                for n in range(10)
                for client in (host, far)
            ]
            handles = await asyncio.gather(*racing)
            assert len({each.run_id for each in handles}) == 1
            await handles[0].signal(Listener.stop)
            assert sorted(await handles[0].result()) == sorted([str(n) for n in range(10)] * 2)

    virtually(scenario())


def test_signal_with_start_refuses_what_cannot_be_and_writes_nothing() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client:
            with pytest.raises(outlast.InvalidArgument, match="needs an id"):
                await client.signal_with_start(Strict, signal=Strict.put.call(1))
            with pytest.raises(outlast.InvalidArgument, match=r"Approval\.decide\.call"):
                await client.signal_with_start(Strict, id="s", signal="put")  # type: ignore[arg-type]
            with pytest.raises(outlast.PayloadError):
                await client.signal_with_start(Strict, id="s", signal=MessageCall("put", ("x",)))
            with pytest.raises(outlast.InvalidArgument):
                await client.signal_with_start(Strict, id="s", signal=Strict.add.call(1))
            assert await client.runs() == []

    virtually(scenario())
