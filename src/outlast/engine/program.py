"""A program turns new events into commands: the boundary between the engine and whatever runs workflow code.

A Python coroutine is a program. Later so are a worker far away, a state machine document, a deployment that
speaks another protocol. What always holds:

- `feed` is given input events one at a time, in the order of the journal, live and on replay alike, beginning
  with WorkflowExecutionStarted. It is never given notes or the program's own commands.
- `feed` returns when the program is quiet: it can do nothing more before the next event.
- The commands depend only on the events fed and their times. Whoever breaks that is found by `engine.replay`.
- After a command that ends the run, `feed` is not called again.
- If `feed` raises, the turn is dropped: nothing of it is written, the program is closed and built anew later
  from the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from outlast.model.commands import Command
from outlast.model.events import InputEvent
from outlast.model.failures import Failure
from outlast.model.payloads import Arguments, Payload


class Program(Protocol):
    def feed(self, event: InputEvent, at_us: int, *, replaying: bool) -> Sequence[Command]:
        """Give the program one event, run it until it is quiet, and return what it asked for, in order.

        `at_us` is the event's time: what the program's clock shows until the next event. With `replaying`, the
        program keeps quiet towards the outside (logs), and fills in `Command.source`.
        """
        ...

    def refuse_update(self, update: str, arguments: Arguments) -> Failure | None:
        """Why an update cannot be accepted at this moment; None if it can. Changes nothing, live only.

        It is asked right before the update would be fed. What it says is not recorded.
        """
        ...

    def answer_query(self, query: str, arguments: Arguments) -> Payload | Failure:
        """What the run has to tell. Changes nothing; may also be asked after the program has ended."""
        ...

    def whereabouts(self) -> str:
        """Where the program waits, for error messages: files and lines, or "" if that is not known."""
        ...

    def close(self) -> None:
        """Unwind the program and free what it holds. Nothing that it does meanwhile counts."""
        ...
