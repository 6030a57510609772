"""Messages to a run, and the answers, when ids collide, answers are late, old or lost, and the database fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from world import client_with_faults, membership_of, names, nothing_is_left, until

from faults import FaultyStore
from outlast import Handle, InvalidArgument, RunClosed, workflow
from outlast.model.errors import CommitUnknown, StoreUnavailable
from outlast.model.events import MessageUnhandled
from outlast.model.ids import RunId
from outlast.runtime.membership import IDLE_S, REPLIES_S
from outlast.runtime.service import TurnFailed
from outlast.sdk.client import Client
from outlast.store.api import Mail
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@workflow
class Account:
    def __init__(self) -> None:
        self.balance = 0
        self.closed = False

    @workflow.run
    async def run(self) -> int:
        await workflow.wait(lambda: self.closed)
        return self.balance

    @workflow.signal
    def pay_in(self, amount: int) -> None:
        self.balance += amount

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.query
    def now(self) -> int:
        return self.balance

    @workflow.update
    async def pay_out(self, amount: int) -> int:
        self.balance -= amount
        await workflow.sleep(1)
        return self.balance

    @pay_out.validator
    def check_pay_out(self, amount: int) -> None:
        if amount > self.balance:
            raise ValueError("not enough")

    @workflow.update
    def hold(self, amount: int) -> int:
        self.balance -= amount
        return self.balance


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 100_000))


WHERE = pytest.mark.parametrize("where", ["from the process that hosts the run", "from another process"])


@asynccontextmanager
async def account_and_asker(where: str) -> AsyncIterator[tuple[Client, Client]]:
    """A client whose worker hosts, and one that asks: the same, or in another process."""
    data = MemoryStore()
    async with client_on(data) as host, client_on(data.connect()) as far, host.worker(Account):
        yield host, host if where.startswith("from the process") else far


# --- ids --------------------------------------------------------------------------------------------------------------


@WHERE
def test_two_runs_may_be_sent_updates_of_one_id_and_each_gives_its_own_answer(where: str) -> None:
    async def scenario() -> None:
        async with account_and_asker(where) as (_, asker):
            poor, rich = [await asker.start(Account, id=name) for name in ("poor", "rich")]
            await poor.signal(Account.pay_in, 10)
            await rich.signal(Account.pay_in, 1_000)
            both = [each.with_id("rent").update(Account.pay_out, 5) for each in (poor, rich)]
            assert await asyncio.gather(*both) == [5, 995]
            assert await poor.with_id("gas").update(Account.hold, 1) == 4
            assert await rich.with_id("gas").update(Account.hold, 1) == 994

    virtually(scenario())


@WHERE
def test_an_update_that_was_refused_may_be_asked_again_under_its_id(where: str) -> None:
    async def scenario() -> None:
        async with account_and_asker(where) as (_, asker):
            handle = await asker.start(Account, id="a")
            for _ in range(2):
                with pytest.raises(ValueError, match="not enough"):
                    await handle.with_id("rent").update(Account.pay_out, 5)
            assert await names(handle) == ["WorkflowExecutionStarted"]
            await handle.signal(Account.pay_in, 7)
            assert await handle.with_id("rent").update(Account.pay_out, 5) == 2

    virtually(scenario())


def test_a_refused_update_that_is_read_once_more_after_its_commit_is_not_decided_anew() -> None:
    async def scenario() -> None:
        async with account_and_asker("from the process that hosts the run") as (client, _):
            node = membership_of(client).node
            read: list[Mail] = []
            put_mail = node.put_mail

            def put(mail: Iterable[Mail]) -> int:
                read.extend(mail := list(mail))
                return put_mail(mail)

            node.put_mail = put  # type: ignore[method-assign]
            handle = await client.start(Account, id="a")
            with pytest.raises(ValueError, match="not enough"):
                await handle.with_id("rent").update(Account.pay_out, 5)
            await handle.signal(Account.pay_in, 7)
            assert len(read) >= 2
            put_mail(read)
            assert await handle.query(Account.now) == 7
            assert await names(handle) == ["WorkflowExecutionStarted", "WorkflowExecutionSignaled"]

    virtually(scenario())


@WHERE
def test_an_update_under_the_id_of_a_signal_is_told_so(where: str) -> None:
    async def scenario() -> None:
        async with account_and_asker(where) as (_, asker):
            handle = await asker.start(Account, id="a")
            await handle.with_id("x").signal(Account.pay_in, 7)
            with pytest.raises(InvalidArgument, match=r"'x' is the id of a signal 'pay_in'"):
                await handle.with_id("x").update(Account.hold, 1)
            assert await names(handle) == ["WorkflowExecutionStarted", "WorkflowExecutionSignaled"]

    virtually(scenario())


@WHERE
def test_a_signal_counts_once_under_one_id(where: str) -> None:
    async def scenario() -> None:
        async with account_and_asker(where) as (_, asker):
            handle = await asker.start(Account, id="a")
            other = await asker.start(Account, id="b")
            for _ in range(3):
                await handle.with_id("wages").signal(Account.pay_in, 7)
                await asyncio.sleep(1)
            await other.with_id("wages").signal(Account.pay_in, 7)
            await handle.signal(Account.pay_in, 1)
            await handle.signal(Account.pay_in, 1)
            assert await handle.query(Account.now) == 9
            assert await other.query(Account.now) == 7
            assert (await names(handle)).count("WorkflowExecutionSignaled") == 3

    virtually(scenario())


@WHERE
def test_an_update_is_done_once_under_one_id_whenever_it_is_asked_again(where: str) -> None:
    async def scenario() -> None:
        async with account_and_asker(where) as (_, asker):
            handle = await asker.start(Account, id="a")
            await handle.signal(Account.pay_in, 7)
            again = handle.with_id("rent")
            at_once = asyncio.gather(*(again.update(Account.pay_out, 5) for _ in range(3)))
            open_ = await again.start_update(Account.pay_out, 5)
            assert open_.id == "rent"
            assert [await open_.result(), *await at_once] == [2, 2, 2, 2]
            assert await again.update(Account.pay_out, 5) == 2
            assert await (await again.start_update(Account.pay_out, 5)).result() == 2
            await handle.signal(Account.close)
            assert await handle.result() == 2
            assert await again.update(Account.pay_out, 5) == 2
            found = await names(handle)
            assert found.count("WorkflowExecutionUpdateAccepted") == 1
            assert found.count("WorkflowExecutionUpdateCompleted") == 1

    virtually(scenario())


def test_an_update_that_waits_for_a_worker_is_done_once_under_one_id() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client:
            handle = await client.start(Account, id="a")
            await handle.signal(Account.pay_in, 7)
            asked = [asyncio.ensure_future(handle.with_id("x").update(Account.hold, 5)) for _ in range(3)]
            await asyncio.sleep(5)
            assert not any(each.done() for each in asked)
            async with client.worker(Account):
                assert await asyncio.gather(*asked) == [2, 2, 2]
            assert (await names(handle)).count("WorkflowExecutionUpdateAccepted") == 1

    virtually(scenario())


# --- when answers are fetched -----------------------------------------------------------------------------------------


@WHERE
def test_the_result_of_an_update_can_be_fetched_long_after_it_is_done(where: str) -> None:
    async def scenario() -> None:
        async with account_and_asker(where) as (_, asker):
            handle = await asker.start(Account, id="a")
            await handle.signal(Account.pay_in, 7)
            loop = asyncio.get_running_loop()
            for pause_s in (IDLE_S / 2, 2 * IDLE_S, 2 * REPLIES_S):
                update = await handle.start_update(Account.pay_out, 1)
                await asyncio.sleep(pause_s)
                begun = loop.time()
                assert await update.result() == await handle.query(Account.now)
                assert loop.time() - begun < 2
                assert await update.result() == await handle.query(Account.now)

    virtually(scenario())


def test_an_answer_leaves_only_after_its_commit() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as far:
            async with client.worker(Account):
                handle = await client.start(Account, id="a")
                gate = store.gate("commit")
                asked = [
                    asyncio.ensure_future(handle.with_id("x").update(Account.hold, -5)),
                    asyncio.ensure_future((await far.handle("a", Account)).with_id("x").update(Account.hold, -5)),
                ]
                await gate.reached.wait()
                asked.append(asyncio.ensure_future(handle.query(Account.now)))
                await asyncio.sleep(5)
                assert not any(each.done() for each in asked), "the run has 5, and that is not on disk"
                gate.open()
                assert await asyncio.gather(*asked) == [5, 5, 5]
                assert store.used_up()

    virtually(scenario())


def test_a_query_of_a_run_that_leaves_memory_at_that_moment_is_answered() -> None:
    async def scenario(written: bool) -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as far:
            async with client.worker(Account):
                handle = await client.start(Account, id="a")
                await handle.signal(Account.pay_in, 7)
                assert await handle.query(Account.now) == 7
                gate = store.gate("commit", written=written)
                await gate.reached.wait()  # it is evicted
                elsewhere = await far.handle("a")
                asked = [asyncio.ensure_future(each.query("now")) for each in (handle, elsewhere)]
                await asyncio.sleep(5)
                gate.open()
                assert await asyncio.gather(*asked) == [7, 7]
                assert await names(handle) == ["WorkflowExecutionStarted", "WorkflowExecutionSignaled"]

    virtually(scenario(False))
    virtually(scenario(True))


def test_a_query_of_a_run_that_closes_at_that_moment_is_answered() -> None:
    async def scenario(written: bool) -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as far:
            async with client.worker(Account):
                handle = await client.start(Account, id="a")
                await handle.signal(Account.pay_in, 7)
                assert await handle.query(Account.now) == 7
                gate = store.gate("commit", written=written)
                await handle.signal(Account.close)
                await gate.reached.wait()
                elsewhere = await far.handle("a", Account)
                asked = [asyncio.ensure_future(each.query(Account.now)) for each in (handle, elsewhere)]
                await asyncio.sleep(5)
                gate.open()
                assert await asyncio.gather(*asked) == [7, 7]
                assert (await names(handle))[-1] == "WorkflowExecutionCompleted"
                await nothing_is_left(client)

    virtually(scenario(False))
    virtually(scenario(True))


# --- signals and the end of the run -----------------------------------------------------------------------------------


async def payments(handle: Handle[Any]) -> int:
    """How much was paid in by signals in the history, handled or not."""
    found = 0
    for each in await handle.history():
        event = each.event.message if isinstance(each.event, MessageUnhandled) else each.event
        if getattr(event, "signal", None) == "pay_in":
            found += int(event.arguments.args[0].to_bytes())  # type: ignore[union-attr]
    return found


def closing_faults(store: FaultyStore, fault: str) -> None:
    match fault:
        case "unknown, written":
            store.fail("commit", CommitUnknown("the line was cut"), written=True)
        case "unknown, not written":
            store.fail("commit", CommitUnknown("the line was cut"))
        case "unavailable":
            store.fail("commit", StoreUnavailable("away"))
        case _:
            pass


@pytest.mark.parametrize("fault", ["none", "unknown, written", "unknown, not written", "unavailable"])
def test_signal_racing_with_close_is_not_lost(fault: str) -> None:
    async def scenario(rounds: int) -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as far:
            async with client.worker(Account):
                handle = await client.start(Account, id="a")
                elsewhere = await far.handle("a", Account)
                closing_faults(store, fault)
                sent = 0

                async def pay(by: Handle[Any]) -> None:
                    nonlocal sent
                    while True:
                        try:
                            await by.signal(Account.pay_in, 1)
                        except RunClosed:
                            return
                        sent += 1
                        await asyncio.sleep(rounds * 0.001)

                paying = asyncio.gather(pay(handle), pay(elsewhere))
                await asyncio.sleep(rounds * 0.001)
                await handle.signal(Account.close)
                await handle.result()
                await paying
                assert store.used_up()
                assert sent > 0
                assert await payments(handle) == sent
                await names(handle)
                await nothing_is_left(client)

    for rounds in range(1, 6):
        virtually(scenario(rounds))


def test_a_signal_that_comes_while_the_run_closes_is_in_its_history_unhandled() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as far:
            async with client.worker(Account):
                handle = await client.start(Account, id="a")
                gate = store.gate("commit")
                await handle.signal(Account.close)
                await gate.reached.wait()
                await (await far.handle("a")).signal("pay_in", 3)
                gate.open()
                assert await handle.result() == 0
                assert await names(handle) == [
                    "WorkflowExecutionStarted", "WorkflowExecutionSignaled", "MessageUnhandled",
                    "WorkflowExecutionCompleted",
                ]  # fmt: skip
                assert await payments(handle) == 3

    virtually(scenario())


@workflow
class EndsAtOnce:
    @workflow.run
    async def run(self) -> str:
        return "done"

    @workflow.signal
    def tell(self, what: str) -> None:
        pass

    @workflow.update
    def ask(self, what: str) -> str:
        return what


@pytest.mark.parametrize("hosted", [True, False], ids=["hosted here", "hosted elsewhere"])
def test_a_message_that_starts_a_run_which_ends_at_once_is_not_lost(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(EndsAtOnce):
            client = host if hosted else far
            handle = await client.signal_with_start(EndsAtOnce, id="s", signal=EndsAtOnce.tell.call("hi"))
            assert await handle.result() == "done"
            assert await names(handle) == [
                "WorkflowExecutionStarted", "MessageUnhandled", "WorkflowExecutionCompleted"
            ]  # fmt: skip
            with pytest.raises(RunClosed, match="was not accepted"):
                await client.update_with_start(EndsAtOnce, id="u", update=EndsAtOnce.ask.call("hi"))
            handle = await client.handle("u", EndsAtOnce)
            assert await names(handle) == ["WorkflowExecutionStarted", "WorkflowExecutionCompleted"]
            await nothing_is_left(host)

    virtually(scenario())


# --- updates and the end of the run, or of its owner ------------------------------------------------------------------


@WHERE
@pytest.mark.parametrize("how", ["completes", "terminated"])
def test_an_update_that_is_open_when_the_run_ends_is_told_so(where: str, how: str) -> None:
    async def scenario() -> None:
        async with account_and_asker(where) as (host, asker):
            handle = await asker.start(Account, id="a")
            waiting = asyncio.ensure_future(handle.with_id("x").update(Account.pay_out, 0))
            accepted = await handle.with_id("x").start_update(Account.pay_out, 0)
            await (handle.signal(Account.close) if how == "completes" else handle.terminate("enough"))
            for late in (waiting, accepted.result(), handle.with_id("x").update(Account.pay_out, 0)):
                with pytest.raises(RunClosed, match="ended before update 'x', which it had accepted, was done"):
                    await late
            with pytest.raises(RunClosed, match="was not accepted, and did nothing"):
                await handle.update(Account.hold, 1)
            assert (await names(handle)).count("WorkflowExecutionUpdateAccepted") == 1
            await nothing_is_left(host)

    virtually(scenario())


def test_an_accepted_update_is_answered_by_the_next_owner_when_the_first_dies() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as asker:
            async with client_on(data.connect()) as first:
                worker = first.worker(Account)
                await worker.__aenter__()
                handle = await asker.start(Account, id="a")
                await handle.signal(Account.pay_in, 7)
                update = await handle.start_update(Account.pay_out, 5)
                waiting = asyncio.ensure_future(update.result())
                await asyncio.sleep(0.1)
                assert not waiting.done()
                membership_of(first).abandon()
            async with client_on(data.connect()) as second, second.worker(Account):
                assert await waiting == 2
                assert await handle.query(Account.now) == 2
                assert (await names(handle)).count("WorkflowExecutionUpdateAccepted") == 1

    virtually(scenario())


@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_commit_of_which_nobody_knows_costs_no_message_and_doubles_none(written: bool, where: str) -> None:
    async def scenario(at: int) -> bool:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as far:
            async with client.worker(Account):
                await client.start(Account, id="a")
                store.skip("commit", at)
                store.fail("commit", CommitUnknown("the line was cut"), written=written)
                handle = await (client if where == "here" else far).handle("a", Account)
                await handle.signal(Account.pay_in, 10)
                with pytest.raises(ValueError, match="not enough"):
                    await handle.update(Account.pay_out, 50)
                assert await handle.update(Account.pay_out, 1) == 9
                assert await handle.update(Account.hold, 1) == 8
                assert await handle.query(Account.now) == 8
                await handle.signal(Account.close)
                assert await handle.result() == 8
                assert await handle.query(Account.now) == 8
                assert await names(handle) == [
                    "WorkflowExecutionStarted",
                    "WorkflowExecutionSignaled",
                    "WorkflowExecutionUpdateAccepted", "TimerStarted", "TimerFired", "WorkflowExecutionUpdateCompleted",
                    "WorkflowExecutionUpdateAccepted", "WorkflowExecutionUpdateCompleted",
                    "WorkflowExecutionSignaled", "WorkflowExecutionCompleted",
                ]  # fmt: skip
                await nothing_is_left(client)
                return store.used_up()

    at = 0
    while run_virtual(asyncio.wait_for(scenario(at), 10_000)):
        at += 1
    assert at >= 5, "a signal, a refusal, an update in two commits, one in one, and the end"


# --- parked runs, and who cannot be asked -----------------------------------------------------------------------------


@workflow
class Breaks:
    def __init__(self) -> None:
        self.heard = 0

    @workflow.run
    async def run(self) -> None:
        await workflow.wait(lambda: False)

    @workflow.signal
    def hear(self) -> None:
        self.heard += 1

    @workflow.signal
    async def break_(self) -> None:
        workflow.sleep(10)  # nobody waits for it: the turn fails

    @workflow.query
    def how_often(self) -> int:
        return self.heard

    @workflow.update
    def change(self) -> int:
        return self.heard


def test_a_parked_run_that_is_asked_says_why_it_cannot_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(Breaks):
            handle = await host.start(Breaks, id="b")
            await handle.signal(Breaks.hear)
            assert await handle.query(Breaks.how_often) == 1
            await handle.signal(Breaks.break_)
            await until(lambda: not host.service.is_hosted(RunId(handle.run_id)))
            for each in (await far.handle("b"), handle):
                with pytest.raises(TurnFailed, match=r"workflow\.sleep"):
                    await each.query("how_often")
                with pytest.raises(TurnFailed, match=r"workflow\.sleep"):
                    await each.update("change")
            assert await names(handle) == ["WorkflowExecutionStarted", "WorkflowExecutionSignaled"]

    caplog.set_level(logging.CRITICAL)
    virtually(scenario())


def test_whoever_waits_for_an_answer_outlasts_an_outage_of_the_database() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_with_faults(data.connect()) as (asker, store), host.worker(Account):
            handle = await asker.start(Account, id="a")
            update = await handle.start_update(Account.pay_out, 0)
            waiting = asyncio.ensure_future(update.result())
            store.down = StoreUnavailable("away")
            await asyncio.sleep(10)
            assert not waiting.done()
            store.down = None
            assert await waiting == 0

    virtually(scenario())


@WHERE
def test_a_client_that_is_closed_keeps_nobody_waiting(where: str) -> None:
    async def scenario() -> None:
        async with account_and_asker(where) as (_, asker):
            handle = await asker.start(Account, id="a")
            waiting = asyncio.ensure_future((await handle.start_update(Account.pay_out, 0)).result())
            await asyncio.sleep(0.1)
            await asker.service.close()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    virtually(scenario())
