# pyright: strict
"""What users write to start and watch runs, as type checkers must see it. Never run: see test_typing.py.

A line with `# E:` must be reported by both checkers, and no other line by either.
"""

from typing import assert_type

import outlast
from outlast import Client, HistoryEvent, activity, workflow


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
