# pyright: strict
"""What users write to start and watch runs, as type checkers must see it. Never run: see test_typing.py.

A line with `# E:` must be reported by both checkers, and no other line by either.
"""

from typing import assert_type

import outlast
from outlast import (
    BlockingClient,
    BlockingHandle,
    BlockingUpdateHandle,
    Client,
    Handle,
    HistoryEvent,
    UpdateHandle,
    activity,
    workflow,
)


@activity
def ship(item: int) -> bytes:
    return b""


@workflow
async def fulfil(order: str, count: int = 1) -> float:
    return 1.0


@workflow
async def one_argument(n: int) -> int:
    return n


@workflow
async def no_argument() -> None: ...


@workflow
def sync(item: int) -> list[str]:
    return []


@workflow
class Approval:
    @workflow.run
    async def run(self, request: str, level: int = 0) -> int:
        return level

    @workflow.signal
    def decide(self, decision: str, *, by: str = "") -> None: ...

    @workflow.query
    def status(self, first: int = 0) -> list[str]:
        return []

    @workflow.update
    async def amend(self, text: str) -> int:
        return len(text)

    @workflow.update(name="raise")
    def raise_level(self, by: int) -> bytes:
        return b""

    @amend.validator
    def check_amend(self, text: str) -> None: ...

    @amend.validator  # E: a validator takes what the update takes
    def check_number(self, text: int) -> None: ...


async def starts(client: Client) -> None:
    handle = await client.start(fulfil, "a", 3, id="x", queue="q", priority=1)
    assert_type(await handle.result(), float)
    assert_type(await (await client.start(fulfil, "a", id="x")).result(), float)
    assert_type(await (await client.start(sync, 3)).result(), list[str])
    assert_type(await (await client.start(one_argument, 1)).result(), int)
    assert_type(await (await client.start(Approval, "r", 1, id="x")).result(), int)
    assert_type(await (await client.start(Approval, "r", id="x")).result(), int)
    assert_type(await handle.history(), list[HistoryEvent])
    await handle.cancel("no longer wanted")
    await client.start(no_argument)

    await client.start(sync, "3", id="x")  # E: the item is a number
    await client.start(Approval, 5, id="x")  # E: the request is a string
    await client.start(fulfil, id="x")  # E: the order is missing
    await client.start(fulfil, "a", di="x")  # E: no such option
    await client.start(one_argument, n=1, id="x")  # E: arguments by keyword need client.options
    await client.start("fulfil", "a")  # E: a workflow, not its name


async def executes(client: Client) -> None:
    assert_type(await client.execute(fulfil, "a", 3, id="x"), float)
    assert_type(await client.execute(sync, 3), list[str])
    assert_type(await client.execute(Approval, "r", id="x"), int)
    await client.execute(fulfil, 5)  # E: the order is a string


async def starts_with_options(client: Client) -> None:
    options = client.options(id="x", priority=2)
    assert_type(await (await options.start(fulfil, "a", count=3)).result(), float)
    assert_type(await (await options.start(sync, item=3)).result(), list[str])
    assert_type(await (await options.start(Approval, "a", level=2)).result(), int)
    assert_type(await (await options.start(Approval, "a")).result(), int)
    assert_type(await options.execute(fulfil, order="a"), float)

    await options.start(fulfil, 5)  # E: the order is a string
    await options.start(Approval, 5)  # E: the request is a string
    await options.start(sync, "a")  # E: the item is a number
    await options.start(fulfil, "a", cuont=3)  # E: no such argument
    client.options(di="x")  # E: no such option


async def opens() -> None:
    async with outlast.connect("sqlite:///x.db") as client:
        assert_type(client, Client)
        async with client.worker(fulfil, ship, Approval, queue="orders"):
            await client.execute(fulfil, "a")
    assert_type(await outlast.connect(), Client)


def runs() -> None:
    assert_type(outlast.run(sync, 1, id="x"), list[str])
    assert_type(outlast.run(fulfil, "1", 2, id="x"), float)
    assert_type(outlast.run(Approval, "r", id="x"), int)
    outlast.run(sync, "1")  # E: the item is a number


