"""What a run is asked to do: accepted or refused, done once, and the result goes to whoever asked."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

import outlast
from outlast import MessageArguments, MessageCall, activity, workflow
from outlast.engine.invariants import check_history
from outlast.engine.replay import replay
from outlast.engine.run import RunState
from outlast.model.events import WorkflowExecutionStarted
from outlast.model.ids import DEFAULT_NAMESPACE, RunId
from outlast.sdk.program import PythonProgram
from outlast.sdk.registry import workflow_of
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


class TooMuch(Exception):
    def __init__(self, amount: int, limit: int) -> None:
        super().__init__(f"{amount} is more than {limit}")


@dataclass
class Receipt:
    amount: int
    took: timedelta


@activity
async def reserve(amount: int) -> int:
    return amount


@activity
def reserve_in_thread(amount: int) -> int:
    return amount


@workflow
class Budget:
    def __init__(self) -> None:
        self.left = 100
        self.log: list[str] = []
        self.closed = False

    @workflow.run
    async def run(self) -> list[str]:
        self.log.append("begin")
        while not self.closed:
            await workflow.wait(lambda: self.closed, timeout=30)
            self.log.append(f"tick {workflow.random().randrange(1000)}")
        await workflow.wait(workflow.all_handlers_finished)
        return self.log

    @workflow.update
    async def spend(self, amount: int) -> Receipt:
        begun = workflow.now()
        self.left -= await reserve(amount)
        await workflow.sleep(2)
        self.log.append(f"spent {amount}")
        return Receipt(amount, workflow.now() - begun)

    @spend.validator
    def check_spend(self, amount: int) -> None:
        if amount > self.left:
            raise TooMuch(amount, self.left)

    @workflow.update
    def spend_plainly(self, amount: int) -> int:
        self.left -= reserve_in_thread(amount)
        workflow.sleep(1)
        return self.left

    @workflow.update
    async def fail(self, amount: int) -> None:
        await workflow.sleep(1)
        raise TooMuch(amount, self.left)

    @workflow.update
    def misfit(self) -> int:
        return "no number"  # type: ignore[return-value]

    @workflow.update(dynamic=True)
    def anything(self, name: str, args: MessageArguments) -> str:
        self.log.append(name)
        return f"{name} {len(args)}"

    @workflow.signal
    def tell(self, what: str) -> None:
        self.log.append(what)

    @workflow.signal
    async def tell_slowly(self, what: str) -> None:
        await workflow.sleep(3)
        self.log.append(what)

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.query
    def look(self) -> list[Any]:
        return [self.left, self.log]


HOSTED = (Budget, reserve, reserve_in_thread)
WHERE = pytest.mark.parametrize("hosted", [True, False], ids=["asked where it is hosted", "asked elsewhere"])


def virtually(work: Coroutine[Any, Any, Any]) -> Any:
    return run_virtual(asyncio.wait_for(work, 10_000))


async def kinds(handle: outlast.Handle[Any]) -> list[str]:
    history = await handle.history()
    check_history(history)
    return [type(each.event).__name__ for each in history if "Update" in type(each.event).__name__]


@WHERE
def test_an_update_returns_what_its_handler_returns_as_the_type_that_it_says(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            client = host if hosted else far
            handle = await client.start(Budget, id="b")
            receipt = await handle.update(Budget.spend, 5)
            assert isinstance(receipt, Receipt)
            assert receipt.amount == 5
            assert timedelta(seconds=2) <= receipt.took < timedelta(seconds=3)
            assert isinstance(await handle.update("spend", amount=5), Receipt)
            assert await handle.update(Budget.spend_plainly, 10) == 80
            assert await handle.update("whatever", 1, 2) == "whatever 2"
            untyped = await (await client.handle("b")).update("spend", 5)
            assert untyped["amount"] == 5
            assert await kinds(handle) == ["WorkflowExecutionUpdateAccepted", "WorkflowExecutionUpdateCompleted"] * 5

    virtually(scenario())


@WHERE
def test_accepted_and_completed_are_two_moments(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await (host if hosted else far).start(Budget, id="b")
            loop = asyncio.get_running_loop()
            begun = loop.time()
            update = await handle.start_update(Budget.spend, 5)
            assert loop.time() - begun < 1.5
            assert await kinds(handle) == ["WorkflowExecutionUpdateAccepted"]
            waiting = asyncio.ensure_future(update.result())
            await asyncio.sleep(0)
            waiting.cancel()
            assert (await update.result()).amount == 5
            assert loop.time() - begun >= 2
            assert (await update.result()).amount == 5
            assert update.handle is handle
            assert await kinds(handle) == ["WorkflowExecutionUpdateAccepted", "WorkflowExecutionUpdateCompleted"]

    virtually(scenario())


@WHERE
def test_a_refused_update_raises_what_the_validator_raised_and_is_not_recorded(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await (host if hosted else far).start(Budget, id="b")
            for ask in (handle.update, handle.start_update):
                with pytest.raises(TooMuch, match="101 is more than 100"):
                    await ask(Budget.spend, 101)
            assert await kinds(handle) == []
            assert await handle.query(Budget.look) == [100, ["begin"]]

    virtually(scenario())


@WHERE
def test_what_a_handler_raises_is_the_answer_and_hurts_nobody_else(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            handle = await (host if hosted else far).start(Budget, id="b")
            update = await handle.start_update(Budget.fail, 7)
            for _ in range(2):
                with pytest.raises(TooMuch, match="7 is more than 100"):
                    await update.result()
            with pytest.raises(outlast.PayloadError):
                await handle.update(Budget.misfit)
            await handle.signal(Budget.close)
            assert (await handle.result())[0] == "begin"

    virtually(scenario())


@workflow
class Picky:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait(lambda: False)

    @workflow.update
    async def choose(self, n: int) -> None:
        await workflow.sleep(1)
        if n == 9:

            class Unheard(Exception):
                pass

            raise Unheard("of")
        raise KeyError(n)

    @choose.validator
    def check_choose(self, n: int) -> None:
        if n == 0:
            workflow.sleep(1)
        if n < 0:
            raise ValueError("negative")


@WHERE
def test_an_exception_whose_class_is_known_here_is_raised_as_itself(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(Picky):
            handle = await (host if hosted else far).start(Picky, id="p")
            with pytest.raises(ValueError, match="negative"):
                await handle.update(Picky.choose, -1)
            with pytest.raises(KeyError, match="3"):
                await handle.update(Picky.choose, 3)
            with pytest.raises(outlast.DurableCallError, match="validator"):
                await handle.update(Picky.choose, 0)
            with pytest.raises(outlast.MessageFailed, match="of") as caught:
                await handle.update(Picky.choose, 9)
            assert caught.value.failure is not None
            assert caught.value.failure.type.endswith("Unheard")
            assert await kinds(handle) == ["WorkflowExecutionUpdateAccepted", "WorkflowExecutionUpdateCompleted"] * 2

    virtually(scenario())


@workflow
async def tally() -> int:
    n = 0

    async def add(by: int) -> int:
        nonlocal n
        n += by
        await workflow.sleep(1)
        return n

    def check(by: int) -> None:
        if by < 0:
            raise ValueError("negative")

    workflow.set_update_handler("add", add, check)
    await workflow.wait(lambda: n >= 3)
    await workflow.wait(workflow.all_handlers_finished)
    return n


def test_a_function_takes_updates_by_the_handlers_that_it_has_set() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(tally):
            handle = await client.start(tally, id="t")
            assert await handle.update("add", 1) == 1
            with pytest.raises(ValueError, match="negative"):
                await handle.update("add", -1)
            with pytest.raises(outlast.NotRegistered, match=r"'subtract'\. It has: add"):
                await handle.update("subtract", 1)
            assert await handle.update("add", 2) == 3
            assert await handle.result() == 3

    virtually(scenario())


def test_what_cannot_be_asked_is_said_to_the_asker_and_not_recorded() -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(Picky):
            handle = await host.start(Picky, id="p")
            untyped = await far.handle("p")
            with pytest.raises(outlast.NotRegistered, match="Picky has no update called 'chose'"):
                await handle.update("chose", 1)
            with pytest.raises(outlast.NotRegistered, match="'chose'"):
                await untyped.update("chose", 1)
            with pytest.raises(outlast.PayloadError):
                await handle.update(Picky.choose, "x")  # type: ignore[call-overload]
            with pytest.raises(outlast.OutlastError, match="n"):
                await untyped.update("choose", "x")
            with pytest.raises(outlast.OutlastError, match="n"):
                await untyped.update("choose")
            nobody = outlast.Handle[int](far.service, "nobody", "0" * 32, None)
            with pytest.raises(outlast.RunNotFound):
                await nobody.update("choose", 1)
            await handle.terminate()
            with pytest.raises(outlast.WorkflowTerminated):
                await handle.result()
            with pytest.raises(outlast.RunClosed, match="was not accepted, and did nothing"):
                await untyped.update("choose", 1)
            assert await kinds(handle) == []

    virtually(scenario())


@WHERE
def test_update_with_start_starts_a_run_or_asks_the_open_one(hosted: bool) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_on(data) as host, client_on(data.connect()) as far, host.worker(*HOSTED):
            client = host if hosted else far
            first = await client.update_with_start(Budget, id="b", update=Budget.spend.call(10))
            again = await client.update_with_start(Budget, id="b", update=MessageCall("spend", (20,)))
            assert first.handle.run_id == again.handle.run_id
            assert [(await each.result()).amount for each in (first, again)] == [10, 20]
            with pytest.raises(TooMuch, match="71 is more than 70"):
                await client.update_with_start(Budget, id="b", update=Budget.spend.call(71))
            await first.handle.signal("close")
            await first.handle.result()
            # A new run; it stays, though it refuses the update.
            with pytest.raises(TooMuch, match="101 is more than 100"):
                await client.update_with_start(Budget, id="b", update=Budget.spend.call(101))
            rows = await client.runs()
            assert [str(row.status) for row in rows] == ["open", "completed"]

    virtually(scenario())


# --- replay -----------------------------------------------------------------------------------------------------------


async def use_everything(client: outlast.Client) -> outlast.Handle[list[str]]:
    handle = await client.signal_with_start(Budget, id="b", signal=Budget.tell.call("first"))
    await handle.signal(Budget.tell_slowly, "slow")
    updates = [await handle.start_update(Budget.spend, n) for n in (10, 20)]
    with pytest.raises(TooMuch):
        await handle.update(Budget.spend, 1_000)
    assert isinstance(await handle.query(Budget.look), list)
    assert isinstance(await handle.update(Budget.spend_plainly, 5), int)
    with pytest.raises(TooMuch):
        await handle.update(Budget.fail, 1)
    await handle.update("other", 1)
    assert [(await each.result()).amount for each in updates] == [10, 20]
    await asyncio.sleep(40)
    return handle


def test_replay_comes_to_the_same_state_at_every_event() -> None:
    async def scenario() -> None:
        async with client_on(MemoryStore()) as client, client.worker(*HOSTED):
            handle = await use_everything(client)
            looked = await handle.query(Budget.look)
            history = await handle.history()
            assert rebuilt(handle, history) == looked
            await handle.signal(Budget.close)
            log = await handle.result()
            history = await handle.history()
            check_history(history)
            assert rebuilt(handle, history) == [65, log]
            assert await handle.query(Budget.look) == [65, log]

    virtually(scenario())


def rebuilt(handle: outlast.Handle[Any], history: list[outlast.HistoryEvent]) -> Any:
    """What the query says of a run that is replayed; that its commands are those of the history is checked too."""
    started = history[0].event
    assert isinstance(started, WorkflowExecutionStarted)
    run_id = RunId(handle.run_id)
    program = PythonProgram(workflow_of(Budget), started, run_id, DEFAULT_NAMESPACE, history[0].at_us)
    try:
        replay(RunState(run_id), program, history)
        answer = program.answer_query("look", Budget.look.plan.encode_arguments((), {}))
        return Budget.look.plan.decode_result(answer)  # type: ignore[arg-type]
    finally:
        program.close()


def test_a_run_that_leaves_memory_between_any_two_messages_comes_to_the_same_end() -> None:
    async def scenario(pause_s: float) -> list[str]:
        data = MemoryStore()
        async with client_on(data) as client, client.worker(*HOSTED):
            handle = await client.start(Budget, id="b")
            for n in range(3):
                await handle.signal(Budget.tell, str(n))
                await asyncio.sleep(pause_s)
                assert (await handle.update(Budget.spend, n)).amount == n
                await asyncio.sleep(pause_s)
            await handle.signal(Budget.close)
            return [each for each in await handle.result() if not each.startswith("tick")]

    assert (
        virtually(scenario(0)) == virtually(scenario(25)) == ["begin", "0", "spent 0", "1", "spent 1", "2", "spent 2"]
    )
