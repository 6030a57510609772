"""Patience: doing what must be done before a run can go on, however long the database does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from outlast.model.errors import Busy, CommitUnknown, StoreUnavailable

T = TypeVar("T")

logger = logging.getLogger("outlast")

PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
"""Pauses between tries double up to this: who comes back is noticed soon, and who is busy is left alone."""


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Try until it is done. Only for what may be done twice: reading, and what finds nothing to do the second time."""
    pause_s = PAUSE_S
    while True:
        try:
            return await work()
        except (Busy, StoreUnavailable, CommitUnknown) as error:
            logger.warning("the database does not answer (%s); trying again in %.2f s", error, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)
