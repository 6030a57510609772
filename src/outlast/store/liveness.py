"""Which nodes of a SQLite file have ended, as the kernel knows it.

Theory of operation
===================
Beside the database `orders.db` lies `orders.db-nodes`, a file whose bytes are never read: byte N is locked by the
process of node N for as long as that process lives. The kernel drops the lock when the process ends, however it
ends; so whoever gets a shared lock on byte N knows that node N is gone. Shared, so that two observers are not in
each other's way. A held lock proves nothing (the process may be stopped, or stuck): that is what heartbeats are for.

POSIX record locks have two traps, and this module is built around them:

- A process that closes *any* descriptor of a file drops all its locks on it. So the descriptor is opened once per
  process and file (told apart by device and inode) and never closed. For the same reason the database itself must
  never be opened and closed except by SQLite, which has its own way around the trap.
- Locks do not conflict within one process, and a probe of one's own byte would drop it. So the nodes of this process
  are known from memory, and never probed.

A forked child inherits no locks, and closing its copies drops none of the parent's. It starts with empty memory here.

`lock_file` in the row of a node says which file it locked (the inode), or that it could lock none. If that is not
the file that the observer has (the database was copied or restored, the lock file was deleted), nothing is known
and only the heartbeat counts. On Windows, where there is no fcntl, it is always so.
"""

from __future__ import annotations

import os
import threading
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class LockFile:
    """The lock file of one database, as this process sees it. Shared by all stores of the process."""

    def __init__(self, descriptor: int, inode: int) -> None:
        self.inode = inode & (1 << 63) - 1  # what a column of SQLite holds
        self._descriptor = descriptor
        self._held: set[int] = set()
        self._guard = threading.Lock()

    def hold(self, node: int) -> bool:
        """Lock the byte of a node of this process. False if the file system cannot."""
        assert fcntl is not None
        with self._guard:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, node)
            except OSError:
                return False
            self._held.add(node)
            return True

    def let_go(self, node: int) -> None:
        assert fcntl is not None
        with self._guard:
            if node in self._held:
                self._held.remove(node)
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, node)

    def is_gone(self, node: int) -> bool:
        """True if no process holds the byte. Asks the kernel, except about nodes of this process."""
        assert fcntl is not None
        with self._guard:
            if node in self._held:
                return False
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, node)
            except OSError:
                return False
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, node)
            return True


_files: dict[tuple[int, int], LockFile] = {}
_files_guard = threading.Lock()


def lock_file_of(database: str) -> LockFile | None:
    """The lock file beside `database`, made if it is missing. None where byte locks cannot be had."""
    if fcntl is None:
        return None
    path = os.path.realpath(database) + "-nodes"
    with _files_guard:
        try:
            known = os.stat(path)
            if (file := _files.get((known.st_dev, known.st_ino))) is not None:
                return file
        except FileNotFoundError:
            pass
        except OSError:
            return None
        return _open(path)


def _open(path: str) -> LockFile | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    opened = os.fstat(descriptor)
    key = (opened.st_dev, opened.st_ino)
    # Never seen before: `lock_file_of` looked, under the same guard. A file put there in between may be one we know;
    # then this descriptor too must stay open, or the locks held through the first would go.
    return _files.setdefault(key, LockFile(descriptor, opened.st_ino))


def _forget() -> None:
    global _files_guard
    _files.clear()
    _files_guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
