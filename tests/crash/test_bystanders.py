"""A run that kills every process which loads it: nobody who was claimed together with it shares its fate."""

from __future__ import annotations

import asyncio
from pathlib import Path

import app
import pytest
from test_kill import App

import outlast
from processes import Supervised, results_of

BYSTANDERS = 60
"""Fewer than are claimed at a time, so that all of them are in one batch with the killers."""


@pytest.mark.parametrize("killers", [1, 3])
async def test_bystanders_of_a_killer_go_on_at_once_and_are_never_quarantined(tmp_path: Path, killers: int) -> None:
    url, marks = f"sqlite:///{tmp_path}/k.db", tmp_path / "marks"
    async with outlast.connect(url) as client:
        deadly = [await client.start(app.deadly) for _ in range(killers)]
        bystanders = [await client.start(app.chain, 3) for _ in range(BYSTANDERS)]
        workers = Supervised(lambda: App(url, marks, wait=False))
        errors: set[str] = set()
        done = asyncio.ensure_future(results_of(bystanders))
        while not done.done():
            for run in await client.runs(workflow="chain"):
                errors.update([run.error] if run.error else [])
            await asyncio.sleep(0.02)
        deaths = workers.deaths
        assert done.result() == [5] * BYSTANDERS
        assert not errors
        # All of them once, in the batch with the first; then each alone, when the bystanders have come before it. So
        # it costs no more than the starts of that many processes.
        assert deaths <= 2 * killers + 1
        await workers.end()
        rows = [(await each.describe()).row for each in deadly]
        assert all(row.status == "open" for row in rows), "they are neither lost nor taken for done"
