# pyright: strict
"""What users write inside workflows and activities, as type checkers must see it. Never run: see test_typing.py.

A line with `# E:` must be reported by both checkers, and no other line by either.
"""

import asyncio
import functools
import logging
import random
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar, assert_type, overload
from uuid import UUID

from outlast import ActivityInfo, MessageArguments, Pending, Retry, WorkflowInfo, activity, workflow
from outlast.sdk.messages import Query, Signal, Update

P = ParamSpec("P")
R = TypeVar("R")


@activity(timeout="30s", retry=Retry(max_attempts=5, non_retryable=[ValueError, "billing:Declined"]), aliases=["pay"])
async def charge(amount: int, currency: str = "EUR") -> str:
    assert_type(activity.info(), ActivityInfo)
    assert_type(activity.idempotency_key, str)
    assert_type(activity.logger, logging.LoggerAdapter[logging.Logger])
    return f"{amount} {currency}"


@activity
def ship(item: int, *, fast: bool = False) -> bytes:
    return b""


@activity(name="stock of one", queue="warehouse", schedule_to_close=timedelta(hours=1))
def stock(item: int) -> list[int]:
    return [item]


@activity()
async def nothing() -> None: ...


class Payments:
    @activity
    async def refund(self, amount: int) -> str:
        return ""

    @activity(timeout=5)
    def fee(self, amount: int, *, percent: float = 0.0) -> int:
        return 1

    @staticmethod
    @activity
    def check(amount: int) -> bool:
        return True


payments = Payments()


@activity(timeuot="30s")  # E: no such option
def misspelt() -> None: ...


@activity(retry=5)  # E: a Retry
def retried() -> None: ...


@workflow(timeout="30s")  # E: a workflow has no timeout of its own
def timed() -> None: ...


@workflow
async def calls(order: str, count: int = 1) -> float:
    assert_type(await charge(1, currency="x"), str)
    assert_type(await charge.options(timeout=1, label="first", retry=Retry.never())(1), str)
    assert_type(ship(1, fast=True), bytes)
    assert_type(stock(1), list[int])
    assert_type(await payments.refund(1), str)
    assert_type(payments.fee(1, percent=0.1), int)
    assert_type(Payments.check(1), bool)
    await nothing()

    await charge("x")  # E: the amount is a number
    await charge(1, curency="x")  # E: no such argument
    await charge()  # E: the amount is missing
    ship(1, True)  # E: `fast` goes by keyword
    payments.fee("x")  # E: the amount is a number
    await payments.refund(1, 2)  # E: one argument
    charge(1)  # E: a forgotten await
    await charge.options(timeuot=1)(1)  # E: no such option
    await charge.options(name="x")(1)  # E: a name is for the decorator, a label for a call
    await charge.options(timeout=1)("x")  # E: the amount is a number
    return 1.0


@workflow
async def tasks(order: str) -> None:
    assert_type(await asyncio.to_thread(ship, 1), bytes)
    first, second = await asyncio.gather(charge(1), workflow.start(ship, 2))
    assert_type(first, str)
    assert_type(second, bytes)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(charge(1))
    assert_type(task.result(), str)
    assert_type(functools.partial(ship, fast=True)(1), bytes)


@workflow
async def generic_forms() -> None:
    assert_type(await workflow.execute(charge, 1), str)
    assert_type(await workflow.execute(charge, 1, "x", timeout="5s", label="second"), str)
    assert_type(workflow.execute(ship, 1, queue="q"), bytes)
    assert_type(await workflow.execute(payments.refund, 1), str)
    assert_type(workflow.start(charge, 1, timeout=None), Pending[str])
    assert_type(workflow.start(ship, 1), Pending[bytes])
    assert_type(await workflow.start(charge, 2), str)
    assert_type(workflow.start(ship, 2).result(), bytes)
    assert_type(await workflow.start(payments.fee, 2), int)

    await workflow.execute(charge, "x", timeout="5s")  # E: the amount is a number
    await workflow.execute(charge, 1, timeuot="5s")  # E: no such option
    workflow.execute(ship, 1, fast=True)  # E: keywords are options
    await workflow.start(charge, "x")  # E: the amount is a number
    await workflow.start(charge, 1, name="x")  # E: no such option


@workflow
async def waits() -> None:
    await workflow.sleep("2 hours", label="cooling down")
    await workflow.sleep(timedelta(days=1))
    assert_type(await workflow.wait(lambda: True, timeout=1), bool)
    assert_type(workflow.wait(lambda: None), Pending[bool])
    if await workflow.wait(lambda: 1, timeout="1 day", label="approval"):
        await workflow.sleep(1.5)
    await workflow.sleep(None)  # E: a duration
    await workflow.wait(True)  # E: a condition is a function


@workflow
async def forgets() -> None:
    if workflow.wait(lambda: True):  # E pyright: always true, if it did not raise: a forgotten await
        await nothing()  # E mypy: unreachable, for the same reason


@workflow
async def asks() -> None:
    assert_type(workflow.now(), datetime)
    assert_type(workflow.random(), random.Random)
    assert_type(workflow.uuid4(), UUID)
    assert_type(workflow.info(), WorkflowInfo)
    assert_type(workflow.info().started_at, datetime)
    workflow.logger.info("%s", workflow.now(), extra={"a": 1})
    with workflow.unsafe():
        pass


