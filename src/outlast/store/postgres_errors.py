"""What PostgreSQL's errors mean for the caller: has anything been written?

Every write is one statement and its own transaction. An error that the server reports for it means that nothing was
written, but for the errors with which it ends the session: those may come when the transaction is already committed,
like a connection that breaks. Then the outcome is unknown.
"""

from __future__ import annotations

import asyncpg

from outlast.model.errors import (
    Busy,
    CommitUnknown,
    InternalError,
    InvalidArgument,
    OutlastError,
    StoreUnavailable,
)

CONNECTION_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""The session is over, whatever the statement came to."""

_BUSY = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
)


def ends_session(error: Exception) -> bool:
    """Also what this driver knows no better, if the server says that it ends the session with it."""
    if isinstance(error, asyncpg.PostgresError) and error.severity_en in ("FATAL", "PANIC"):
        return True
    return isinstance(error, CONNECTION_ERRORS)


def translated(error: Exception, where: str, *, writing: bool) -> OutlastError:
    """The error to raise instead. `writing`: it came from a statement that writes, and had been sent."""
    if ends_session(error):
        if writing:
            return CommitUnknown(
                f"{where}: the connection broke during a commit ({error!r}). Perhaps it was written, perhaps not."
            )
        return StoreUnavailable(f"{where} does not answer ({error!r}). Nothing was written.")
    match error:
        case asyncpg.PostgresError() if isinstance(error, _BUSY):
            return Busy(f"{where}: the statement was given up for others ({error!r}). Nothing was written; try again.")
        case asyncpg.InsufficientResourcesError():
            return StoreUnavailable(f"{where} has run out of something ({error!r}). Nothing was written.")
        case asyncpg.ReadOnlySQLTransactionError():
            return StoreUnavailable(
                f"{where} takes no writes ({error!r}): it is a standby, or set read-only. Nothing was written. "
                "Give the address of the primary."
            )
        case asyncpg.CharacterNotInRepertoireError() | asyncpg.UntranslatableCharacterError():
            return InvalidArgument(f"{where}: PostgreSQL stores no NUL characters in texts. Nothing was written.")
        case asyncpg.InsufficientPrivilegeError():
            return StoreUnavailable(
                f"{where}: the role lacks a right ({error}). Nothing was written. `outlast migrate`, run with the URL "
                "of the owner, makes the tables; docs/running.md has the GRANTs that the application's role needs."
            )
        case _:
            return InternalError(
                f"{where}: PostgreSQL refused a statement of ours ({error!r}). Nothing was written. Please report it."
            )
