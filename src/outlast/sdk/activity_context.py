"""What an activity may know about the attempt in which it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outlast.model.errors import DurableCallError
from outlast.sdk.context import current_run

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityInfo:
    """Which attempt of which activity this is."""

    activity: str
    """The activity's name, as the history has it."""
    activity_id: str
    attempt: int
    """Counts from 1."""
    workflow: str
    workflow_id: str
    run_id: str
    namespace: str
    queue: str
    scheduled_at: datetime
    """When the workflow asked for it: the same for all attempts."""
    started_at: datetime
    """When this attempt began."""
    deadline: datetime | None
    """When the time allowed for all attempts together is over."""

    @property
    def idempotency_key(self) -> str:
        """The same for all attempts of this call, and of no other call: give it to whatever has the side effect."""
        return f"{self.run_id}/{self.activity_id}"


current_attempt: ContextVar[Callable[[], ActivityInfo] | None] = ContextVar("outlast.current_attempt", default=None)
"""Makes the info when somebody asks: most activities never do, and it costs as much as a small activity itself."""


def attempt_info(what: str) -> ActivityInfo:
    """The attempt in which this code runs. `what` was asked for; it is named if there is none."""
    make_info = current_attempt.get()
    if make_info is not None:
        return make_info()
    if current_run.get() is not None:
        raise DurableCallError(
            f"{what} was called in workflow code. It tells about an attempt of an activity: call it inside an "
            "activity; a workflow has `workflow.info()`."
        )
    raise DurableCallError(
        f"{what} was called where no activity runs. There is an attempt only when a worker runs the activity for a "
        "workflow; in a unit test that calls the function itself, pass in what it needs."
    )


class AttemptLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds which attempt speaks; outside of activities it is a plain logger."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("outlast.activity"), {})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        make_info = current_attempt.get()
        if make_info is not None:
            info = make_info()
            extra = {
                "activity": info.activity,
                "activity_id": info.activity_id,
                "attempt": info.attempt,
                "workflow": info.workflow,
                "workflow_id": info.workflow_id,
                "run_id": info.run_id,
            }
            kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        return msg, kwargs
