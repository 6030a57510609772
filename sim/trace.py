"""How what was written is shown in a trace: one line for each call of the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast.store.api import Answer


def brief(method: str, args: Sequence[Any], answer: Any) -> str:
    match method:
        case "commit":
            return ", ".join(_brief_commit(commit, each) for commit, each in zip(args[0], answer, strict=True))
        case "claim":
            return f"{args[0].node}: " + ", ".join(f"{each.run.workflow_id}{' lost' * each.lost}" for each in answer)
        case "claim_tasks":
            return f"{args[0].node}: " + ", ".join(
                f"{task.activity_id}/{task.attempt}{' lost' * task.lost}" for task in answer
            )
        case "send":
            return ", ".join(f"{mail.message_id}: {sent.value}" for mail, sent in zip(args[0], answer, strict=True))
        case "deliver":
            return f"{args[2].message_id} {answer}"
        case _:
            return f"{' '.join(map(str, args))}: {answer}"


def _brief_commit(commit: Any, answer: Answer) -> str:
    words = [commit.run_id[-6:], answer.value]
    if commit.fence is not None:
        words.append(f"from {commit.fence.next_event} by {commit.fence.owner}")
    if commit.create is not None:
        words.append(f"create {commit.create.workflow_id} for {commit.create.owner}")
        words += [f"with {message_id}" for message_id, _ in commit.create.mail]
    if commit.count:
        words.append("+" + commit.events.decode())
    if commit.release is not None:
        words.append(f"release until {commit.release.wake_at_us} {commit.release.error or ''}")
    if commit.consume:
        words.append(f"consume {commit.consume}")
    if commit.add_tasks:
        words.append(f"tasks {[task.activity_id for task in commit.add_tasks]}")
    if commit.drop_tasks:
        words.append(f"drop {commit.drop_tasks}")
    if commit.replies:
        words.append(f"reply to {[reply.message_id for reply in commit.replies]}")
    return " ".join(words)
