"""Strays: runs that a node owns by their rows, and does not host. There should be none; this finds them all the same.

Theory of operation
===================
Such a run would be stranded: its owner is alive, so nobody claims it, and nobody works on it. Every known way into
that state is closed (see `membership`, "Nothing is stranded"). This look is the belt to those braces: it turns a bug
that loses a run for ever into an error in the log and a delay.

Every `LOOK_S` a page of the node's open runs is read, in order, and the page after it the next time. A run that is
not in memory, neither before the reading nor after it, is a stray if its row, read again, still says so: what was
released or closed meanwhile is not. It is loaded like one that was taken from a dead node.
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

PAGE = 500
"""Rows read at a time, about 5 ms; a node with its memory full has seen all of them in three minutes."""


class Strays:
    def __init__(self, store: Store, node: Node, namespace: Namespace) -> None:
        self._store = store
        self._node = node
        self._namespace = namespace
        self._looked_at = node.clock.monotonic()
        self._before: RunId | None = None

    async def look(self, now: float) -> None:
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        node = self._node
        known = set(node.hosted)
        rows = await self._store.runs(
            RunFilter(self._namespace, status=RunStatus.OPEN, owner=node.node_id, limit=PAGE, before=self._before)
        )
        self._before = rows[-1].run_id if len(rows) == PAGE else None
        for row in rows:
            if row.run_id not in known and row.run_id not in node.hosted and not node.stopping:
                await self._look_at(row)

    async def _look_at(self, seen: RunRow) -> None:
        row = await self._store.run(seen.run_id)
        if row is None or row.owner != self._node.node_id or row.run_id in self._node.hosted or self._node.stopping:
            return
        logger.error(
            "run %s of %s/%s belongs to this node, which did not know of it; it is loaded now. Please report this bug.",
            row.run_id, row.workflow, row.workflow_id,
        )  # fmt: skip
        await loading.adopt(self._node, [Claimed(row, lost=True)])
