"""Plans: everything that is decided before a simulation begins, as plain data drawn from a seed.

What is drawn is *which* nodes there are, what runs on them, and when they are hit; how often the store fails, and in
which ways. Most seeds know few kinds of trouble and have plenty of those (swarm testing): with everything on at once,
one kind hides the others. What is drawn *during* the simulation (delays, which call is hit) comes from streams of
random numbers of their own, one per process, so that a shortened plan keeps most of its course.

Durations are drawn around the constants of the runtime: just below, at, and just above each of them. In most seeds
those constants are a quarter of what they are in production (`SPEED`): all in proportion, for more seeds per second.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from sim.told import NEVER, TOLD, draw_handling, draw_listening
from sim.workloads import WORKFLOWS, Step, draw_script

LEASE_S, IDLE_S, HEARTBEAT_S, ROUND_S = 10.0, 10.0, 1.0, 0.25
CONSTANTS_S = (0.005, 0.05, ROUND_S, 0.5, HEARTBEAT_S, 2.0, 5.0, LEASE_S)
"""Durations that mean something in the runtime: pauses, rounds, heartbeat, grace, lease."""

WRITE_FAULTS = (
    "busy",
    "unavailable",
    "unknown, written",
    "unknown, not written",
    "unknown, written later",
    "crash before the write",
    "crash after the write",
    "crash, written later",
    "slow request",
    "slow answer",
)
STORE_FAULTS = (
    *WRITE_FAULTS,
    "poisoned",
    "read unavailable",
    "slow read",
)
HINT_FAULTS = ("hint lost", "hint twice", "hint late")
NODE_FAULTS = ("crash", "pause", "leave", "clock jump")


@dataclass(frozen=True, slots=True)
class NodePlan:
    name: str
    queues: tuple[str, ...]
    everything: bool
    """Hosts also the activity that few host."""
    begins_s: float
    slots: int
    room: int
    skew_us: int


@dataclass(frozen=True, slots=True)
class Poke:
    """A message to a run, from outside."""

    number: int
    at_s: float
    what: str
    """ "cancel", "terminate", "signal", "update", "query"; the two in the middle also "... with start"."""
    by: str
    handler: str = ""
    step: Step = field(default_factory=list[Any])
    """What the handler does."""
    needs: int = 0
    """An update is refused unless the run has heard so many messages; always if NEVER."""
    also_by: str = ""
    """Another process that says the same, under the same id."""
    also_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RunPlan:
    name: str
    workflow_id: str
    workflow: str
    script: Step
    at_s: float
    by: str
    """Which process starts it."""
    watched_by: tuple[str, ...]
    pokes: tuple[Poke, ...] = ()
    first: Poke | None = None
    """The message with which it is started."""


@dataclass(frozen=True, slots=True)
class NodeFault:
    number: int
    at_s: float
    kind: str
    node: str
    lasts_s: float
    """Until it is started again, or goes on; for a clock jump, by how much."""
    known_gone_s: float | None
    """After a crash: when the kernel knows. None: never, only its counter stops."""


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    speed: float
    poll_s: float
    mailbox_limit: int
    latency_s: float
    nodes: tuple[NodePlan, ...]
    outsiders: int
    runs: tuple[RunPlan, ...]
    faults: tuple[NodeFault, ...]
    rates: dict[str, float] = field(default_factory=dict)
    heal_s: float = 0.0

    def without(self, name: str) -> Plan:
        """The same plan without the run, node fault or rate of this name; see `parts`."""
        kind, _, which = name.partition(":")
        match kind:
            case "run":
                return replace(self, runs=tuple(each for each in self.runs if each.name != which))
            case "poke":
                run, _, number = which.rpartition("/")
                return replace(self, runs=tuple(_unpoked(each, run, int(number)) for each in self.runs))
            case "fault":
                return replace(self, faults=tuple(each for each in self.faults if str(each.number) != which))
            case "rate":
                return replace(self, rates={each: rate for each, rate in self.rates.items() if each != which})
            case "node":
                return replace(self, nodes=tuple(each for each in self.nodes if each.name != which))
            case _:
                raise ValueError(f"{name!r} is no part of a plan; parts are run:, poke:, fault:, rate:, node:")

    def parts(self) -> list[str]:
        """What can be left out, the most helpful first."""
        return [
            *(f"run:{each.name}" for each in self.runs),
            *(f"rate:{each}" for each in self.rates),
            *(f"fault:{each.number}" for each in self.faults),
            *(f"poke:{run.name}/{poke.number}" for run in self.runs for poke in run.pokes),
            *(f"node:{each.name}" for each in self.nodes[:-1]),
        ]


def _unpoked(run: RunPlan, name: str, number: int) -> RunPlan:
    if run.name != name:
        return run
    return replace(run, pokes=tuple(each for each in run.pokes if each.number != number))


def near_constant_s(rng: random.Random, speed: float, longest_s: float = 12.0) -> float:
    """Below, near or above one of the runtime's own durations, or anything in between."""
    if rng.random() < 0.3:
        return round(rng.uniform(0.0, 0.3) * speed, 4)
    constant = rng.choice([each for each in CONSTANTS_S if each <= longest_s])
    return round(constant * speed * rng.choice((0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 1.5)), 4)


