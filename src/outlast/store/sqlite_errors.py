"""What SQLite's errors mean for the caller: has anything been written?

A COMMIT that fails while it writes or syncs the log is *unknown*. This process and every other one go on without
the transaction, and the next commit overwrites it in the log; but if the machine fails before that, recovery may
find it complete there. A full disk is not: what ends a transaction in the log is written last, so it is not there.
"""

from __future__ import annotations

import sqlite3

from outlast.model.errors import Busy, CommitUnknown, InternalError, OutlastError, StoreUnavailable


def translated(error: sqlite3.Error, path: str, *, committing: bool = False) -> OutlastError:
    """The error to raise instead. `committing`: it came from a statement that commits."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the high bits tell the variety
    name = getattr(error, "sqlite_errorname", "no code")
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Busy(
                f"{path} is locked by another process ({name}), and stayed so for several seconds. Nothing was "
                "written. If it stays so, look for a process that is stopped, or that keeps a transaction open in "
                "another tool."
            )
        case sqlite3.SQLITE_IOERR if committing:
            return CommitUnknown(
                f"{path}: an I/O error during COMMIT ({name}: {error}). Perhaps it was written, perhaps "
                "not. The system log should say what is the matter with the disk."
            )
        case sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"{path}: the disk is full. Nothing was written. Free some space.")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return StoreUnavailable(
                f"{path} cannot be opened or written ({name}: {error}). Nothing was written. Check the permissions of "
                "the file and of its folder: SQLite also creates files beside it."
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreUnavailable(
                f"{path} is damaged ({name}: {error}). Nothing was written. Stop all processes that use it, copy it, "
                "and try `.recover` in the sqlite3 shell."
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOMEM | sqlite3.SQLITE_PROTOCOL | sqlite3.SQLITE_INTERRUPT:
            return StoreUnavailable(f"{path}: SQLite failed ({name}: {error}). Nothing was written.")
        case _:
            return InternalError(
                f"{path}: SQLite refused a statement of ours ({name}: {error}). Nothing was written. Please report it."
            )
