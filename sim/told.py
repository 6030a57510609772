"""Workflows that are told something, asked something, and asked to do something while they run.

Every message says its own id as its first argument. A handler that is entered puts it on the list of what the run has
heard, and the query gives that list: so whatever a query shows can be held against the journal, and against what was
acknowledged before it was asked.
"""

from __future__ import annotations

import random
from typing import Any

from outlast import workflow
from sim import workloads
from sim.workloads import Durations, Refused, Step, do, do_plainly, draw_script

NEVER = -1
"""In place of how much must have been heard before an update is accepted."""


def check_may_work(heard: list[str], needs: int) -> None:
    if needs == NEVER or len(heard) < needs:
        raise Refused(f"{needs} must have been heard, and {len(heard)} were")


async def listen(script: Step, heard: list[str]) -> None:
    """What the main functions do: the script, then wait for messages, then perhaps for their handlers."""
    match script:
        case ["listen", wanted, seconds, inner, patient]:
            await do(inner)
            await workflow.wait(lambda: len(heard) >= wanted, timeout=seconds, label="listening")
            if patient:
                await workflow.wait(workflow.all_handlers_finished)
        case _:
            await do(script)


class Tellable:
    def __init__(self) -> None:
        self.heard: list[str] = []

    @workflow.signal
    def note(self, what: str, step: list[Any]) -> None:
        self.heard.append(what)

    @workflow.signal
    async def see_to(self, what: str, step: list[Any]) -> None:
        self.heard.append(what)
        await do(step)

    @workflow.update
    async def work(self, what: str, step: list[Any], needs: int) -> str:
        self.heard.append(what)
        await do(step)
        return f"{what} is done"

    @work.validator
    def may_work(self, what: str, step: list[Any], needs: int) -> None:
        check_may_work(self.heard, needs)

    @workflow.update
    def work_plainly(self, what: str, step: list[Any], needs: int) -> str:
        self.heard.append(what)
        do_plainly(step)
        return f"{what} is done"

    @work_plainly.validator
    def may_work_plainly(self, what: str, step: list[Any], needs: int) -> None:
        check_may_work(self.heard, needs)

    @workflow.query
    def all_heard(self) -> list[str]:
        return self.heard


@workflow
class Told(Tellable):
    @workflow.run
    async def run(self, script: list[Any]) -> str:
        await listen(script, self.heard)
        return "done"


@workflow
class ToldPlainly(Tellable):
    @workflow.run
    def run(self, script: list[Any]) -> str:
        match script:
            case ["listen", wanted, seconds, inner, patient]:
                do_plainly(inner)
                workflow.wait(lambda: len(self.heard) >= wanted, timeout=seconds, label="listening").result()
                if patient:
                    workflow.wait(workflow.all_handlers_finished).result()
            case _:
                do_plainly(script)
        return "done"


@workflow
async def told(script: list[Any]) -> str:
    """It has no class, and says its handlers when it runs."""
    heard: list[str] = []

    def note(what: str, step: list[Any]) -> None:
        heard.append(what)

    async def see_to(what: str, step: list[Any]) -> None:
        heard.append(what)
        await do(step)

    async def work(what: str, step: list[Any], needs: int) -> str:
        heard.append(what)
        await do(step)
        return f"{what} is done"

    def work_plainly(what: str, step: list[Any], needs: int) -> str:
        heard.append(what)
        do_plainly(step)
        return f"{what} is done"

    def may_work(what: str, step: list[Any], needs: int) -> None:
        check_may_work(heard, needs)

    def all_heard() -> list[str]:
        return heard

    workflow.set_signal_handler("note", note)
    workflow.set_signal_handler("see_to", see_to)
    workflow.set_update_handler("work", work, validator=may_work)
    workflow.set_update_handler("work_plainly", work_plainly, validator=may_work)
    workflow.set_query_handler("all_heard", all_heard)
    await listen(script, heard)
    return "done"


TOLD: dict[str, Any] = {"Told": Told, "ToldPlainly": ToldPlainly, "told": told}
WORKFLOWS: dict[str, Any] = {**workloads.WORKFLOWS, **TOLD}
EVERYTHING = (*workloads.EVERYTHING, *TOLD.values())
COMMON = (*workloads.COMMON, *TOLD.values())


def draw_listening(rng: random.Random, duration: Durations) -> Step:
    inner = draw_script(rng, duration, rng.choice((0, 0, 1)))
    return ["listen", rng.randint(1, 6), rng.choice((0.5, 2.0, 8.0)) * duration(rng), inner, rng.random() < 0.5]


def draw_handling(rng: random.Random, duration: Durations) -> Step:
    """What a handler does."""
    return ["in turn", []] if rng.random() < 0.25 else draw_script(rng, duration, rng.choice((0, 0, 1)))
