"""Membership: a node among the others. It joins, keeps its heartbeat, takes what is free, and gives back what sleeps.

Theory of operation
===================
One task makes *rounds*: at once after a hint that somebody else has written, but not more often than every
`HINT_PAUSE_S`, and every `Store.poll_s` without any. In a round the node does, side by side, since none of it rests on
another's answer:
1. looks at the other nodes, and declares dead those whose process is gone for sure, and those whose counter has not
   moved for `LEASE_S` on this node's own monotonic clock. No wall clocks are compared;
2. claims free runs that the worker hosts (`claims`) and dispatched activities (`tasks`);
3. reads new mail for the runs that it hosts.
Then it offers to others what has stood in line here for long (`dispatch`), and gives back runs that only wait, when
they have done so for a while, or when memory is short. What cannot be needed is not asked: with poll_s = 1, an idle
node costs at most 4.7 statements a second, the heartbeat among them.

Another task raises this node's counter every `HEARTBEAT_S`, however long a round takes, and keeps its clock. If that
is refused, others have declared this node dead: it forgets its runs at once (the fence would refuse every commit) and
joins again as a new node.

Hints only save time: without any, every step happens within `poll_s`. Nothing is ever released in bulk when a node
dies: one row in `nodes` changes, and the runs it owned become free to be claimed.

*Nothing is stranded.* A run that is owned by a live node must be in its memory. What is not known to be written is
written again until it is known (see `node`). After a claim of which nobody knows the node may have runs and tasks that
it has not heard of, or get them later: `strays` finds the runs by their rows, and the next claim of tasks says which
ones the node knows (see `tasks`). What goes on in its memory goes on undisturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from outlast.model.errors import Busy, CommitUnknown, StoreUnavailable
from outlast.model.events import TerminalEvent
from outlast.model.ids import Namespace, NodeId, RunId
from outlast.model.replies import Reply
from outlast.runtime import dispatch, handover
from outlast.runtime.claims import Claims
from outlast.runtime.clock import DatabaseClock
from outlast.runtime.hosted import SOON_US, Hosted, Stage
from outlast.runtime.limits import Limits
from outlast.runtime.messages import Recall
from outlast.runtime.node import Node
from outlast.runtime.parking import Parked
from outlast.runtime.ports import Clock, Entropy, Host
from outlast.runtime.strays import Strays
from outlast.runtime.tasks import Tasks
from outlast.runtime.watchdog import Watchdog
from outlast.store.api import Store

logger = logging.getLogger("outlast")

HINT_PAUSE_S = 0.005
"""Hints that come thick and fast cause a round at most this often."""

LOOK_PAUSE_S = 0.1
"""Rounds that follow each other faster do not all look at the other nodes: these die seldom."""

HEARTBEAT_S = 2.0
"""Five in a lease: a few may come late or fail."""

LEASE_S = 10.0
"""Longer than a loop is blocked by mistake; shorter than anybody wants to wait for a machine that hangs."""

TRUST = 0.9
"""Of the lease after the last heartbeat, in which a node may be sure that nobody has taken its runs for its silence."""

LAST_ROUND_S = 5.0
"""A batch of runs is loaded in much less, if the database answers at all."""

GOODBYE_S = 2.0
"""It only spares the others the lease."""

CLOCK_JUMP_S = 1.0
"""Between two rounds. A clock that is only slewed moves by a thousandth of that."""

IDLE_S = 10.0
"""A run that has waited this long is likely to wait longer: it leaves memory."""

REPLIES_S = 600.0
"""An answer that was not fetched in this time never will be. What an update came to is in the history besides."""

REPLIES_AT_ONCE = 10_000

MAIL_BATCH = 1_000
"""Messages read in a round: a few milliseconds."""

SWEEP_S = 1.0
"""How often idle runs are looked for."""


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
        on_left: Callable[[Hosted], None],
        on_reply: Callable[[RunId, Reply], None],
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
        self._on_reply = on_reply
        self._seen: dict[NodeId, tuple[int, float]] = {}
        """Counter of each other node, and when it was last seen to move."""
        self._hint = asyncio.Event()
        self._rounds: asyncio.Task[None] | None = None
        self._watchdog: Watchdog | None = None
        self._beats: asyncio.Task[None] | None = None
        self._leaving = False
        self._must_rejoin = False
        self._last_look = -LOOK_PAUSE_S
        self._looks_late = False
        """The round before did without a look at the nodes, since it came soon after another."""
        self._others = 0
        """Other nodes that were alive at the last look."""
        self._clock_ahead: float | None = None
        """By how much the database's clock is ahead of the monotonic one: constant, unless it is set."""
        self._last_sweep = 0.0
        self._last_forgot = 0.0
        self._mail_limit = MAIL_BATCH
        """Grows when most of what is read is here already: what cannot be taken now must not hide what comes after."""
        self._dead_own = False
        """Dead nodes were seen that own runs: suspects may be among them."""

    async def join(self) -> None:
        await self._enter()
        self._rounds = asyncio.get_running_loop().create_task(self._make_rounds())
        self._beats = asyncio.get_running_loop().create_task(self._beat())
        self._watchdog = Watchdog(self._limits.interrupt_s)

    async def leave(self) -> None:
        """Give everything back, and say good-bye."""
        if self._rounds is not None:
            # The round under way is let finish: what it has claimed must be loaded, to be given back properly.
            self._leaving = True
            self._claims.stopped = True
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
        if not hosted or not self.has_room() or self._must_rejoin:
            return False
        return self._others == 0 or not self._claims.is_full()  # or else some other node begins it sooner

    def recall_of(self, workflow: str) -> Recall | None:
        """How to make a program of this workflow, if it is hosted here."""
        return self._host.program if workflow in self._host.workflow_names() else None

    @property
    def takes_parked(self) -> bool:
        """It has just joined, and its next claim takes runs that wait only because their turn failed."""
        return self._claims.takes_parked

    def has_room(self) -> bool:
        return len(self.node.hosted) < self._limits.runs

    async def _enter(self) -> None:
        begun = asyncio.get_running_loop().time()
        node_id = await self._store.join(self._name)
        self.node = Node(
            node_id, self._store, self._host, self._clock, self._entropy, attempt_slots=self._limits.attempts
        )
        self.node.on_closed = self._on_closed
        self.node.on_parked = self._on_parked
        self.node.on_left = self._on_left
        self.node.on_reply = self._on_reply
        self.node.on_mail_sent = self.hint
        self.node.attempts.on_free = self._slot_is_free
        self.node.attempts.trust(begun + LEASE_S * TRUST)
        self._claims = Claims(self._store, self.node, self._host, self.namespace, self._limits)
        self._claims.stopped = self._leaving
        self._tasks = Tasks(self._store, self.node, self._host, self.namespace)
        self._strays = Strays(self._store, self.node, self.namespace)
        self.node.on_late_start = self._strays.expect

    def _slot_is_free(self) -> None:
        if self._tasks.again or self._claims.again_s is not None:
            self.hint()

    async def _make_rounds(self) -> None:
        while not self._leaving:
            self._hint.clear()
            begun = self._clock.monotonic()
            try:
                await self._round(begun)
            except (Busy, StoreUnavailable, CommitUnknown) as error:
                logger.warning("the database does not answer (%s); trying again", error)
            except Exception:
                logger.exception("a round of the node failed; please report this bug")
            await self._rest(begun)

    async def _rest(self, begun: float) -> None:
        """Until it is time for the next round; the one before began at `begun`."""
        rest_s = self._store.poll_s
        for again_s in (self._claims.again_s, self._tasks.again_s):
            if again_s is not None:
                rest_s = min(rest_s, again_s)
        if self._looks_late:
            rest_s = min(rest_s, LOOK_PAUSE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rest_s):
                await self._hint.wait()
        await asyncio.sleep(max(0.0, begun + HINT_PAUSE_S - self._clock.monotonic()))

    async def _round(self, now: float) -> None:
        self._watch_clock(now)
        if self._must_rejoin:
            await self._come_back()
        shared = self._others > 0
        answers = await asyncio.gather(
            self._bury(now),
            self._claim_runs(shared),
            self._tasks.claim(),
            self._read_mail(),
            return_exceptions=True,
        )
        if shared:
            dispatch.offer(self.node, asyncio.get_running_loop().time())
        if now - self._last_sweep >= SWEEP_S or not self.has_room():
            self._last_sweep = now
            self._evict(now)
        if now - self._last_forgot >= REPLIES_S / 10:
            self._last_forgot = now
            await self._store.forget_replies(self._clock.now_us() - int(REPLIES_S * 1e6), REPLIES_AT_ONCE)
        # Not beside the claims: what these have taken and not loaded yet would look like strays.
        await self._strays.look()
        errors = [answer for answer in answers if answer is not None]
        if errors:
            raise errors[0]

    async def _claim_runs(self, shared: bool) -> None:
        try:
            await self._claims.claim(shared=shared, suspects=self._dead_own)
        except CommitUnknown:
            self._strays.expect()
            raise

    async def _read_mail(self) -> None:
        node = self.node
        if not node.hosted:
            return
        limit = self._mail_limit
        mail = await self._store.mail_of(node.node_id, limit)
        new = node.put_mail(mail)
        if len(mail) == limit:
            self.hint()  # perhaps there is more
            if new < limit / 2:
                self._mail_limit = limit * 2
        elif len(mail) < limit / 4:
            self._mail_limit = max(MAIL_BATCH, limit // 2)

    def _watch_clock(self, now: float) -> None:
        """Say it when the clock was set: it is why timers seem to come early or late."""
        ahead = self._clock.now_us() / 1e6 - now
        jump_s = 0.0 if self._clock_ahead is None else ahead - self._clock_ahead
        if abs(jump_s) > CLOCK_JUMP_S:
            logger.warning("the clock was set %s by %.1f s", "forward" if jump_s > 0 else "back", abs(jump_s))
        self._clock_ahead = ahead

    async def _beat(self) -> None:
        """Raise the counter, however long a round takes, and keep the clock right."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            node_id, begun = self.node.node_id, asyncio.get_running_loop().time()
            try:
                refused = not await self._store.heartbeat(node_id)
            except Exception as error:
                logger.warning("the database does not take the heartbeat (%s); trying again", error)
                continue
            if not refused and node_id == self.node.node_id:
                self.node.attempts.trust(begun + LEASE_S * TRUST)
            if refused and node_id == self.node.node_id and not self._must_rejoin:
                logger.error("node %d was declared dead (it was stopped or blocked too long)", node_id)
                self._must_rejoin = True
                self.hint()
            await self._keep_time()

    async def _keep_time(self) -> None:
        if isinstance(self._clock, DatabaseClock):
            try:
                await self._clock.refresh()
            except Exception:  # the heartbeat must go on: without it the node is dead, and would not even hear of it
                logger.exception("the database could not be asked for the time; please report this bug")

    async def _come_back(self) -> None:
        """Forget everything and join as a new node; tried again in the next round until it is done."""
        logger.warning("node %d leaves everything and joins again", self.node.node_id)
        handover.abandon(self.node)
        await self._store.declare_dead(self.node.node_id)
        await self._enter()
        self._must_rejoin = False

    async def _bury(self, now: float) -> None:
        """Declare dead the nodes that are."""
        self._looks_late = now - self._last_look < LOOK_PAUSE_S
        if self._looks_late:
            return
        if now - self._last_look > LEASE_S / 2:
            # This node has seen nothing for a while (the database was away): nobody's silence means anything yet.
            self._seen.clear()
        rows = await self._store.nodes()
        dead_own = any(not row.alive for row in rows)
        self._others = sum(row.alive and not row.gone and row.node_id != self.node.node_id for row in rows)
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
                dead_own = True
                self.hint()  # what it had is free now
                if await self._store.declare_dead(row.node_id):
                    logger.info("node %d (%s) is dead: %s; its runs are free", row.node_id, row.name, why)
        self._dead_own = dead_own

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