def draw_plan(seed: int) -> Plan:
    rng = random.Random(f"plan/{seed}")
    speed = 1.0 if rng.random() < 0.06 else 0.25
    heal_s = rng.uniform(4.0, 40.0) * speed
    nodes = _draw_nodes(rng, speed)
    names = [each.name for each in nodes]
    outsiders = rng.randint(1, 2)
    processes = [*names, *(f"o{index}" for index in range(outsiders))]
    calm = rng.random() < 0.05
    faults = () if calm else _draw_faults(rng, speed, heal_s, names)
    runs = (
        *_draw_runs(rng, speed, heal_s, processes),
        # From a stream of its own: the rest of the plan does not depend on it.
        *_draw_told(random.Random(f"told/{seed}"), speed, heal_s, processes, faults),
    )
    return Plan(
        seed,
        speed,
        poll_s=rng.choice((0.25, 1.0, 1.0)) * (1.0 if speed == 1.0 else 0.6),
        mailbox_limit=rng.choice((1, 2, 10_000, 10_000, 10_000)),
        latency_s=rng.choice((0.0005, 0.0005, 0.003, 0.02)),
        nodes=nodes,
        outsiders=outsiders,
        runs=_with_mail_at_the_edge(rng, runs, faults, processes),
        faults=faults,
        rates={} if calm else _draw_rates(rng),
        heal_s=heal_s,
    )


def _draw_nodes(rng: random.Random, speed: float) -> tuple[NodePlan, ...]:
    count = rng.choice((2, 2, 2, 3, 3, 4))
    nodes: list[NodePlan] = []
    for index in range(count):
        last = index == count - 1
        queues = ("default", "aside") if last or rng.random() < 0.3 else ("default",)
        begins_s = 0.0 if index == 0 else rng.choice((0.0, 0.0, 1.0, 4.0)) * rng.random() * speed
        slots = rng.choice((1, 2, 1000, 1000))
        room = rng.choice((2, 10_000, 10_000, 10_000))
        skew_us = rng.choice((0, 0, 2_000, -2_000, 200_000, -200_000))
        nodes.append(NodePlan(f"n{index}", queues, last or rng.random() < 0.5, begins_s, slots, room, skew_us))
    return tuple(nodes)


