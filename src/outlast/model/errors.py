"""Every error that Outlast raises.

OutlastError
├── UsageError                what the caller did cannot work; change the call
│   ├── InvalidArgument       a value that does not fit (also a ValueError)
│   ├── PayloadError          a value that cannot be written, or does not fit the type that is expected
│   ├── NotRegistered         no such workflow or activity here
│   ├── RunNotFound           no run with this id
│   ├── AlreadyStarted        the workflow id is in use
│   ├── RunClosed             the run has ended; nothing was sent to it
│   ├── DurableCallError      a durable call at a place where it cannot be made
│   ├── NotADatabase          the file is something else
│   └── DatabaseTooNew        written by a newer release (the database, or one run)
├── RemoteError               the other side failed; the call was right
│   ├── ActivityError         an activity failed (raised in workflow code)
│   │   ├── ActivityTimeout   ... because its time ran out
│   │   └── ActivityLost      ... because the process that ran it is gone and no attempt is left
│   ├── MessageFailed         a query or update failed in its handler (raised by the client)
│   ├── WorkflowFailed        the run ended with a failure (raised by `handle.result()`)
│   │   ├── WorkflowCancelled
│   │   └── WorkflowTerminated
│   ├── Busy                  too much is waiting already; nothing was written; try again later
│   ├── StoreUnavailable      the database did not answer; nothing was written
│   └── CommitUnknown         the database did not answer during COMMIT; perhaps written
├── NondeterminismError       replay and history differ; the run waits until the code is put right
└── InternalError             a bug of ours; please report. It stops the run, not the process

OutlastInterrupt (BaseException)   control flow that user code must not swallow
├── Evicted                   the run leaves memory; its code is unwound, nothing it does counts
└── DeterminismViolation      workflow code did what a replay could not repeat; the turn is not committed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlast.model.failures import Failure


class OutlastError(Exception):
    """Base of everything that Outlast raises and that user code may catch."""


# --- the caller's mistake ---------------------------------------------------------------------------------------


class UsageError(OutlastError):
    """What the caller did cannot work. Nothing was written."""


class InvalidArgument(UsageError, ValueError):
    """A value that does not fit: a malformed duration, an unknown option, a negative limit."""


class PayloadError(UsageError):
    """A value that cannot be written as a payload, or does not fit the type that is expected of it. Names the field."""


class NotRegistered(UsageError):
    """No workflow or activity of this name is registered where it was looked for."""


class RunNotFound(UsageError):
    """There is no run with this id."""


class AlreadyStarted(UsageError):
    """The workflow id is in use by a run; `run_id` says which."""

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class RunClosed(UsageError):
    """The run has ended, so it can take no more messages."""


class DurableCallError(UsageError):
    """A durable call at a place where it cannot be made: another thread, another loop, a finaliser, a query."""


class NotADatabase(UsageError):
    """The file exists and is not an Outlast database. It was not changed."""


class DatabaseTooNew(UsageError):
    """The database, or one run in it, was written by a newer release than this one. It was not changed."""


# --- the other side's mistake -----------------------------------------------------------------------------------


class RemoteError(OutlastError):
    """The call was right; what it asked for went wrong."""


class ActivityError(RemoteError):
    """An activity failed for good. `failure` has the details; `__cause__` the error behind it, where known.

    Raised in workflow code when the exception's own class cannot be rebuilt where the workflow runs.
    """

    def __init__(self, message: str, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.failure = failure


class ActivityTimeout(ActivityError):
    """The time allowed for the activity ran out."""


class ActivityLost(ActivityError):
    """The process that ran the last allowed attempt is gone; whether the effect took place is not known."""


class MessageFailed(RemoteError):
    """A query or an update failed. `failure` has the details.

    Raised where the exception's own class cannot be rebuilt; else it is the handler's own exception that is raised.
    """

    def __init__(self, message: str, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.failure = failure


class WorkflowFailed(RemoteError):
    """The run ended with a failure. `__cause__` is the user's own exception where its class can be rebuilt."""

    def __init__(self, message: str, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.failure = failure


class WorkflowCancelled(WorkflowFailed):
    """The run ended because it was asked to cancel."""


class WorkflowTerminated(WorkflowFailed):
    """The run was ended from outside."""


class Busy(RemoteError):
    """Too much is waiting already. Nothing was written; try again later."""


class StoreUnavailable(RemoteError):
    """The database did not answer, or refused. Nothing was written."""


class CommitUnknown(RemoteError):
    """The connection was lost during COMMIT: perhaps written. Read back and compare."""


# --- history and code differ; our bugs --------------------------------------------------------------------------


class NondeterminismError(OutlastError):
    """Replaying the history with this code asked for something else than what is recorded.

    The run stays open, waits, and goes on when the code is put right.
    """


class InternalError(OutlastError):
    """A bug in Outlast: please report it, with the history if you can. It stops the run, not the process."""


# --- control flow ----------------------------------------------------------------------------------------------


class OutlastInterrupt(BaseException):
    """Control flow that `except Exception` in user code must not swallow."""


class Evicted(OutlastInterrupt):
    """The run leaves this process's memory: its code is unwound, and nothing that it does meanwhile counts."""


class DeterminismViolation(OutlastInterrupt):
    """Workflow code did something that a replay could not repeat. Names the call, the place and the replacement."""
