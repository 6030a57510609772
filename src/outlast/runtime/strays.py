"""Strays: runs that a node owns by their rows, and does not host. They are found by reading the rows.

Theory of operation
===================
Such a run would be stranded: its owner is alive, so nobody claims it, and nobody works on it.

*They are to be expected after a claim of which nobody knows*, or a start (see `node`). It may have been written, or be
written later: the database goes on with what it was asked when the connection to whoever asked is gone. So the node
looks through all of its runs at once, and again for as long as the write may still land (`LATE_S`), with pauses that
grow up to `LOOK_S`: mostly it is late by moments.

*Else there should be none*: every other known way into that state is closed (see `membership`, "Nothing is stranded").
The node looks all the same, as the belt to those braces: every `LOOK_S` it reads a page of its open runs, in order,
and the page after it the next time. That turns a bug that loses a run for ever into an error in the log and a delay.

A run that is not in memory, neither before the reading nor after it, is a stray if its row, read again, still says so:
what was released or closed meanwhile is not. It is loaded like one that was taken from a dead node, since its row does
not say whether it was: rather count an attempt that had not begun than run one twice under the same number.
"""

from __future__ import annotations

import logging

from outlast.model.ids import Namespace, RunId
from outlast.runtime import loading
from outlast.runtime.node import Node
from outlast.store.api import Claimed, RunFilter, RunRow, RunStatus, Store

logger = logging.getLogger("outlast")

LOOK_S = 10.0
"""As often as the oldest beat of a lease: a stray waits about as long as the runs of a node that hangs."""

SOON_S = 0.5
"""The first pause after an unknown claim; each of the next is twice as long."""

LATE_S = 60.0
"""How long after a claim was given up it may still be written. A server is told to end our statements after seconds
(`store.postgres_connection`); the rest is for what was held up on its way there."""

PAGE = 500
"""Rows read at a time, about 5 ms; a node with its memory full has seen all of them in three minutes."""


class Strays:
    def __init__(self, store: Store, node: Node, namespace: Namespace) -> None:
        self._store = store
        self._node = node
        self._namespace = namespace
        self._look_at = node.clock.monotonic() + LOOK_S
        self._pause_s = LOOK_S
        self._before: RunId | None = None
        self._expected_until = float("-inf")

    def expect(self) -> None:
        """Nobody knows what a claim or a start has led to: look at once, at all of them."""
        now = self._node.clock.monotonic()
        self._look_at = now
        self._pause_s = SOON_S
        self._expected_until = now + LATE_S + LOOK_S  # the last look is when nothing can come any more

    async def look(self) -> None:
        """If it is time for that. A look that fails is made again in the next round."""
        now = self._node.clock.monotonic()
        if now < self._look_at:
            return
        whole = now < self._expected_until
        if whole:
            self._before = None
        await self._look_at_page(expected=whole)
        while whole and self._before is not None:
            await self._look_at_page(expected=True)
        self._look_at = now + self._pause_s
        self._pause_s = min(self._pause_s * 2, LOOK_S)

    async def _look_at_page(self, *, expected: bool) -> None:
        node = self._node
        known = set(node.hosted)
        rows = await self._store.runs(
            RunFilter(self._namespace, status=RunStatus.OPEN, owner=node.node_id, limit=PAGE, before=self._before)
        )
        seen = [row.run_id for row in rows if row.run_id not in known and self._is_stray(row)]
        again = [await self._store.run(run_id) for run_id in seen]
        strays = [row for row in again if row is not None and self._is_stray(row)]
        for row in strays:
            self._say(row, expected)
        # At once, so that those which may kill the process come last, one by one (see `loading`).
        await loading.adopt(node, [Claimed(row, lost=True) for row in strays])
        self._before = rows[-1].run_id if len(rows) == PAGE else None

    def _is_stray(self, row: RunRow) -> bool:
        node = self._node
        return row.owner == node.node_id and row.run_id not in node.hosted and not node.stopping

    def _say(self, row: RunRow, expected: bool) -> None:
        if expected:
            logger.info(
                "run %s of %s/%s came by a write whose answer was lost; it is loaded now",
                row.run_id, row.workflow, row.workflow_id,
            )  # fmt: skip
            return
        logger.error(
            "run %s of %s/%s belongs to this node, which did not know of it; it is loaded now. Please report this bug.",
            row.run_id, row.workflow, row.workflow_id,
        )  # fmt: skip
