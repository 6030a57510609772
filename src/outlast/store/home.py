"""Where a store is at home: one process and one event loop. Anywhere else its methods raise."""

from __future__ import annotations

import asyncio
import os

from outlast.model.errors import DurableCallError, StoreUnavailable


class Home:
    def __init__(self, where: str, what_ends: str, what_is_shared: str) -> None:
        """For the messages: the database; what a fork does not inherit; what stores on several loops may share."""
        self._where = where
        self._what_ends = what_ends
        self._what_is_shared = what_is_shared
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_open(self) -> bool:
        return self._loop is not None

    def open(self) -> None:
        """From now on it is the loop that runs at this moment."""
        self._loop = asyncio.get_running_loop()

    def check_process(self) -> None:
        if os.getpid() != self._pid:
            raise DurableCallError(
                f"the store {self._where} was opened in process {self._pid}, and this is a fork of it, process "
                f"{os.getpid()}. {self._what_ends} do not survive a fork. Open a store of its own in the child, or "
                "start processes with the method 'spawn' or 'forkserver'."
            )

    def check(self) -> None:
        self.check_process()
        if self._loop is None:
            raise StoreUnavailable(f"the store {self._where} is not open. Call `await store.open()` first.")
        if asyncio.get_running_loop() is not self._loop:
            raise DurableCallError(
                f"the store {self._where} was opened on another event loop than the one that calls it. Open a store "
                f"of its own on each loop; they may share the {self._what_is_shared}."
            )
