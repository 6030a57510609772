"""Membership: a node among the others. It joins, keeps its heartbeat, takes what is free, and gives back what sleeps.

Theory of operation
===================
One task makes *rounds*, at least every `ROUND_S` and soon after a hint that somebody else has written. A round:
1. raises this node's counter, about once a second. If that is refused, others have declared this node dead: it
   forgets its runs at once (the fence would refuse every commit) and joins again as a new node;
2. looks at the other nodes, and declares dead those whose process is gone for sure, and those whose counter has not
   moved for `LEASE_S` on this node's own monotonic clock. No wall clocks are compared;
3. claims free runs that the worker hosts, reads new mail for the runs it owns, claims dispatched activities;
4. gives back runs that only wait, when they have done so for a while, or when memory is short.

Hints only save time: without any, every step happens within `ROUND_S`. Nothing is ever released in bulk when a node
dies: one row in `nodes` changes, and the runs it owned become free to be claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from outlast.model.errors import Busy, CommitUnknown, StoreUnavailable
from outlast.model.events import EVENT_FORMAT, TerminalEvent
from outlast.model.ids import Namespace, NodeId, RunId
from outlast.runtime import handover, loading
from outlast.runtime.hosted import SOON_US, Hosted, Stage
from outlast.runtime.node import Node
from outlast.runtime.parking import Parked
from outlast.runtime.ports import Clock, Entropy, Host
from outlast.runtime.tasks import Tasks
from outlast.runtime.watchdog import Watchdog
from outlast.store.api import Claim, Claimed, Store

logger = logging.getLogger("outlast")

ROUND_S = 0.25
"""A lost hint costs at most this much latency; an idle node makes a few cheap reads every time."""

HINT_PAUSE_S = 0.005
"""Hints that come thick and fast cause a round at most this often."""

HEARTBEAT_S = 1.0
LEASE_S = 10.0
"""Longer than a loop is blocked by mistake; shorter than anybody wants to wait for a machine that hangs."""

LAST_ROUND_S = 5.0
"""A batch of runs is loaded in much less, if the database answers at all."""

GOODBYE_S = 2.0
"""It only spares the others the lease."""

CLOCK_JUMP_S = 1.0
"""Between two rounds. A clock that is only slewed moves by a thousandth of that."""

CLAIM_BATCH = 100
"""Runs claimed at a time: about 50 ms of replaying, between which other turns are taken."""

IDLE_S = 10.0
"""A run that has waited this long is likely to wait longer: it leaves memory."""

SWEEP_S = 1.0
"""How often idle runs are looked for."""


class Limits:
    """How much a node takes on."""

    __slots__ = ("attempts", "runs")

    def __init__(self, runs: int = 10_000, attempts: int = 1_000) -> None:
        self.runs = runs
        """Runs in memory. A waiting run takes about 10 kB."""
        self.attempts = attempts
        """Attempts of activities that run at a time."""


class Membership:
    def __init__(
        self,
        store: Store,
        host: Host,
        clock: Clock,
        entropy: Entropy,
        *,
        name: str,
        namespace: Namespace,
        limits: Limits,
        on_closed: Callable[[RunId, TerminalEvent], None],
        on_parked: Callable[[Parked], None],
        on_left: Callable[[RunId], None],
    ) -> None:
        self._store = store
        self._host = host
        self._clock = clock
        self._entropy = entropy
        self._name = name
        self.namespace = namespace
        self._limits = limits
        self._on_closed = on_closed
        self._on_parked = on_parked
        self._on_left = on_left
        self._seen: dict[NodeId, tuple[int, float]] = {}
        """Counter of each other node, and when it was last seen to move."""
        self._hint = asyncio.Event()
        self._rounds: asyncio.Task[None] | None = None
        self._watchdog: Watchdog | None = None
        self._beats: asyncio.Task[None] | None = None
        self._leaving = False
        self._must_rejoin = False
        self._take_parked = True
        self._last_look = 0.0
        self._clock_ahead: float | None = None
        """By how much the database's clock is ahead of the monotonic one: constant, unless it is set."""
        self._last_sweep = 0.0

    async def join(self) -> None:
        await self._enter()
        self._rounds = asyncio.get_running_loop().create_task(self._make_rounds())
        self._beats = asyncio.get_running_loop().create_task(self._beat())
        self._watchdog = Watchdog()

    async def leave(self) -> None:
        """Give everything back, and say good-bye."""
        if self._rounds is not None:
            # The round under way is let finish: what it has claimed must be loaded, to be given back properly.
            self._leaving = True
            self._hint.set()
            _, unfinished = await asyncio.wait({self._rounds}, timeout=LAST_ROUND_S)
            if unfinished:
                logger.warning("the last round of the node did not end within %.0f s; it is given up", LAST_ROUND_S)
                self._rounds.cancel()
                await asyncio.wait({self._rounds})
            self._rounds = None
        await handover.stop(self.node)
        self._stop_beating()
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._store.declare_dead(self.node.node_id)
        except (TimeoutError, Busy, StoreUnavailable, CommitUnknown) as error:
            # What it could not give back waits until the others have missed its heartbeat for `LEASE_S`.
            logger.warning("node %d could not say good-bye (%r)", self.node.node_id, error)

    def abandon(self) -> None:
        """Stop at once and write nothing, as if the process had ended: others take over what this node had."""
        if self._rounds is not None:
            self._rounds.cancel()
            self._rounds = None
        self._stop_beating()
        handover.abandon(self.node)

    def _stop_beating(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
        if self._beats is not None:
            self._beats.cancel()
            self._beats = None

    def hint(self) -> None:
        """Somebody has written something: look soon."""
        self._hint.set()

    def hosts(self, workflow: str, queue: str) -> bool:
        """Whether a new run of this workflow can begin here."""
        hosted = queue in self._host.queues and workflow in self._host.workflow_names()
        return hosted and self.has_room() and not self._must_rejoin

    @property
    def takes_parked(self) -> bool:
        """It has just joined, and its next claim takes runs that wait only because their turn failed."""
        return self._take_parked

    def has_room(self) -> bool:
        return len(self.node.hosted) < self._limits.runs

    async def _enter(self) -> None:
        node_id = await self._store.join(self._name)
        self.node = Node(
            node_id, self._store, self._host, self._clock, self._entropy, attempt_slots=self._limits.attempts
        )
        self.node.on_closed = self._on_closed
        self.node.on_parked = self._on_parked
        self.node.on_left = self._on_left
        self.node.on_mail_sent = self.hint
        self._tasks = Tasks(self._store, self.node, self._host, self.namespace, self._limits.attempts)
        self._take_parked = True

    async def _make_rounds(self) -> None:
        while not self._leaving:
            try:
                await self._round()
            except (Busy, StoreUnavailable, CommitUnknown) as error:
                logger.warning("the database does not answer (%s); trying again", error)
            except Exception:
                logger.exception("a round of the node failed; please report this bug")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_S):
                    await self._hint.wait()
                await asyncio.sleep(HINT_PAUSE_S)
            self._hint.clear()

    async def _round(self) -> None:
        now = self._clock.monotonic()
        self._watch_clock(now)
        if self._must_rejoin:
            await self._come_back()
        await self._bury(now)
        try:
            await self._claim()
            await self._tasks.claim(self._clock.now_us())
        except CommitUnknown:
            # Perhaps runs or tasks are this node's now that it does not know of. Only its end sets them free.
            self._must_rejoin = True
            raise
        self.node.put_mail(await self._store.mail_of(self.node.node_id, limit=1_000))
        if now - self._last_sweep >= SWEEP_S or not self.has_room():
            self._last_sweep = now
            self._evict(now)

    def _watch_clock(self, now: float) -> None:
        """Say it when the clock was set: it is why timers seem to come early or late."""
        ahead = self._clock.now_us() / 1e6 - now
        jump_s = 0.0 if self._clock_ahead is None else ahead - self._clock_ahead
        if abs(jump_s) > CLOCK_JUMP_S:
            logger.warning("the clock was set %s by %.1f s", "forward" if jump_s > 0 else "back", abs(jump_s))
        self._clock_ahead = ahead

    async def _beat(self) -> None:
        """Raise the counter about once a second, however long a round takes."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            node_id = self.node.node_id
            try:
                refused = not await self._store.heartbeat(node_id)
            except Exception as error:
                logger.warning("the database does not take the heartbeat (%s); trying again", error)
                continue
            if refused and node_id == self.node.node_id and not self._must_rejoin:
                logger.error("node %d was declared dead (it was stopped or blocked too long)", node_id)
                self._must_rejoin = True
                self.hint()

    async def _come_back(self) -> None:
        """Forget everything and join as a new node; tried again in the next round until it is done."""
        logger.warning("node %d leaves everything and joins again", self.node.node_id)
        handover.abandon(self.node)
        await self._store.declare_dead(self.node.node_id)
        await self._enter()
        self._must_rejoin = False

    async def _bury(self, now: float) -> None:
        """Declare dead the nodes that are."""
        if now - self._last_look > LEASE_S / 2:
            # This node has seen nothing for a while (the database was away): nobody's silence means anything yet.
            self._seen.clear()
        rows = await self._store.nodes()
        self._last_look = now
        for row in rows:
            if row.node_id == self.node.node_id or not row.alive:
                continue
            counter, since = self._seen.get(row.node_id, (None, now))
            if counter != row.counter:
                self._seen[row.node_id] = (row.counter, now)
                since = now
            if row.gone or now - since > LEASE_S:
                why = "its process has ended" if row.gone else f"no sign of life for {LEASE_S:.0f} s"
                self._seen.pop(row.node_id, None)
                if await self._store.declare_dead(row.node_id):
                    logger.info("node %d (%s) is dead: %s; its runs are free", row.node_id, row.name, why)

    async def _claim(self) -> None:
        names = tuple(self._host.workflow_names())
        if names and self._take_parked:
            await self._claim_parked(names)
        while names and not self._leaving and (room := self._limits.runs - len(self.node.hosted)) > 0:
            limit = min(CLAIM_BATCH, room)
            claimed = await self._store.claim(self._wanted(names, limit, parked=False))
            await loading.adopt(self.node, claimed)
            if len(claimed) < limit:
                return

    async def _claim_parked(self, names: tuple[str, ...]) -> None:
        """Once after joining, since this worker's code may be the right one: take the parked runs too.

        All are claimed before the first is loaded. One that fails again is parked again, and would be claimed again.
        """
        taken: list[Claimed] = []
        room = self._limits.runs - len(self.node.hosted)
        try:
            while (limit := min(CLAIM_BATCH, room - len(taken))) > 0:
                claimed = await self._store.claim(self._wanted(names, limit, parked=True))
                taken += claimed
                if len(claimed) < limit:
                    break
        finally:
            for start in range(0, len(taken), CLAIM_BATCH):
                await loading.adopt(self.node, taken[start : start + CLAIM_BATCH])
        self._take_parked = False

    def _wanted(self, names: tuple[str, ...], limit: int, *, parked: bool) -> Claim:
        now_us = self._clock.now_us()
        return Claim(self.node.node_id, self.namespace, self._host.queues, names, EVENT_FORMAT, now_us, limit, parked)

    def _evict(self, now: float) -> None:
        soon_us = self._clock.now_us() + SOON_US
        hosted = self.node.hosted
        excess = len(hosted) - self._limits.runs * 9 // 10
        for each in list(hosted.values()):
            if self._only_waits(each, soon_us) and (excess > 0 or now - each.idle_since >= IDLE_S):
                handover.evict(self.node, each)
                excess -= 1

    def _only_waits(self, hosted: Hosted, soon_us: int) -> bool:
        if hosted.stage is not Stage.IDLE or hosted.running or hosted.inbox or hosted.mail:
            return False
        wake_at_us = hosted.wake_at_us()
        return wake_at_us is None or wake_at_us > soon_us
