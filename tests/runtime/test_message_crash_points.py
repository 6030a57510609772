"""The process dies at every commit of a run that is signalled, updated and asked, right before the write and right
after it. Senders live elsewhere, and try again under the same ids: always the same end, and each message counts once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from crashing import CrashingStore
from outlast import Handle, activity, workflow
from outlast.engine.invariants import check_history
from outlast.sdk.client import Client
from outlast.store.memory import MemoryStore
from virtual import client_on, run_virtual


@activity
async def stamp(text: str) -> str:
    return f"[{text}]"


@workflow
class Diary:
    def __init__(self) -> None:
        self.pages: list[str] = []
        self.closed = False

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait(lambda: self.closed)
        await workflow.wait(workflow.all_handlers_finished)
        return self.pages

    @workflow.signal
    async def note(self, text: str) -> None:
        self.pages.append(text)
        await workflow.sleep(1)

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.query
    def count(self) -> int:
        return len(self.pages)

    @workflow.update
    async def write(self, text: str) -> str:
        stamped = await stamp(text)
        self.pages.append(stamped)
        return stamped

    @write.validator
    def check_write(self, text: str) -> None:
        if not text:
            raise ValueError("empty")

    @workflow.update
    def tear(self) -> str:
        return self.pages.pop()


HOSTED = (Diary, stamp)
dead: list[object] = []
"""What a process that was killed was waiting for must not be collected as garbage before its test is over."""


@pytest.fixture(autouse=True)
def _bury_the_dead() -> Iterator[None]:
    yield
    dead.clear()


async def speak(client: Client) -> Handle[list[str]]:
    """From a process that hosts nothing and lives on."""
    handle = await client.signal_with_start(Diary, id="d", signal=Diary.note.call("one"))
    await handle.with_id("two").signal(Diary.note, "two")
    assert await handle.query(Diary.count) == 2
    with pytest.raises(ValueError, match="empty"):
        await handle.with_id("bad").update(Diary.write, "")
    update = await handle.with_id("three").start_update(Diary.write, "three")
    assert await update.result() == "[three]"
    assert await handle.query(Diary.count) == 3
    assert await handle.with_id("tear").update(Diary.tear) == "[three]"
    await handle.with_id("two").signal(Diary.note, "two")
    assert await handle.with_id("tear").update(Diary.tear) == "[three]"
    assert await handle.with_id("three").update(Diary.write, "three") == "[three]"
    assert await handle.query(Diary.count) == 2
    await handle.signal(Diary.close)
    return handle


async def scenario(at: int, *, written: bool) -> bool:
    """False: it came to its end before there was a commit number `at`."""
    data = MemoryStore()
    async with client_on(data.connect()) as speaker:
        speaking = asyncio.ensure_future(speak(speaker))
        crashing = CrashingStore(data.connect(), at, written=written)
        async with client_on(crashing) as first:  # type: ignore[arg-type]
            await first.worker(*HOSTED).__aenter__()
            membership = first.service.membership
            assert membership is not None
            dead.append((crashing, membership))
            crashed = asyncio.ensure_future(crashing.crashed.wait())
            await asyncio.wait([speaking, crashed], return_when=asyncio.FIRST_COMPLETED)
            crashed.cancel()
            membership.abandon()
        async with client_on(data.connect()) as second, second.worker(*HOSTED):
            handle = await speaking
            assert await handle.result() == ["one", "two"]
            assert await handle.query(Diary.count) == 2
            history = await handle.history()
            check_history(history)
            found = [type(each.event).__name__ for each in history]
            assert found.count("WorkflowExecutionSignaled") == 3
            assert found.count("WorkflowExecutionUpdateAccepted") == 2
            assert found.count("WorkflowExecutionUpdateCompleted") == 2
    return crashing.crashed.is_set()


@pytest.mark.parametrize("written", [False, True], ids=["before the write", "after the write"])
def test_a_crash_at_every_commit_loses_no_message_and_doubles_none(written: bool) -> None:
    at = 1
    while run_virtual(asyncio.wait_for(scenario(at, written=written), 10_000)):
        at += 1
    assert at > 7, "the scenario has that many commits at least"
