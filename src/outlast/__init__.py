"""Durable execution for Python: business logic as ordinary code, which runs to completion across crashes.

    import outlast
    from outlast import activity, workflow

Everything that users need is here; what is not in `__all__` may change. Names are loaded when they are first used,
so that a program which only looks at a database (`outlast list`) does not load what runs workflows.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from outlast._version import __version__

if TYPE_CHECKING:
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
        MessageFailed,
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
    from outlast.runtime.limits import Limits
    from outlast.sdk.activity_context import ActivityInfo
    from outlast.sdk.blocking import BlockingClient, BlockingHandle, BlockingUpdateHandle, connect_blocking, run
    from outlast.sdk.client import Client, connect
    from outlast.sdk.context import WorkflowInfo
    from outlast.sdk.decorators import activity, workflow
    from outlast.sdk.failures import ApplicationError
    from outlast.sdk.handle import Handle, UpdateHandle
    from outlast.sdk.messages import MessageArguments, MessageCall
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
    "BlockingUpdateHandle",
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
    "MessageArguments",
    "MessageCall",
    "MessageFailed",
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
    "UpdateHandle",
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

_MODULES = {
    "outlast.model.errors": (
        "ActivityError ActivityLost ActivityTimeout AlreadyStarted Busy CommitUnknown "
        "DatabaseTooNew DeterminismViolation DurableCallError Evicted InternalError InvalidArgument "
        "MessageFailed NondeterminismError NotADatabase NotRegistered OutlastError OutlastInterrupt PayloadError "
        "RemoteError RunClosed RunNotFound StoreUnavailable UsageError WorkflowCancelled "
        "WorkflowFailed WorkflowTerminated"
    ),
    "outlast.model.events": "HistoryEvent",
    "outlast.runtime.limits": "Limits",
    "outlast.sdk.activity_context": "ActivityInfo",
    "outlast.sdk.blocking": "BlockingClient BlockingHandle BlockingUpdateHandle connect_blocking run",
    "outlast.sdk.client": "Client connect",
    "outlast.sdk.handle": "Handle UpdateHandle",
    "outlast.sdk.context": "WorkflowInfo",
    "outlast.sdk.decorators": "activity workflow",
    "outlast.sdk.failures": "ApplicationError",
    "outlast.sdk.messages": "MessageArguments MessageCall",
    "outlast.sdk.options": "Retry",
    "outlast.sdk.pending": "Pending",
    "outlast.sdk.worker": "Worker",
}
"""Where the names are: for the interpreter, what the imports above are for type checkers. A test compares them."""

_WHERE = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'outlast' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