def _draw_runs(rng: random.Random, speed: float, heal_s: float, processes: list[str]) -> tuple[RunPlan, ...]:
    """Some worlds begin with a burst: runs that do the same at the same time, so that their turns share commits."""

    def script() -> Step:
        return draw_script(rng, lambda each: near_constant_s(each, speed), 2)

    runs: list[RunPlan] = []
    burst = (script(), rng.uniform(0.0, heal_s * 0.4), rng.choice(processes)) if rng.random() < 0.3 else None
    for index in range(rng.randint(2, 6)):
        # Some ids are used twice: by two starters at once, or again after the first run has ended.
        workflow_id = f"w{index}" if not runs or rng.random() < 0.85 else rng.choice(runs).workflow_id
        kind = rng.choice([*WORKFLOWS, "scripted", "scripted"])
        steps, at_s, by = script(), rng.uniform(0.0, heal_s * 0.7), rng.choice(processes)
        if burst is not None and rng.random() < 0.7:
            steps, at_s, by = burst
            kind = "scripted"
        watched_by = tuple(rng.choice(processes) for _ in range(rng.choice((0, 1, 1, 2))))
        pokes = tuple(
            _draw_poke(rng, number, at_s, speed, heal_s, processes)
            for number in range(rng.choice((0, 0, 0, 0, 0, 1, 1, 2, 3)))
        )
        runs.append(RunPlan(f"r{index}", workflow_id, kind, steps, at_s, by, watched_by, pokes))
    return tuple(runs)


def _draw_poke(rng: random.Random, number: int, at_s: float, speed: float, heal_s: float, processes: list[str]) -> Poke:
    """Right after the start, or soon after it, or at any time."""
    at_s = rng.choice((at_s, at_s + 0.001, at_s + near_constant_s(rng, speed), rng.uniform(at_s, heal_s)))
    return Poke(number, at_s, rng.choice(("cancel", "cancel", "cancel", "terminate")), rng.choice(processes))


def _draw_told(
    rng: random.Random, speed: float, heal_s: float, processes: list[str], faults: tuple[NodeFault, ...]
) -> tuple[RunPlan, ...]:
    """Runs that are told and asked things, in some of the worlds."""
    runs: list[RunPlan] = []
    for index in range(rng.choice((0, 0, 0, 1, 1, 2))):
        workflow_id = f"t{index}" if not runs or rng.random() < 0.8 else runs[0].workflow_id
        at_s, by = rng.uniform(0.0, heal_s * 0.7), rng.choice(processes)
        script = draw_listening(rng, lambda each: near_constant_s(each, speed))
        talk: list[Poke] = []
        for number in range(rng.randint(2, 8)):
            # Often right after the one before it: then they share turns, and race with the end that one of them brings.
            after_s = talk[-1].at_s if talk and rng.random() < 0.5 else at_s
            # Most questions come from the process that starts it, which perhaps hosts it.
            poke = _draw_talk(rng, number, after_s, speed, heal_s, processes)
            if poke.what == "query" and rng.random() < 0.6:
                poke = replace(poke, by=by)
            talk.append(poke)
            if poke.what == "signal" and rng.random() < 0.4:
                asked_at_s = poke.at_s + rng.choice((0.002, 0.01, 0.05))
                talk.append(Poke(20 + number, asked_at_s, "query", rng.choice((by, by, *processes))))
        for fault in faults:
            # It asks as soon as it goes on, when others have perhaps taken its runs.
            if fault.kind == "pause" and rng.random() < 0.7:
                asked_at_s = fault.at_s + rng.random() * fault.lasts_s
                talk.append(Poke(50 + fault.number, asked_at_s, "query", fault.node))
        watched_by = (rng.choice(processes),) if rng.random() < 0.5 else ()
        first = _draw_message(rng, 99, at_s, by, speed, processes) if rng.random() < 0.4 else None
        kind = runs[0].workflow if runs and workflow_id == runs[0].workflow_id else rng.choice([*TOLD])
        runs.append(RunPlan(f"t{index}", workflow_id, kind, script, at_s, by, watched_by, tuple(talk), first))
    return tuple(runs)


