"""An expense that somebody must approve: reminded of after 48 hours, handed to a manager after 3 days.

    python examples/approval.py

plays it in seconds, with short delays. Kill it (Ctrl-C, or `kill -9`) and run it again: it goes on where it was, and
nobody is asked or reminded twice. With the delays of real life, and decided from another terminal:

    outlast run examples/approval.py:Approval --id expense-8 \
        '{"id": "expense-8", "amount_cents": 12000, "approver": "ada", "manager": "grace"}'
    outlast query expense-8 status
    outlast update expense-8 decide true '"ada"'

Everything is kept in `outlast.db`, in the current folder.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import outlast
from outlast import activity, workflow


@dataclass(frozen=True)
class Expense:
    id: str
    amount_cents: int
    approver: str
    manager: str


@dataclass(frozen=True)
class Delays:
    """From the moment of asking."""

    remind: timedelta = timedelta(hours=48)
    escalate: timedelta = timedelta(days=3)


REAL_LIFE = Delays()


@dataclass(frozen=True)
class Decision:
    approved: bool
    by: str


@activity
async def write_to(person: str, text: str) -> None:
    print(f"to {person}: {text}")


@workflow
class Approval:
    def __init__(self) -> None:
        self.asked: list[str] = []
        """Who may decide."""
        self.decision: Decision | None = None

    @workflow.run
    async def run(self, expense: Expense, delays: Delays = REAL_LIFE) -> Decision:
        text = f"please approve {expense.id}, {expense.amount_cents / 100:.2f} EUR"
        await self.ask(expense.approver, text)
        if not await self.is_decided(delays.remind):
            await write_to(expense.approver, f"a reminder: {text}")
            if not await self.is_decided(delays.escalate - delays.remind):
                await self.ask(expense.manager, f"{expense.approver} does not answer; {text}")
                await self.is_decided()
        await workflow.wait(workflow.all_handlers_finished)  # whoever decided gets the answer before the run ends
        assert self.decision is not None
        return self.decision

    async def ask(self, person: str, text: str) -> None:
        self.asked.append(person)
        await write_to(person, text)

    async def is_decided(self, timeout: timedelta | None = None) -> bool:
        return await workflow.wait(lambda: self.decision is not None, timeout=timeout, label="decision")

    @workflow.query
    def status(self) -> str:
        """Looks, and changes nothing."""
        return f"waits for {' or '.join(self.asked)}" if self.decision is None else f"decided by {self.decision.by}"

    @workflow.update
    async def decide(self, approved: bool, by: str) -> Decision:
        """From a form or a command line: whoever decides is told what became of it."""
        self.decision = Decision(approved, by)
        await write_to(by, "thank you, it is recorded")
        return self.decision

    @decide.validator
    def may_decide(self, approved: bool, by: str) -> None:
        """What it refuses is not recorded."""
        if by not in self.asked:
            raise PermissionError(f"{by} was not asked")
        if self.decision is not None:
            raise ValueError(f"{self.decision.by} has decided already")

    @workflow.signal
    def mail_came(self, approved: bool, by: str) -> None:
        """From a mail gateway, which waits for no answer."""
        if self.decision is None and by in self.asked:
            self.decision = Decision(approved, by)


async def main(delays: Delays) -> None:
    expense = Expense("expense-7", 12_000, approver="ada", manager="grace")
    async with outlast.connect() as client, client.worker(Approval, write_to):
        try:
            handle = await client.start(Approval, expense, delays, id=expense.id)
        except outlast.AlreadyStarted:  # by a process that was killed
            handle = await client.handle(expense.id, Approval)
        while expense.manager not in await handle.query(Approval.status):  # ada never answers
            await asyncio.sleep(0.1)
        try:
            await handle.update(Approval.decide, True, "bob")
        except PermissionError as error:
            print(f"refused: {error}")
        await handle.update(Approval.decide, True, expense.manager)
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main(Delays(remind=timedelta(seconds=1), escalate=timedelta(seconds=2))))