@workflow(name="sync", aliases=["plain"], queue="q")
def sync(item: int) -> list[str]:
    first = ship(item)
    workflow.sleep("5 seconds")
    held = workflow.wait(lambda: 1).result()
    assert_type(held, bool)
    return [str(first), str(held)]


@workflow
class Approval:
    def __init__(self) -> None:
        self.decision: str | None = None

    @workflow.run
    async def run(self, request: str, level: int = 0) -> int:
        await workflow.wait(lambda: self.decision)
        await self.run(5)  # E: the request is a string
        return level


@workflow(name="named approval")
class NamedApproval:
    @workflow.run
    def run(self, request: str) -> int:
        return len(request)


@workflow
class Talks:
    @workflow.run
    async def run(self, request: str) -> int:
        self.decide("yes", final=True)
        assert_type(self.status(), str)
        assert_type(await self.change(1), int)
        assert_type(self.rename("x"), int)
        await workflow.wait(workflow.all_handlers_finished)
        self.decide(5)  # E: the decision is a string
        await self.change("x")  # E: the amount is a number
        self.change(1)  # E: a forgotten await
        return 1

    @workflow.signal
    def decide(self, decision: str, *, final: bool = False) -> None: ...

    @workflow.signal(name="decide later", aliases=["later"])
    async def decide_later(self, after: int) -> None: ...

    @workflow.query
    def status(self) -> str:
        return ""

    @workflow.query(name="how many")
    def count(self, of: str = "all") -> int:
        return 1

    @workflow.update
    async def change(self, amount: int) -> int:
        return amount

    @change.validator
    def check_change(self, amount: int) -> None:
        if amount < 0:
            raise ValueError("negative")

    @workflow.update(aliases=["name"])
    def rename(self, name: str) -> int:
        return 1

    @rename.validator
    def check_rename(self, name: str) -> None: ...

    @rename.validator  # E: other parameters
    def check_another(self, name: int) -> None: ...

    @workflow.signal(dynamic=True)
    def any_signal(self, name: str, args: MessageArguments) -> None:
        assert_type(args.get(0, str), str)
        assert_type(args.get("items", list[int]), list[int])
        assert_type(args.decode(int, str), tuple[int, str])
        assert_type(len(args), int)
        assert_type(args.raw(), tuple[tuple[bytes, ...], dict[str, bytes]])
        number: str = args.get(0, int)  # E: it is read as a number
        print(number)

    @workflow.signal(nmae="x")  # E: no such option
    def misspelt(self) -> None: ...


@workflow
class TalksMore(Talks):
    @workflow.signal
    def decide(self, decision: str, *, final: bool = False) -> None:
        super().decide(decision, final=final)

    @workflow.update
    async def change(self, amount: int) -> int:
        return await super().change(amount) + 1


class SenderOfMessages:
    """The shape of what sends: a client's handle."""

    async def signal(self, message: Signal[Any, P, Any], *args: P.args, **kwargs: P.kwargs) -> None: ...

    async def query(self, message: Query[Any, P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        raise NotImplementedError

    @overload
    async def update(self, message: Update[Any, P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def update(self, message: Update[Any, P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def update(self, message: Any, *args: Any, **kwargs: Any) -> Any: ...


async def sends(handle: SenderOfMessages) -> None:
    await handle.signal(Talks.decide, "yes", final=True)
    await handle.signal(Talks.decide_later, after=1)
    await handle.signal(TalksMore.decide, "yes")
    assert_type(await handle.query(Talks.status), str)
    assert_type(await handle.query(Talks.count, "x"), int)
    assert_type(await handle.update(Talks.change, 1), int)
    assert_type(await handle.update(Talks.rename, name="x"), int)
    assert_type(await handle.update(TalksMore.change, amount=1), int)
    assert_type(Talks().status(), str)

    await handle.signal(Talks.decide, 5)  # E: the decision is a string
    await handle.signal(Talks.decide)  # E: the decision is missing
    await handle.signal(Talks.decide, "yes", True)  # E: `final` goes by keyword
    await handle.signal(Talks.status)  # E: a query is no signal
    await handle.query(Talks.decide, "yes")  # E: a signal is no query
    await handle.query(Talks.count, 5)  # E: a string
    await handle.update(Talks.change, "x")  # E: the amount is a number
    await handle.signal(Talks.run, "x")  # E: the run method is no signal
    await handle.signal(Talks().decide, "x")  # E: the method of an instance is no signal


@workflow
async def sets_handlers() -> None:
    decisions: list[str] = []

    def decide(decision: str) -> None:
        decisions.append(decision)

    def any_name(name: str, args: MessageArguments) -> None: ...

    async def change(amount: int) -> int:
        return amount

    def check(amount: int) -> None: ...

    def check_another(amount: str) -> None: ...

    workflow.set_signal_handler("decide", decide)
    workflow.set_signal_handler(None, any_name)
    workflow.set_query_handler("decisions", lambda: decisions)
    workflow.set_update_handler("change", change, validator=check)
    workflow.set_update_handler("change", change, check_another)  # E: other parameters
    workflow.set_signal_handler(decide)  # E: the name is missing
    workflow.set_signal_handler("decide", "decide")  # E: a function


assert_type(Approval().decision, str | None)
assert_type(Approval, type[Approval])
assert_type(NamedApproval().run("x"), int)


async def outside() -> None:
    """A unit test needs nothing: a decorated function is the function."""
    assert_type(await calls("a", count=2), float)
    assert_type(sync(1), list[str])
    assert_type(await Approval().run("a"), int)
    await calls(1)  # E: the order is a string
