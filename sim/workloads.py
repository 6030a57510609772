"""What runs in the simulator: workflows as users write them, and the scripts that are drawn for them.

A script is a tree of small steps, plain JSON, so that a plan can be printed, shortened and passed as an argument. The
interpreter below turns it into the SDK's calls. To add a kind of work: a case in `do` (and in `do_plainly`, if plain
functions can do it), a line in `KINDS`, and it will be drawn.

Every activity checks in with the world's witness (`oracle.py`) when its code is entered; every result is compared
with what the activity must have returned. A workflow that sees a wrong value fails with `WrongValue`, which no script
catches.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from outlast import Retry, activity, workflow
from outlast.model.errors import ActivityError

Step: TypeAlias = list[Any]

QUEUE = "default"
ASIDE = "aside"
"""A queue that only some nodes serve: its activities are dispatched as tasks."""


class WrongValue(Exception):
    """A workflow was told something else than what happened: a bug, wherever it shows."""


class Refused(Exception):
    """What a failing activity raises."""


class Stage(Protocol):
    """What the code below needs of the world."""

    def began(self, key: str, attempt: int, run_id: str, activity_id: str) -> None: ...

    def done(self, key: str, attempt: int) -> None: ...

    def kill_this_process(self) -> bool:
        """False: nothing is killed any more."""
        ...


stage: Stage | None = None
"""The world that is simulated at the moment."""


@dataclass(frozen=True)
class Job:
    """What an activity is to do."""

    n: int
    takes_s: float = 0.0
    fails: int = 0
    """How many attempts fail."""
    kills: int = 0
    """How many attempts kill their process."""


def _enter() -> int:
    info = activity.info()
    assert stage is not None
    stage.began(info.idempotency_key, info.attempt, info.run_id, info.activity_id)
    return info.attempt


def _leave(job: Job, attempt: int) -> int:
    if attempt <= job.fails:
        raise Refused(f"attempt {attempt} of {job.fails} that fail")
    assert stage is not None
    stage.done(activity.info().idempotency_key, attempt)
    return job.n + 1


QUICK = Retry(initial_interval=0.2, max_interval=2, max_attempts=0)


@activity(retry=QUICK)
async def add_one(job: Job) -> int:
    attempt = _enter()
    assert stage is not None
    if attempt <= job.kills and stage.kill_this_process():
        await asyncio.get_running_loop().create_future()
    if job.takes_s:
        await asyncio.sleep(job.takes_s)
    return _leave(job, attempt)


@activity(retry=QUICK)
def add_one_plainly(job: Job) -> int:
    return _leave(job, _enter())


@activity(retry=QUICK)
async def rarely_hosted(job: Job) -> int:
    attempt = _enter()
    await asyncio.sleep(job.takes_s)
    return _leave(job, attempt)


# --- the interpreter --------------------------------------------------------------------------------------------------


def _activity_of(options: dict[str, Any]) -> Any:
    target = rarely_hosted if options.get("rare") else add_one_plainly if options.get("plain") else add_one
    given: dict[str, Any] = {
        name: options[name] for name in ("timeout", "schedule_to_close", "queue") if name in options
    }
    if "attempts" in options:
        given["retry"] = Retry(initial_interval=0.2, max_interval=2, max_attempts=options["attempts"])
    return target.options(**given) if given else target


def _job_of(options: dict[str, Any]) -> Job:
    return Job(options["n"], options.get("takes_s", 0.0), options.get("fails", 0), options.get("kills", 0))


def _expect(value: object, expected: object) -> None:
    if value != expected:
        raise WrongValue(f"got {value!r}, and it must be {expected!r}")


async def do(step: Step) -> None:
    """Carry out one step of a script."""
    match step:
        case ["call", options]:
            target = _activity_of(options)
            if options.get("plain"):
                value = await workflow.start(target, _job_of(options))
            else:
                value = await target(_job_of(options))
            _expect(value, options["n"] + 1)
        case ["sleep", seconds]:
            before = workflow.now()
            await workflow.sleep(seconds, label="nap")
            if (workflow.now() - before).total_seconds() < seconds - 1e-6:
                raise WrongValue(f"slept less than {seconds} s")
        case ["in turn", steps]:
            for each in steps:
                await do(each)
        case ["gather", steps]:
            await asyncio.gather(*(do(each) for each in steps))
        case ["group", steps]:
            try:
                async with asyncio.TaskGroup() as group:
                    for each in steps:
                        group.create_task(do(each))
            except* (Refused, ActivityError, TimeoutError):
                await do(["sleep", 0.01])
        case ["in time", seconds, inner]:
            try:
                await asyncio.wait_for(do(inner), timeout=seconds)
            except TimeoutError:
                workflow.logger.debug("too late")
        case ["try", inner, otherwise]:
            try:
                await do(inner)
            except (Refused, ActivityError, TimeoutError):
                await do(otherwise)
        case ["drop", seconds, inner]:
            task = asyncio.create_task(do(inner))
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.wait([task])
        case ["start", options, meanwhile]:
            pending = workflow.start(_activity_of(options), _job_of(options))
            await do(meanwhile)
            _expect(await pending, options["n"] + 1)
        case ["wait", seconds]:
            flags: list[int] = []
            task = asyncio.create_task(_raise_flag(flags, seconds))
            _expect(await workflow.wait(lambda: flags, timeout=seconds * 50 + 10, label="flag"), True)
            await task
        case ["draw"]:
            number = workflow.random().random()
            key = workflow.uuid4()
            await workflow.sleep(number / 100 + key.int % 7 / 1000)
        case ["shield", seconds, inner]:
            try:
                await do(inner)
            except asyncio.CancelledError:
                await workflow.sleep(seconds)
                raise
        case _:
            raise WrongValue(f"no such step: {step!r}")


async def _raise_flag(flags: list[int], seconds: float) -> None:
    await workflow.sleep(seconds)
    flags.append(1)


def do_plainly(step: Step) -> None:
    """The same for a workflow that is a plain function."""
    match step:
        case ["call", options]:
            target = _activity_of(options)
            value = (
                target(_job_of(options)) if options.get("plain") else workflow.start(target, _job_of(options)).result()
            )
            _expect(value, options["n"] + 1)
        case ["sleep", seconds]:
            workflow.sleep(seconds)
        case ["in turn" | "gather" | "group", steps]:
            for each in steps:
                do_plainly(each)
        case ["try", inner, otherwise]:
            try:
                do_plainly(inner)
            except (Refused, ActivityError):
                do_plainly(otherwise)
        case ["start", options, meanwhile]:
            pending = workflow.start(_activity_of(options), _job_of(options))
            do_plainly(meanwhile)
            _expect(pending.result(), options["n"] + 1)
        case ["in time" | "drop" | "shield", _, inner]:
            do_plainly(inner)
        case ["wait", seconds]:
            _expect(workflow.wait(lambda: False, timeout=seconds).result(), False)
        case ["draw"]:
            workflow.sleep(workflow.random().random() / 100)
        case _:
            raise WrongValue(f"no such step: {step!r}")


@workflow
async def scripted(script: list[Any]) -> str:
    await do(script)
    return "done"


@workflow
def scripted_plainly(script: list[Any]) -> str:
    do_plainly(script)
    return "done"


@workflow
class Scripted:
    def __init__(self) -> None:
        self.steps = 0

    @workflow.run
    async def run(self, script: list[Any]) -> str:
        self.steps += 1
        await do(script)
        return "done"


EVERYTHING = (scripted, scripted_plainly, Scripted, add_one, add_one_plainly, rarely_hosted)
COMMON = (scripted, scripted_plainly, Scripted, add_one, add_one_plainly)
WORKFLOWS: dict[str, Any] = {"scripted": scripted, "scripted_plainly": scripted_plainly, "Scripted": Scripted}


# --- drawing scripts --------------------------------------------------------------------------------------------------

Durations: TypeAlias = Callable[[random.Random], float]


def draw_call(rng: random.Random, duration: Durations) -> Step:
    options: dict[str, Any] = {"n": rng.randrange(100)}
    if rng.random() < 0.5:
        options["takes_s"] = duration(rng)
    if rng.random() < 0.25:
        options["fails"] = rng.randint(1, 2)
    if rng.random() < 0.2:
        options["attempts"] = rng.randint(1, 4)
    if rng.random() < 0.15:
        options["timeout"] = max(0.05, duration(rng))
        options.setdefault("attempts", 3)
    if rng.random() < 0.1:
        options["schedule_to_close"] = max(0.1, duration(rng))
    match rng.random():
        case draw if draw < 0.2:
            options["plain"] = True
        case draw if draw < 0.4:
            options["queue"] = ASIDE
            options.setdefault("takes_s", duration(rng))
        case draw if draw < 0.47:
            options["rare"] = True
        case draw if draw < 0.5:
            options["kills"] = 1
        case _:
            pass
    return ["call", options]


def _several(rng: random.Random, duration: Durations, depth: int) -> list[Step]:
    return [draw_script(rng, duration, depth - 1) for _ in range(rng.randint(2, 4))]


KINDS: dict[str, Callable[[random.Random, Durations, int], Step]] = {
    "call": lambda rng, duration, depth: draw_call(rng, duration),
    "sleep": lambda rng, duration, depth: ["sleep", duration(rng)],
    "in turn": lambda rng, duration, depth: ["in turn", _several(rng, duration, depth)],
    "gather": lambda rng, duration, depth: ["gather", _several(rng, duration, depth)],
    "group": lambda rng, duration, depth: ["group", _several(rng, duration, depth)],
    "in time": lambda rng, duration, depth: ["in time", duration(rng), draw_script(rng, duration, depth - 1)],
    "try": lambda rng, duration, depth: [
        "try", draw_script(rng, duration, depth - 1), draw_script(rng, duration, depth - 1),
    ],
    "drop": lambda rng, duration, depth: ["drop", duration(rng), draw_script(rng, duration, depth - 1)],
    "start": lambda rng, duration, depth: ["start", draw_call(rng, duration)[1], draw_script(rng, duration, depth - 1)],
    "wait": lambda rng, duration, depth: ["wait", duration(rng)],
    "draw": lambda rng, duration, depth: ["draw"],
    "shield": lambda rng, duration, depth: ["shield", duration(rng), draw_script(rng, duration, depth - 1)],
}  # fmt: skip
"""Every kind of step, and how one is drawn."""

LEAVES = ("call", "call", "call", "sleep", "draw", "wait")
BRANCHES = ("in turn", "in turn", "gather", "group", "in time", "try", "drop", "start", "shield")


def draw_script(rng: random.Random, duration: Durations, depth: int) -> Step:
    kinds = LEAVES if depth <= 0 or rng.random() < 0.3 else BRANCHES
    return KINDS[rng.choice(kinds)](rng, duration, depth)


def kinds_in(step: Step) -> set[str]:
    """Which kinds a script holds: for the report of what was covered."""
    found = {step[0]}
    for part in step[1:]:
        if isinstance(part, list):
            steps = part if part and isinstance(part[0], list) else [part]
            for each in steps:
                if each and each[0] in KINDS:
                    found |= kinds_in(each)
    return found
