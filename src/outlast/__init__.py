"""Durable execution for Python: business logic as ordinary code, which runs to completion across crashes.

    import outlast
    from outlast import activity, workflow

Everything that users need is here; what is not in `__all__` may change.
"""

from outlast._version import __version__
from outlast.model.errors import (
    ActivityError,
    ActivityLost,
    ActivityTimeout,
    AlreadyStarted,
    Busy,
    CommitUnknown,
    DatabaseTooNew,
    DeterminismViolation,
    DurableCallError,
    Evicted,
    InternalError,
    InvalidArgument,
    NondeterminismError,
    NotADatabase,
    NotRegistered,
    OutlastError,
    OutlastInterrupt,
    PayloadError,
    RemoteError,
    RunClosed,
    RunNotFound,
    StoreUnavailable,
    UsageError,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowTerminated,
)
from outlast.model.events import HistoryEvent
from outlast.runtime.membership import Limits
from outlast.sdk.activity_context import ActivityInfo
from outlast.sdk.blocking import BlockingClient, BlockingHandle, connect_blocking, run
from outlast.sdk.client import Client, Handle, connect
from outlast.sdk.context import WorkflowInfo
from outlast.sdk.decorators import activity, workflow
from outlast.sdk.failures import ApplicationError
from outlast.sdk.options import Retry
from outlast.sdk.pending import Pending
from outlast.sdk.worker import Worker

__all__ = [
    "ActivityError",
    "ActivityInfo",
    "ActivityLost",
    "ActivityTimeout",
    "AlreadyStarted",
    "ApplicationError",
    "BlockingClient",
    "BlockingHandle",
    "Busy",
    "Client",
    "CommitUnknown",
    "DatabaseTooNew",
    "DeterminismViolation",
    "DurableCallError",
    "Evicted",
    "Handle",
    "HistoryEvent",
    "InternalError",
    "InvalidArgument",
    "Limits",
    "NondeterminismError",
    "NotADatabase",
    "NotRegistered",
    "OutlastError",
    "OutlastInterrupt",
    "PayloadError",
    "Pending",
    "RemoteError",
    "Retry",
    "RunClosed",
    "RunNotFound",
    "StoreUnavailable",
    "UsageError",
    "Worker",
    "WorkflowCancelled",
    "WorkflowFailed",
    "WorkflowInfo",
    "WorkflowTerminated",
    "__version__",
    "activity",
    "connect",
    "connect_blocking",
    "run",
    "workflow",
]
