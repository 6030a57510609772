"""What a caller of a store must keep to. Whoever breaks it has a bug: asserted before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from outlast.model.errors import InvalidArgument
from outlast.model.ids import MessageId
from outlast.store.api import Commit, NewMail, RunStatus, Task


def as_text(body: bytes, what: str) -> str:
    """Bodies are JSON and stored as text, so that people can read them in the database."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{what} is not UTF-8 text: {error}. Everything that is stored is JSON; other bytes belong into a payload "
            f"made with Payload.from_bytes. Nothing was written."
        ) from None


def check_batch(batch: Sequence[Commit]) -> None:
    for commit in batch:
        check_commit(commit)
    assert len({commit.run_id for commit in batch}) == len(batch), "a run occurs twice in one batch"


def check_commit(commit: Commit) -> None:
    assert (commit.create is None) != (commit.fence is None), f"one of create and fence, not both or neither: {commit}"
    assert (commit.count > 0) == (commit.events != b""), f"count and events do not agree: {commit}"
    assert commit.count >= 0, f"negative count: {commit}"
    if commit.create is not None:
        assert commit.count > 0, f"a run is created with its first event: {commit}"
        assert not commit.consume, f"a new run has no mail: {commit}"
        assert commit.release is None, f"a new run is created without an owner instead: {commit}"
        assert not commit.replies, f"a new run has taken no message that it could reply to: {commit}"
        if commit.create.mail:
            assert commit.status is None, f"mail for a run that is closed at once: {commit}"
            assert _differ(message_id for message_id, _ in commit.create.mail), f"one message twice: {commit}"
        # SQLite would keep it as a fraction, at which every claim fails.
        assert abs(commit.create.priority) < 1 << 63, f"no database holds this priority: {commit}"
    if commit.status is not None:
        assert commit.status is not RunStatus.OPEN, f"a run is closed with a terminal status: {commit}"
        assert commit.release is None, f"closed and released at once: {commit}"
    added = {task.activity_id for task in commit.add_tasks}
    assert len(added) == len(commit.add_tasks), f"two tasks for one activity: {commit}"
    if commit.replies:
        assert _differ(reply.message_id for reply in commit.replies), f"two replies to one message: {commit}"


def _differ(message_ids: Iterable[MessageId]) -> bool:
    found = list(message_ids)
    return len(set(found)) == len(found)


def check_text(commit: Commit) -> None:
    """For a store that keeps bytes as they are."""
    as_text(commit.events, f"the events of run {commit.run_id}")
    for task in commit.add_tasks:
        as_text(task.body, f"the task of activity {task.activity_id}")
    for reply in commit.replies:
        as_text(reply.body, f"the reply to message {reply.message_id}")
    if commit.create is not None:
        for message_id, body in commit.create.mail:
            as_text(body, f"message {message_id}")


def check_delivery(task: Task, mail: NewMail) -> None:
    assert mail.run_id == task.run_id, f"the outcome of a task goes to its run: {task.run_id}, not {mail.run_id}"
