"""Rounds: a hint is served at once, no hint costs at most a poll, and an idle node costs next to nothing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from world import HOSTED, add_one, client_with_faults, executed, long_step, membership_of, names, nap, two_steps, until

from faults import FaultyStore
from outlast.model.ids import RunId
from outlast.runtime.membership import HINT_PAUSE_S, LOOK_PAUSE_S
from outlast.runtime.strays import LOOK_S
from outlast.sdk.client import Client, Connecting
from outlast.store.api import Claimed
from outlast.store.memory import MemoryStore
from outlast.store.sqlite import SqliteStore
from virtual import client_on, run_virtual


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


def virtually(work: Coroutine[Any, Any, Any]) -> None:
    run_virtual(asyncio.wait_for(work, 3_600))


def now() -> float:
    return asyncio.get_running_loop().time()


class Deaf(MemoryStore):
    """Hints come only when the test gives one, and a poll costs: as on PostgreSQL with all notifications lost."""

    poll_s = 1.0

    def connect(self) -> MemoryStore:
        return Deaf(self._data)

    def on_change(self, callback: Callable[[], None]) -> None:
        pass


def statements(store: FaultyStore) -> int:
    return sum(store.calls.values())


def test_an_idle_node_costs_fewer_than_five_statements_a_second() -> None:
    async def scenario() -> None:
        data = Deaf()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as other:
            async with client.worker(*HOSTED), other.worker(*HOSTED):
                await asyncio.sleep(30)
                before, at = statements(store), now()
                await asyncio.sleep(100)
                assert (statements(store) - before) / (now() - at) < 4
                handle = await client.start(nap, 8)
                await asyncio.sleep(1)
                before, at = statements(store), now()
                await asyncio.sleep(5)
                assert membership_of(client).node.hosted
                assert (statements(store) - before) / (now() - at) < 5
                assert await handle.result() == "rested"

    virtually(scenario())


def test_what_cannot_be_needed_is_not_asked() -> None:
    async def scenario() -> None:
        data = Deaf()
        async with client_with_faults(data) as (client, store):
            async with client.worker(add_one):
                await asyncio.sleep(60)
                assert store.calls["claim"] == 0, "no workflow is hosted"
                assert store.calls["mail_of"] == 0, "and no run"
                assert store.calls["claim_tasks"] >= 59
            async with client.worker(nap):
                before = Counter(store.calls)
                await asyncio.sleep(60)
                assert store.calls["claim_tasks"] == before["claim_tasks"], "no activity is hosted"

    virtually(scenario())


def test_without_any_hint_everything_happens_within_a_poll() -> None:
    async def scenario() -> None:
        data = Deaf()
        async with client_on(data.connect()) as client, client_on(data.connect()) as starter:
            async with client.worker(*HOSTED):
                await asyncio.sleep(5.3)
                begun = now()
                handle = await starter.start(two_steps, 1)
                await until(lambda: len(executed) == 2)
                assert now() - begun <= 1.1
                sleeper = await starter.start(nap, 3_600)
                await asyncio.sleep(2.3)
                begun = now()
                await sleeper.cancel()
                with pytest.raises(Exception, match="cancelled"):
                    await sleeper.result()
                assert now() - begun <= 1.1 + 0.25
                assert await handle.result() == 3

    virtually(scenario())


def test_a_hint_is_served_at_once_and_a_storm_of_them_at_intervals() -> None:
    async def scenario() -> None:
        async with client_with_faults(Deaf()) as (client, store), client.worker(*HOSTED):
            await asyncio.sleep(5.3)
            before = store.calls["claim"]
            membership_of(client).hint()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert store.calls["claim"] == before + 1, "no time has passed"
            before, looks = store.calls["claim"], store.calls["nodes"]
            for _ in range(1_000):
                membership_of(client).hint()
                await asyncio.sleep(0.001)
            assert 0.8 / HINT_PAUSE_S <= store.calls["claim"] - before <= 1.0 / HINT_PAUSE_S + 2
            assert store.calls["nodes"] - looks <= 1.0 / LOOK_PAUSE_S + 2

    virtually(scenario())


def test_the_second_look_at_a_node_that_seems_gone_is_not_put_off() -> None:
    """A store that is not sure hints itself, to be asked again. That must not wait for a poll."""

    async def scenario() -> None:
        async with client_with_faults(Deaf()) as (client, store), client.worker(*HOSTED):
            await asyncio.sleep(5.01)
            looks, asked = store.calls["nodes"], now()
            membership_of(client).hint()
            await until(lambda: store.calls["nodes"] > looks)
            assert now() - asked <= LOOK_PAUSE_S + 0.02

    virtually(scenario())


def test_the_parts_of_a_round_do_not_wait_for_each_other() -> None:
    async def scenario() -> None:
        data = Deaf()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as other:
            async with client.worker(*HOSTED):
                sleeper = await client.start(nap, 3_600)
                gates = [store.gate(method) for method in ("nodes", "claim", "claim_tasks")]
                for gate in gates:
                    await gate.reached.wait()
                await (await other.handle(sleeper.id)).cancel()
                for gate in gates:
                    gate.open()
                with pytest.raises(Exception, match="cancelled"):
                    await sleeper.result()
                assert store.used_up()

    virtually(scenario())


# --- strays -----------------------------------------------------------------------------------------------------------


class Forgetful(MemoryStore):
    """Once, it gives a run away and does not tell: what a bug in a claim would do."""

    forgets = False

    async def claim(self, claim: Any) -> list[Claimed]:
        claimed = await super().claim(claim)
        if claimed and self.forgets:
            self.forgets = False
            return []
        return claimed


def test_a_run_that_its_node_does_not_know_of_is_found(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        forgetful = Forgetful(data._data)
        async with client_on(forgetful) as client, client_on(data.connect()) as starter, client.worker(*HOSTED):
            await asyncio.sleep(1)
            forgetful.forgets = True
            handle = await starter.start(nap, 5)
            await until(lambda: not forgetful.forgets)
            begun = now()
            assert await handle.result() == "rested"
            assert now() - begun < LOOK_S + 7
            assert "belongs to this node, which did not know of it" in caplog.text

    virtually(scenario())


def test_runs_that_come_and_go_are_no_strays(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        data = MemoryStore()
        async with client_with_faults(data) as (client, store), client_on(data.connect()) as other:
            async with client.worker(*HOSTED), other.worker(*HOSTED):
                while now() < 5 * LOOK_S:
                    await asyncio.gather(*(client.execute(two_steps, 1) for _ in range(20)))
                    await asyncio.gather(*(other.start(nap, 11) for _ in range(5)))
                    await asyncio.sleep(0.5)
                assert store.calls["runs"] >= 4
            assert "did not know" not in caplog.text
            assert set(executed.values()) == {1}

    virtually(scenario())


# --- two processes on SQLite ------------------------------------------------------------------------------------------


class SeldomPolled(SqliteStore):
    """What happens soon on this one is owed to hints."""

    poll_s = 60.0


@asynccontextmanager
async def two_clients(path: Path) -> AsyncIterator[tuple[Client, Client]]:
    stores = [SeldomPolled(str(path / "x.db"), synchronous="OFF") for _ in range(2)]
    async with Connecting(stores[0]) as one, Connecting(stores[1]) as two:
        yield one, two


async def test_a_worker_that_leaves_hands_its_runs_over_within_moments(tmp_path: Path) -> None:
    async with two_clients(tmp_path) as (one, two), two.worker(*HOSTED):
        async with one.worker(*HOSTED):
            handles = [await one.start(nap, 3_600) for _ in range(20)]
            leaving = membership_of(one).node.node_id
            ids = {RunId(each.run_id) for each in handles}
            assert ids <= membership_of(one).node.hosted.keys()
        left_at = time.monotonic()
        row = (await handles[0].describe()).row
        assert row.owner != leaving
        for handle in handles:
            await handle.cancel()
        for handle in handles:
            with pytest.raises(Exception, match="cancelled"):
                await asyncio.wait_for((await two.handle(handle.id)).result(), 10)
        assert time.monotonic() - left_at < 5


async def test_an_activity_that_was_under_way_goes_on_elsewhere_within_moments(tmp_path: Path) -> None:
    async with two_clients(tmp_path) as (one, two), two.worker(*HOSTED):
        async with one.worker(*HOSTED):
            handles = [await one.start(long_step, 0.5) for _ in range(20)]
            await until(lambda: len(executed) == 20)
        for handle in handles:
            there = await two.handle(handle.id)
            assert await asyncio.wait_for(there.result(), 10) == "done"
            assert (await names(there)).count("ActivityAttemptLost") == 1


async def test_a_start_is_seen_by_the_other_process_without_a_poll(tmp_path: Path) -> None:
    async with two_clients(tmp_path) as (one, two), two.worker(*HOSTED):
        for n in range(5):
            handle = await one.start(two_steps, n)
            assert await asyncio.wait_for(handle.result(), 10) == n + 2
