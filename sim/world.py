"""A world: several processes, one database, virtual time, and a plan of what goes wrong.

Theory of operation
===================
Everything real is real: the SDK and the workflows, the service, nodes and memberships, the engine, SQLite's own SQL.
Replaced is what would make two equal executions differ: event loops (`loop.py`), clocks and entropy
(`process.py`), threads (`threads.py`), and the way to the database (`seam.py`). The watchdog's thread is left out.

Two phases. Until `heal_s` the plan's troubles happen, and after every write the invariants are checked
(`checks.py`). Then all trouble stops: who was killed is started again, who was frozen goes on, nothing fails any
more. Now everything that was begun has to finish within `FINISH_S`, every waiter has to be told, and nothing may be
left over.

A world ends with the first violation. The same plan makes the same world: `trace` is a running hash of all that
happened, to prove it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from msgspec import Struct

from outlast.model.ids import MessageId, NodeId, RunId
from outlast.model.inputs import AttemptSucceeded, QueryRequested, UpdateRequested, decode_message
from outlast.sdk.compat import unawaited_is_fine
from outlast.store.api import Answer, NewMail, Sent
from sim import actors, threads, workloads
from sim.checks import Checks, Violation, Witness
from sim.database import Database
from sim.loop import SECOND_US, Scheduler
from sim.patches import simulated_runtime
from sim.plan import NodeFault, Plan, RunPlan, near_constant_s
from sim.process import EPOCH_US, Process
from sim.trace import brief

FINISH_S = 400.0
"""After everything is healed. Longer than the longest pause that the runtime makes: backoffs of parked runs and of
quarantine go up to a minute, several in a row, and a clock that was set back by a minute is caught up with."""

SLOWEST_S = 15.0
"""A call that was slowed down before everything was healed takes no longer."""

PROMPT_S = 6.0
"""After that: an answer that is in the database is told within this time. Less than a run stays in
memory that only waits: once it has left, whoever asked looks for the answer in any case."""

MAX_STEPS = 2_000_000
"""A world that takes more is spinning."""

CRASHES = 12
"""In one world. Each costs a lease; and runs that see many are quarantined for ever longer."""

HINTED = frozenset({"send", "deliver", "declare_dead"})


class Outcome(Struct, frozen=True):
    """What became of a world."""

    seed: int
    violation: str | None
    trace: str
    covered: dict[str, int]
    virtual_s: float
    steps: int
    log: list[str]


class World:
    def __init__(self, plan: Plan, *, verbose: bool = False) -> None:
        self.plan = plan
        self.rng = random.Random(f"world/{plan.seed}")
        self.scheduler = Scheduler(random.Random(f"order/{plan.seed}"))
        self.database = Database.fresh(plan.mailbox_limit)
        self.checks = Checks(self.database)
        self.witness = Witness(self.checks)
        self.rates = plan.rates
        self.covered: Counter[str] = Counter()
        self.running: Process | None = None
        self.run_ids: dict[str, str] = {}
        self.busy: set[tuple[str, str]] = set()
        """What is done from outside and is not done yet: which process, and what."""
        self.processes: dict[str, Process] = {}
        self.graveyard: list[Process] = []
        self.violation: str | None = None
        self.cause: BaseException | None = None
        self.log: list[str] = []
        self.poisoned: dict[RunId, int] = {}
        """Runs that could not be written for a while, and until when."""
        self.healed = False
        self._verbose = verbose
        self._jump_us = 0
        self._crashes = 0
        self._lives: Counter[str] = Counter()
        self._nodes: dict[NodeId, Process] = {}
        self._hash = hashlib.blake2b(digest_size=8)

    # --- time, trace --------------------------------------------------------------------------------------------------

    def wall_us(self) -> int:
        return EPOCH_US + self.scheduler.now_us + self._jump_us

    def note(self, who: str, what: str) -> None:
        line = f"{self.scheduler.now_us / SECOND_US:10.6f} {who:5} {what}"
        self._hash.update(line.encode())
        if self._verbose:
            self.log.append(line)

    def broken(self, what: str, cause: BaseException | None) -> None:
        if self.violation is None:
            self.violation, self.cause = what, cause
            self.note("*", f"VIOLATION: {what}")

    # --- the stage of the workloads -----------------------------------------------------------------------------------

    def began(self, key: str, attempt: int, run_id: str, activity_id: str) -> None:
        process = self.running
        assert process is not None
        self.note(process.name, f"activity {key[-9:]} begins, attempt {attempt}")
        try:
            self.witness.began(process.name, process.is_member(), key, attempt, RunId(run_id), activity_id)
        except Violation as error:
            self.broken(str(error), error)

    def done(self, key: str, attempt: int) -> None:
        self.covered["activity done"] += 1

    def kill_this_process(self) -> bool:
        process = self.running
        assert process is not None
        if self.healed:
            return False
        self.covered["killed by an activity"] += 1
        self._kill(process, self.draw_known_gone_s(), near_constant_s(self.rng, self.plan.speed))
        return True

    # --- what the seam reports ----------------------------------------------------------------------------------------

    def allows(self, fate: str, process: Process) -> bool:
        if self.healed or process.loop.dead:
            return False
        if fate.startswith("crash"):
            return process.node is not None and self._crashes < CRASHES
        return True

    def expect_prompt(self, run_id: RunId, message_id: MessageId, begun_us: int) -> None:
        if self.healed:
            since_us = max(begun_us, _us(self.plan.heal_s + SLOWEST_S * self.plan.speed))
            self.checks.expect_prompt(
                run_id, message_id, since_us, self.scheduler.now_us, _us(PROMPT_S * self.plan.speed)
            )

    def poison(self, run_id: RunId) -> None:
        lasts_us = _us(near_constant_s(self.rng, self.plan.speed, 2.0))
        self.poisoned[run_id] = self.scheduler.now_us + lasts_us
        self.checks.may_be_parked.add(run_id)

    def is_poisoned(self, run_id: RunId) -> bool:
        return not self.healed and self.poisoned.get(run_id, 0) > self.scheduler.now_us

    def draw_known_gone_s(self) -> float | None:
        return self.rng.choice((0.0, 0.0, near_constant_s(self.rng, self.plan.speed), None))

    def is_gone(self, node: NodeId) -> bool:
        process = self._nodes.get(node)
        return (
            process is not None and process.gone_from_us is not None and process.gone_from_us <= self.scheduler.now_us
        )

    def written(self, process: Process, method: str, args: Sequence[Any], answer: Any) -> None:
        """Something was written: look at everything that it may have touched."""
        self._mark_time()
        if method != "heartbeat":
            self.note(process.name, f"{method} -> {brief(method, args, answer)}")
        try:
            changed = self._look(process, method, args, answer)
        except Violation as error:
            self.broken(str(error), error)
            return
        if changed:
            for other in self.processes.values():
                if other is not process and other.alive:
                    other.store.hint()

    def _look(self, process: Process, method: str, args: Sequence[Any], answer: Any) -> bool:
        """True if it concerns others."""
        checks = self.checks
        match method:
            case "commit":
                changed = False
                for commit, each in zip(args[0], answer, strict=True):
                    self.covered[f"commit {each.value}"] += 1
                    if each is Answer.COMMITTED:
                        checks.committed(commit, self.scheduler.now_us)
                        changed |= bool(commit.create or commit.release or commit.add_tasks or commit.status)
                        changed |= bool(commit.replies)
                        for message_id, body in commit.create.mail if commit.create else ():
                            self._accepted(NewMail(commit.run_id, message_id, commit.at_us, body))
                return changed
            case "send":
                for mail, sent in zip(args[0], answer, strict=True):
                    self.covered[f"send {sent.value}"] += 1
                    if sent is Sent.ACCEPTED:
                        self._accepted(mail)
                return True
            case "deliver":
                if answer:
                    self.covered["task delivered"] += 1
                    self._accepted(args[2])
                return bool(answer)
            case "claim":
                for claimed in answer:
                    self.covered["claimed lost run" if claimed.lost else "claimed run"] += 1
                    checks.claimed(claimed, args[0].node)
                return False
            case "join":
                process.node_ids.append(answer)
                self._nodes[answer] = process
                return False
            case "claim_tasks":
                for task in answer:
                    self.covered["claimed lost task" if task.lost else "claimed task"] += 1
                return False
            case _:
                return method == "declare_dead" and bool(answer)

    def _accepted(self, mail: Any) -> None:
        books = self.checks.books[mail.run_id]
        message = decode_message(mail.body)
        if isinstance(message, AttemptSucceeded):
            pending = books.state.activities.get(message.activity_id)
            if pending is not None and pending.attempt == message.attempt:
                books.delivered.add((message.activity_id, message.attempt))
        elif isinstance(message, UpdateRequested | QueryRequested):
            books.questions.add(mail.message_id)
            books.asked.add(mail.message_id)
        elif getattr(message, "message_id", None) is not None:
            books.messages.add(mail.message_id)
        self.checks.touched(mail.run_id)

    # --- the course of events -----------------------------------------------------------------------------------------

    def run(self) -> None:
        plan, at = self.plan, self.scheduler.at
        for index in range(plan.outsiders):
            self._start_process(f"o{index}")
        for node in plan.nodes:
            at(_us(node.begins_s), partial(self._start_process, node.name))
        for run in plan.runs:
            self._schedule_run(run)
        for fault in plan.faults:
            at(_us(fault.at_s), partial(self._strike, fault))
        self.scheduler.run(_us(plan.heal_s), lambda: self.violation is not None or self._spins())
        if self.violation is None:
            self._heal()
            self.scheduler.run(_us(plan.heal_s + FINISH_S), lambda: self._is_over() or self._spins())
        if self.violation is None:
            self._judge()

    def _schedule_run(self, run: RunPlan) -> None:
        at = self.scheduler.at
        at(_us(run.at_s), partial(self._act, run.by, f"start {run.name}", partial(actors.start, self, plan=run)))
        for who in run.watched_by:
            at(_us(run.at_s), partial(self._act, who, f"watch {run.name}", partial(actors.watch, self, plan=run)))
        for poke in run.pokes:
            act = partial(actors.poke, self, plan=run, what=poke)
            at(_us(poke.at_s), partial(self._act, poke.by, f"{poke.what} {run.name}/{poke.number}", act))
            if poke.also_by:
                what = f"also {poke.what} {run.name}/{poke.number}"
                at(_us(poke.also_at_s), partial(self._act, poke.also_by, what, act))

    def _act(self, who: str, what: str, act: Callable[..., Any]) -> None:
        """On that process; if it is down, on one that hosts nothing."""
        process = self.processes.get(who)
        if process is None or not process.alive:
            process = self.processes["o0"]
        key = (process.name, what)
        self.busy.add(key)
        process.spawn(act(process=process)).add_done_callback(lambda task: self._acted(key, task))

    def _acted(self, key: tuple[str, str], task: asyncio.Task[Any]) -> None:
        self.busy.discard(key)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broken(f"{key[0]} could not {key[1]}: {error!r}", error)

    def _start_process(self, name: str) -> None:
        before = self.processes.get(name)
        if before is not None:
            if before.alive:
                return
            self.graveyard.append(before)
        node = next((each for each in self.plan.nodes if each.name == name), None)
        self._lives[name] += 1
        process = self.processes[name] = Process(self, name, self._lives[name], node)
        self.note(process.name, "is started")
        process.begin()

    def _mark_time(self) -> None:
        self.checks.latest_us = max(self.checks.latest_us, self.wall_us() + 1_000_000)

    def _strike(self, fault: NodeFault) -> None:
        if fault.kind == "clock jump":
            self._mark_time()  # a write with a time from before may be on its way
            self._jump_us += _us(fault.lasts_s)
            self.covered["clock jump"] += 1
            self.note("*", f"the clock jumps by {fault.lasts_s} s")
            return
        process = self.processes.get(fault.node)
        if process is None or not process.alive or process.loop.frozen:
            return
        match fault.kind:
            case "crash":
                self._kill(process, fault.known_gone_s, fault.lasts_s)
            case "pause":
                self._pause(process, fault.lasts_s)
            case "leave":
                self.note(process.name, "is asked to leave")
                process.leave()
                self.scheduler.after(_us(fault.lasts_s), partial(self._start_process, fault.node))
            case _:
                raise ValueError(fault.kind)

    def _kill(self, process: Process, known_gone_s: float | None, back_after_s: float) -> None:
        self._crashes += 1
        process.crash(known_gone_s)
        name = process.name.partition(".")[0]
        self.scheduler.after(_us(back_after_s), partial(self._start_process, name))

    def _pause(self, process: Process, lasts_s: float) -> None:
        self.covered["pause"] += 1
        self.note(process.name, f"stops for {lasts_s} s")
        process.loop.freeze()
        self.scheduler.after(_us(lasts_s), partial(self._go_on, process))

    def _go_on(self, process: Process) -> None:
        if process.loop.frozen and not process.loop.dead:
            self.note(process.name, "goes on")
            if not self.database.rows(
                "SELECT 1 FROM nodes WHERE alive AND node_id = ?", max(process.node_ids, default=0)
            ):
                self.covered["zombie"] += 1
            process.loop.thaw()

    def _heal(self) -> None:
        """From now on nothing goes wrong any more."""
        self.note("*", "all is well from now on")
        self.healed = True
        self.rates = {}
        for process in list(self.processes.values()):
            self._go_on(process)
        for node in self.plan.nodes:
            self._start_process(node.name)
        for run in self.plan.runs:
            if run.name not in self.run_ids and not any(what == f"start {run.name}" for _, what in self._still_busy()):
                # Its starter was killed. A careful user tries again, under the same workflow id.
                self._act("o0", f"start {run.name}", partial(actors.start, self, plan=run))
        # Who is just leaving comes back as soon as it has left.
        for node in self.plan.nodes:
            for seconds in (1.0, 5.0, 20.0):
                self.scheduler.after(_us(seconds), partial(self._start_process, node.name))

    def _spins(self) -> bool:
        if self.scheduler.steps > MAX_STEPS:
            self.broken(f"{MAX_STEPS} steps, and no end", None)
        return self.violation is not None

    def _is_over(self) -> bool:
        if len(self.run_ids) < len(self.plan.runs) or self._still_busy() or self.checks.open_runs():
            return False
        if any(self.database.rows(f"SELECT 1 FROM {table}") for table in ("mailbox", "tasks")):
            return False
        return all(process.is_member() for process in self.processes.values() if process.node is not None)

    def _judge(self) -> None:
        if not self._is_over():
            self.broken(f"not everything finished within {FINISH_S} s after the last trouble: {self._left()}", None)
            return
        try:
            self.checks.at_the_end()
        except Violation as error:
            self.broken(str(error), error)
        for books in self.checks.books.values():
            self.covered[f"run {books.status}"] += 1
            for item in books.events:
                self.covered[f"event {type(item.event).__name__}"] += 1
        for run in self.plan.runs:
            for kind in workloads.kinds_in(run.script):
                self.covered[f"step {kind}"] += 1
        self.covered["zombie ran an activity"] += self.witness.zombies

    def _still_busy(self) -> list[tuple[str, str]]:
        living = {process.name for process in self.processes.values() if process.stays}
        return [each for each in self.busy if each[0] in living]

    def _left(self) -> str:
        parts = [f"runs not started: {sorted({each.name for each in self.plan.runs} - self.run_ids.keys())}"]
        for run_id in self.checks.open_runs():
            row = self.database.rows(
                "SELECT workflow_id, owner, wake_at_us, claims, next_event FROM runs WHERE run_id = ?", run_id
            )[0]
            owner = self._nodes.get(row[1])
            hosted = owner is not None and run_id in owner.hosted()
            state = self.checks.books[run_id].state
            waits = [*state.activities, *state.timers]
            parts.append(f"open: {row} of {owner and owner.name}, in its memory: {hosted}; pending: {waits}")
        parts.append(f"mail: {self.database.rows('SELECT run_id, message_id, owner FROM mailbox')}")
        parts.append(
            f"tasks: {self.database.rows('SELECT run_id, activity_id, attempt, node, visible_at_us FROM tasks')}"
        )
        out = [each.name for each in self.processes.values() if each.node is not None and not each.is_member()]
        parts.append(f"nodes that are not among the living: {out}")
        parts.append(f"busy: {sorted(self._still_busy())}")
        return "; ".join(parts)

    def tear_down(self) -> None:
        for process in [*self.graveyard, *self.processes.values()]:
            process.loop.kill()
        for process in [*self.graveyard, *self.processes.values()]:
            with suppress(Exception):
                process.tear_down()

    def outcome(self) -> Outcome:
        seconds = self.scheduler.now_us / SECOND_US
        return Outcome(
            self.plan.seed, self.violation, self._hash.hexdigest(), dict(self.covered), seconds,
            self.scheduler.steps, self.log,
        )  # fmt: skip


def _us(seconds: float) -> int:
    return int(seconds * SECOND_US)


class _OurBugs(logging.Handler):
    """Whatever the runtime itself calls a bug is one."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "please report" in message.lower():
            error = record.exc_info[1] if record.exc_info else None
            self._world.broken(f"{message}: {error!r}", error)
        if self._world._verbose:
            running = self._world.running
            self._world.note(running.name if running else "*", f"log: {message}")


@contextmanager
def staged(world: World) -> Generator[None]:
    """The world as the one whose activities run, and whose log is watched."""
    logger = logging.getLogger("outlast")
    handler = _OurBugs(world)
    before = logger.level, logger.propagate
    rng = random.Random(f"threads/{world.plan.seed}")
    workloads.stage = world
    threads.draw_delay_s = lambda: near_constant_s(rng, world.plan.speed, 2.0)
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if world._verbose else logging.ERROR)
    logger.propagate = False
    try:
        with simulated_runtime(world.plan.speed), unawaited_is_fine():
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        workloads.stage = None


def simulate(plan: Plan, *, verbose: bool = False) -> Outcome:
    """Run a plan to its end."""
    world = World(plan, verbose=verbose)
    with staged(world):
        try:
            world.run()
        finally:
            asyncio._set_running_loop(None)
            outcome = world.outcome()
            world.tear_down()
    return outcome