async def sends(handle: Handle[int]) -> None:
    await handle.signal(Approval.decide, "yes", by="Ann")
    await handle.with_id("d-1").signal("decide", "yes")
    assert_type(handle.with_id("d-1"), Handle[int])
    assert_type(await handle.query(Approval.status), list[str])
    assert_type(await handle.query(Approval.status, first=1), list[str])
    assert_type(await handle.update(Approval.amend, "more"), int)
    assert_type(await handle.update(Approval.raise_level, 2), bytes)
    accepted = await handle.start_update(Approval.amend, "more")
    assert_type(accepted, UpdateHandle[int])
    assert_type(await accepted.result(), int)
    assert_type(await (await handle.start_update(Approval.raise_level, by=2)).result(), bytes)

    await handle.signal(Approval.decide, 5)  # E: the decision is a string
    await handle.signal(Approval.decide, "yes", "Ann")  # E: `by` goes by keyword
    await handle.signal(Approval.decide)  # E: the decision is missing
    await handle.signal(Approval.status)  # E: a query is no signal
    await handle.query(Approval.status, "x")  # E: the position is a number
    await handle.query(Approval.decide, "yes")  # E: a signal is no query
    await handle.update(Approval.amend, 5)  # E: the text is a string
    await handle.update(Approval.status)  # E: a query is no update
    await handle.start_update(Approval.amend)  # E: the text is missing
    await handle.start_update(Approval.raise_level, "x")  # E: a number
    await handle.signal(fulfil, "a")  # E: a workflow is no signal
    await handle.query(Approval.status, frist=1)  # E: no such argument


async def sends_with_start(client: Client) -> None:
    decide = Approval.decide.call("yes", by="Ann")
    assert_type(await client.signal_with_start(Approval, "r", 1, id="x", signal=decide), Handle[int])
    amend = await client.update_with_start(Approval, "r", id="x", update=Approval.amend.call("more"))
    assert_type(amend, UpdateHandle[int])
    raised = await client.update_with_start(Approval, "r", id="x", update=Approval.raise_level.call(1))
    assert_type(raised, UpdateHandle[bytes])

    Approval.decide.call(5)  # E: the decision is a string
    Approval.amend.call()  # E: the text is missing
    await client.signal_with_start(Approval, 5, id="x", signal=decide)  # E: the request is a string
    await client.signal_with_start(Approval, "r", id="x")  # E: which signal?
    await client.signal_with_start(Approval, "r", id="x", signal="decide")  # E: a call, not its name
    amended = Approval.amend.call("more")
    await client.update_with_start(Approval, 5, id="x", update=amended)  # E: the request is a string
    await client.update_with_start(Approval, "r", di="x", update=amended)  # E: no such option


def blocks(client: BlockingClient) -> None:
    handle = client.start(Approval, "r", id="x")
    assert_type(handle, BlockingHandle[int])
    handle.signal(Approval.decide, "yes", by="Ann")
    handle.signal("decide", "yes")
    assert_type(handle.with_id("d-1"), BlockingHandle[int])
    assert_type(handle.with_timeout(5).query(Approval.status, 1), list[str])
    assert_type(handle.update(Approval.amend, "more"), int)
    assert_type(handle.update(Approval.raise_level, 2), bytes)
    accepted = handle.start_update(Approval.amend, "more")
    assert_type(accepted, BlockingUpdateHandle[int])
    assert_type(accepted.result(timeout=5), int)
    assert_type(handle.start_update(Approval.raise_level, 2).result(), bytes)
    decide = Approval.decide.call("yes")
    assert_type(client.signal_with_start(Approval, "r", id="x", signal=decide), BlockingHandle[int])
    amend = client.update_with_start(Approval, "r", id="x", update=Approval.amend.call("more"))
    assert_type(amend, BlockingUpdateHandle[int])
    raised = client.update_with_start(Approval, "r", id="x", update=Approval.raise_level.call(1))
    assert_type(raised, BlockingUpdateHandle[bytes])

    handle.signal(Approval.decide, 5)  # E: the decision is a string
    handle.signal(Approval.amend, "x")  # E: an update is no signal
    handle.query(Approval.status, "x")  # E: the position is a number
    handle.update(Approval.amend)  # E: the text is missing
    handle.update(Approval.status)  # E: a query is no update
    handle.start_update(Approval.raise_level, "x")  # E: a number
    client.signal_with_start(Approval, 5, id="x", signal=decide)  # E: the request is a string
    client.signal_with_start(Approval, "r", id="x", signal="decide")  # E: a call, not its name
    client.update_with_start(Approval, 5, id="x", update=Approval.amend.call("more"))  # E: the request is a string
    client.update_with_start(Approval, "r", id="x")  # E: which update?