def _draw_talk(rng: random.Random, number: int, at_s: float, speed: float, heal_s: float, processes: list[str]) -> Poke:
    at_s = rng.choice((at_s, at_s + 0.001, at_s + near_constant_s(rng, speed), rng.uniform(at_s, heal_s)))
    by = rng.choice(processes)
    match rng.random():
        case draw if draw < 0.04:
            return Poke(number, at_s, rng.choice(("cancel", "terminate")), by)
        case draw if draw < 0.34:
            return Poke(number, at_s, "query", by)
        case draw if draw < 0.42:
            poke = _draw_message(rng, number, at_s, by, speed, processes)
            return replace(poke, what=f"{poke.what} with start", also_by="")
        case _:
            return _draw_message(rng, number, at_s, by, speed, processes)


def _draw_message(rng: random.Random, number: int, at_s: float, by: str, speed: float, processes: list[str]) -> Poke:
    what = rng.choice(("signal", "update"))
    handler = rng.choice(("note", "note", "see_to") if what == "signal" else ("work", "work_plainly"))
    step = draw_handling(rng, lambda each: near_constant_s(each, speed))
    needs = rng.choice((0, 0, 0, 0, 1, 2, NEVER)) if what == "update" else 0
    also_by = rng.choice(processes) if rng.random() < 0.35 else ""
    return Poke(number, at_s, what, by, handler, step, needs, also_by, at_s + near_constant_s(rng, speed, 1.0))


def _draw_faults(rng: random.Random, speed: float, heal_s: float, nodes: list[str]) -> tuple[NodeFault, ...]:
    kinds = [kind for kind in NODE_FAULTS if rng.random() < 0.5] or ["crash"]
    count = rng.randint(0, 6)
    return tuple(_draw_fault(rng, number, rng.choice(kinds), speed, heal_s, nodes) for number in range(count))


def _draw_fault(rng: random.Random, number: int, kind: str, speed: float, heal_s: float, nodes: list[str]) -> NodeFault:
    lasts_s = near_constant_s(rng, speed, 15.0)
    if kind == "clock jump":
        lasts_s = rng.choice((-1, 1)) * rng.choice((0.01, 0.5, 0.99, 1.01, 5.0, 60.0))
    elif kind == "pause" and rng.random() < 0.7:
        # A little more than others need to take over: they find it silent for a lease, in one of their rounds.
        lasts_s = LEASE_S * speed * rng.choice((0.9, 1.0, 1.1, 1.3, 1.6, 2.0)) + rng.random() * 0.5
    known = rng.choice((0.0, 0.0, near_constant_s(rng, speed), None))
    return NodeFault(number, rng.uniform(0.0, heal_s), kind, rng.choice([*nodes, nodes[-1]]), lasts_s, known)


def _with_mail_at_the_edge(
    rng: random.Random, runs: tuple[RunPlan, ...], faults: tuple[NodeFault, ...], processes: list[str]
) -> tuple[RunPlan, ...]:
    """Messages that arrive while a node gives its runs back."""
    leaving = [each.at_s for each in faults if each.kind == "leave"]
    if not leaving or rng.random() < 0.3:
        return runs
    return tuple(
        run
        if run.workflow in TOLD
        else replace(
            run, pokes=(*run.pokes, Poke(9, rng.choice(leaving) + rng.random() * 0.05, "cancel", rng.choice(processes)))
        )
        for run in runs
    )


def _draw_rates(rng: random.Random) -> dict[str, float]:
    """Share of the calls that are hit."""
    rates: dict[str, float] = {}
    for kind in (*STORE_FAULTS, *HINT_FAULTS):
        if rng.random() < 0.25:
            rates[kind] = rng.choice((0.01, 0.03, 0.1))
    for kind in ("crash before the write", "crash after the write", "crash, written later"):
        if kind in rates:
            rates[kind] = min(rates[kind], 0.03)
    if rng.random() < 0.2:
        rates["hint lost"] = 1.0
    return rates


def options_of(plan: Plan) -> dict[str, Any]:
    """For people: the plan's figures without its runs and faults."""
    return {
        "speed": plan.speed,
        "poll_s": plan.poll_s,
        "mailbox_limit": plan.mailbox_limit,
        "latency_s": plan.latency_s,
        "heal_s": round(plan.heal_s, 3),
        "rates": plan.rates,
    }
