"""A worker of the next release of Outlast, as far as others can see it: it writes events that this one cannot read.

python next_release.py URL MARKS host|leave ID...    starts a run of `short` under each id, then hosts like worker.py

Runs that were started in the format of this release are read and written as this release does: a run keeps its
format for life. That is what any release must do that raises EVENT_FORMAT.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import msgspec

from outlast.model import events

FORMAT = events.EVENT_FORMAT + 1
events.EVENT_FORMAT = FORMAT  # before the runtime is imported, which takes it from there

import worker  # noqa: E402
from programs import short  # noqa: E402

import outlast  # noqa: E402
from outlast.model.events import Event  # noqa: E402
from outlast.runtime import loading, node, service  # noqa: E402
from outlast.runtime.hosted import Hosted  # noqa: E402
from outlast.store.api import Commit  # noqa: E402

MARK = b'[{"type":"OnlyTheNextReleaseKnowsThis"},'


def encode_next(written: list[Event]) -> bytes:
    return events.encode_events(written).replace(b"[", MARK, 1)


def decode_both(data: bytes) -> list[Event]:
    return events.decode_events(data.replace(MARK, b"[", 1))


class NextNode(node.Node):
    def commit(self, hosted: Hosted, *given: Any, **more: Any) -> Commit:
        commit = super().commit(hosted, *given, **more)
        assert hosted.state.started is not None
        if hosted.state.started.format < FORMAT or not commit.count:
            return commit
        return msgspec.structs.replace(commit, events=commit.events.replace(b"[", MARK, 1))


def become_the_next_release() -> None:
    from outlast.runtime import membership

    service.encode_events = encode_next  # type: ignore[attr-defined]  # only ever starts, which are of its own format
    service.decode_events = loading.decode_events = decode_both  # type: ignore[attr-defined]
    membership.Node = NextNode  # type: ignore[misc, attr-defined]


async def start(url: str, ids: list[str]) -> None:
    async with outlast.connect(url) as client:
        for workflow_id in ids:
            await client.start(short, 1, id=workflow_id)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s", level=logging.INFO)
    become_the_next_release()
    then, ids, sys.argv[3:] = sys.argv[3], sys.argv[4:], []
    given = worker.arguments()
    asyncio.run(start(given.url, ids))
    if then == "host":
        asyncio.run(worker.host(given))
