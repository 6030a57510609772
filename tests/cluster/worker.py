"""A worker process of the cluster tests.

python worker.py URL MARKS [--queue Q]... [--lease S] [--interrupt S] [--ahead S]
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import signal
import sys
import time
from pathlib import Path

from outlast.model.errors import Busy, CommitUnknown, StoreUnavailable
from outlast.runtime import membership
from outlast.runtime.watchdog import Watchdog


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("marks", type=Path)
    parser.add_argument("--queue", action="append", default=[])
    parser.add_argument("--lease", type=float, help="seconds after which a silent node is dead, instead of the default")
    parser.add_argument("--interrupt", type=float, help="as `Limits` has it; what does not help is soon given up")
    parser.add_argument("--ahead", type=float, default=0.0, help="seconds by which this machine's clock is wrong")
    return parser.parse_args()


def shorten_lease(lease_s: float) -> None:
    """All times scaled down alike. Every worker of a database must agree."""
    membership.HEARTBEAT_S *= lease_s / membership.LEASE_S
    membership.LEASE_S = lease_s


def set_clock(ahead_s: float) -> None:
    """As if somebody had set this machine's clock wrong. Its monotonic clock goes on as before."""
    true_ns = time.time_ns
    time.time_ns = lambda: true_ns() + int(ahead_s * 1e9)
    time.time = lambda: time.time_ns() / 1e9


async def host(given: argparse.Namespace) -> None:
    from programs import HOSTED, leave_marks_in

    import outlast

    limits = outlast.Limits()
    if given.interrupt is not None:
        limits = outlast.Limits(interrupt_s=given.interrupt)
        membership.Watchdog = functools.partial(Watchdog, give_up_s=1.0)
    leave_marks_in(given.marks)
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, asked_to_end.set)
    loop.add_reader(sys.stdin, asked_to_end.set)  # nothing is ever sent: it is readable when it is closed
    async with outlast.connect(given.url) as client:
        async with client.worker(*HOSTED, queue=given.queue or "default", limits=limits):
            print("ready", flush=True)
            await asked_to_end.wait()


if __name__ == "__main__":
    given = arguments()
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s", level=logging.INFO)
    if given.lease is not None:
        shorten_lease(given.lease)
    set_clock(given.ahead)
    try:
        asyncio.run(host(given))
    except (Busy, StoreUnavailable, CommitUnknown) as error:
        # Only while it opens the database and joins. From then on a node waits until the database is back.
        logging.warning("the database does not answer: %s", error)
        sys.exit(3)
