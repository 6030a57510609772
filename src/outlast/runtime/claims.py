"""Claims: which free runs a node takes, and how many at a time, so that work spreads by free capacity.

Theory of operation
===================
A node claims one batch in a round, loads it, and comes back for more while there is more. How large the batch is and
how soon the next one follows depends on who else is there:

- *Alone*, it takes whatever its memory has room for, at once. What it cannot begin waits here as well as anywhere.
- *Among others*, it must not swallow what they could begin now. It takes no more than it has free slots for attempts
  (none is free: a few, which may not need any), and pauses `SHARE_PAUSE_S` after each full batch, in which others get
  theirs. Loading is done by the same event loop as all other work, an iteration or more per run: a node whose loop
  lags is slow to come back, and its share goes to the others by itself.
- *Among others and full*, that is, attempts stand in line for slots or runs for their turns, it takes only a few, every
  `TRICKLE_S`: a run may have to do something that needs no slot (a timer, a cancel), and all nodes may be full. The
  attempts that stand in line become tasks meanwhile (see `dispatch`), so being full does not last.

A slot that becomes free while more was wanted is a hint: the next round follows at once.
"""

from __future__ import annotations

from functools import partial

from outlast.model.events import EVENT_FORMAT
from outlast.model.ids import Namespace
from outlast.runtime import loading
from outlast.runtime.clock import APART_US
from outlast.runtime.limits import Limits
from outlast.runtime.node import Node
from outlast.runtime.ports import Host
from outlast.store.api import Claim, Claimed, Store

CLAIM_BATCH = 100
"""Runs claimed at a time: about 50 ms of replaying, between which other turns are taken."""

SHARED_BATCH = 50
"""Among other nodes: half of that, since whoever has claimed a run is the only one who can begin it."""

SHARE_PAUSE_S = 0.01
"""Some round trips of whoever has just had a hint."""

TRICKLE = 10
TRICKLE_S = 0.25
"""A full node takes 40 runs a second: no sleeper waits for ever, and the line grows by less than others can take."""


class Claims:
    """One for each node that was joined."""

    def __init__(self, store: Store, node: Node, host: Host, namespace: Namespace, limits: Limits) -> None:
        self._store = store
        self._node = node
        self._host = host
        self._namespace = namespace
        self._limits = limits
        self._threaded = any(host.needs_thread(name) for name in host.activity_names())
        self._trickle_at = self._pause_until = 0.0
        self.stopped = False
        """The node is leaving: it takes no more."""
        self.takes_parked = True
        """It has just joined, and its next claim takes runs that wait only because their turn failed."""
        self.again_s: float | None = None
        """More is free than was taken: in how many seconds to come back for it. None: there was no more."""

    def is_full(self) -> bool:
        """More has been begun here than can go on at once."""
        return self._node.attempts.waiting > 0 or len(self._node.line) > SHARED_BATCH

    def room(self) -> int:
        """Runs that memory has room for."""
        return 0 if self.stopped else self._limits.runs - len(self._node.hosted)

    async def claim(self, *, shared: bool, suspects: bool) -> None:
        """Take a batch. `shared`: other nodes are alive. `suspects`: dead nodes own runs."""
        self.again_s = None
        names = tuple(self._host.workflow_names())
        if not names:
            return
        if self.takes_parked:
            await self._claim_parked(names)
        limit = self._limit(shared)
        if limit > 0:
            claimed = await self._store.claim(self._wanted(names, limit))
            await loading.adopt(self._node, claimed)
            if len(claimed) == limit:
                self._come_back(shared)
        if suspects and await loading.adopt_suspects(self._node, partial(self._claim_suspect, names)):
            self.again_s = 0.0

    def _limit(self, shared: bool) -> int:
        room = self.room()
        if not shared:
            return min(CLAIM_BATCH, room)
        now, full = self._node.clock.monotonic(), self.is_full()
        not_before = self._trickle_at if full else self._pause_until
        if now < not_before:  # whatever hints there are: every claim of another node may be one
            self.again_s = not_before - now
            return 0
        if full:
            self._trickle_at = now + TRICKLE_S
            return min(TRICKLE, room)
        return min(SHARED_BATCH, self._node.attempts.room(threaded=self._threaded) or TRICKLE, room)

    def _come_back(self, shared: bool) -> None:
        if self.room() <= 0:
            return
        if not shared:
            self.again_s = 0.0
        else:
            self._pause_until = self._node.clock.monotonic() + SHARE_PAUSE_S
            self.again_s = SHARE_PAUSE_S

    async def _claim_suspect(self, names: tuple[str, ...]) -> list[Claimed]:
        if self.room() <= 0:
            return []
        return await self._store.claim(self._wanted(names, 1, suspect=True))

    async def _claim_parked(self, names: tuple[str, ...]) -> None:
        """Once after joining, since this worker's code may be the right one: take the parked runs too.

        All are claimed before the first is loaded. One that fails again is parked again, and would be claimed again.
        """
        taken: list[Claimed] = []
        room = self.room()
        try:
            while (limit := min(CLAIM_BATCH, room - len(taken))) > 0:
                claimed = await self._store.claim(self._wanted(names, limit, parked=True))
                taken += claimed
                if len(claimed) < limit:
                    break
        finally:
            for start in range(0, len(taken), CLAIM_BATCH):
                await loading.adopt(self._node, taken[start : start + CLAIM_BATCH])
        self.takes_parked = False

    def _wanted(self, names: tuple[str, ...], limit: int, *, parked: bool = False, suspect: bool = False) -> Claim:
        node_id, now_us = self._node.node_id, self._node.clock.now_us() + APART_US
        return Claim(node_id, self._namespace, self._host.queues, names, EVENT_FORMAT, now_us, limit, parked, suspect)
