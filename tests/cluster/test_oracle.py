"""The oracle itself: each thing that must not happen is found, so that its silence means something."""

from __future__ import annotations

import pytest

from cluster.marks import Mark
from cluster.oracle import COMPLETED, FAILED, LOST, check_marks

KEY = "run/1"


def mark(place: int, phase: str, attempt: int = 1, pid: int = 100) -> Mark:
    return Mark(place, KEY, attempt, pid, phase, float(place))


ONCE = [mark(0, "begin"), mark(1, "end")]
RETRIED = [mark(0, "begin"), mark(1, "fail"), mark(2, "begin", 2), mark(3, "end", 2)]
LATE = [mark(0, "begin", 2), mark(1, "end", 2), mark(2, "begin", 1, pid=200), mark(3, "end", 1, pid=200)]


def test_what_is_as_it_should_be_is_let_pass() -> None:
    assert check_marks(ONCE, {(KEY, 1): COMPLETED}, ()) == 0
    assert check_marks(RETRIED, {(KEY, 1): FAILED, (KEY, 2): COMPLETED}, ()) == 0
    assert check_marks(ONCE[:1] + RETRIED[2:], {(KEY, 1): LOST, (KEY, 2): COMPLETED}, ()) == 0
    assert check_marks(RETRIED[2:], {(KEY, 1): LOST, (KEY, 2): COMPLETED}, ()) == 0, "lost before it began"
    assert check_marks(LATE, {(KEY, 1): LOST, (KEY, 2): COMPLETED}, {200}) == 1


@pytest.mark.parametrize(
    ("marks", "fates", "complaint"),
    [
        ([*ONCE, mark(2, "begin", pid=200)], {(KEY, 1): COMPLETED}, "began twice"),
        ([*ONCE, mark(2, "end")], {(KEY, 1): COMPLETED}, "ended twice"),
        ([mark(0, "end")], {(KEY, 1): LOST}, "never began"),
        ([mark(0, "begin"), mark(1, "end", pid=200)], {(KEY, 1): COMPLETED}, "ended elsewhere"),
        ([*ONCE, mark(2, "begin", 2)], {(KEY, 1): COMPLETED}, "the history knows nothing of it"),
        ([], {(KEY, 1): COMPLETED}, "it never ran"),
        (ONCE[:1], {(KEY, 1): COMPLETED}, "never came to its end"),
        (ONCE, {(KEY, 1): FAILED}, "recorded as failed"),
        (LATE, {(KEY, 1): LOST, (KEY, 2): COMPLETED}, "never stopped"),
    ],
)
def test_what_must_not_happen_is_found(marks: list[Mark], fates: dict[tuple[str, int], str], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_marks(marks, fates, stopped=())
