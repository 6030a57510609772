"""Options are checked where they are said, and an error names the option."""

from datetime import timedelta
from typing import Any

import pytest

from outlast.model.errors import InvalidArgument
from outlast.model.policies import DEFAULT_RETRY, RetryPolicy
from outlast.sdk.decorators import activity, workflow
from outlast.sdk.options import DEFAULT_CALL_OPTIONS, CallOptions, Retry, check_start_options


class OwnError(Exception):
    class Inner(Exception): ...


def test_retry_says_the_published_default_unless_told_otherwise() -> None:
    assert Retry().to_policy() == DEFAULT_RETRY
    assert Retry.never().to_policy() == RetryPolicy(max_attempts=1)


def test_retry_stands_in_the_history_in_microseconds_and_names() -> None:
    retry = Retry(
        initial_interval=timedelta(milliseconds=10),
        backoff=1,
        max_interval="20s",
        max_attempts=7,
        jitter=0,
        non_retryable=[ValueError, OwnError, OwnError.Inner, "billing.errors:CardDeclined"],
    )
    assert retry.to_policy() == RetryPolicy(
        initial_interval_us=10_000,
        backoff=1.0,
        max_interval_us=20_000_000,
        max_attempts=7,
        jitter=0.0,
        non_retryable=(
            "ValueError",
            f"{__name__}:OwnError",
            f"{__name__}:OwnError.Inner",
            "billing.errors:CardDeclined",
        ),
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"initial_interval": -1}, "^initial_interval: "),
        ({"max_interval": "soon"}, "^max_interval: "),
        ({"initial_interval": 200}, r"^max_interval \(100\) is shorter than initial_interval \(200\)"),
        ({"backoff": 0.5}, "^backoff must be a number of 1 or more, not 0.5"),
        ({"backoff": float("nan")}, "^backoff"),
        ({"backoff": float("inf")}, "^backoff"),
        ({"backoff": "2"}, "^backoff"),
        ({"max_attempts": -1}, "^max_attempts"),
        ({"max_attempts": True}, "^max_attempts"),
        ({"max_attempts": 2.0}, "^max_attempts"),
        ({"jitter": 1.5}, "^jitter is a share"),
        ({"jitter": True}, "^jitter"),
        ({"non_retryable": ValueError}, "^non_retryable must be a list.* Put it in brackets"),
        ({"non_retryable": "ValueError"}, "^non_retryable must be a list.* Put it in brackets"),
        ({"non_retryable": [int]}, "^non_retryable holds <class 'int'>"),
        ({"non_retryable": [""]}, "^non_retryable holds ''"),
        ({"non_retryable": ["Value Error"]}, "^non_retryable holds 'Value Error'"),
    ],
)
def test_a_retry_that_makes_no_sense_is_refused_by_the_name_of_the_field(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Retry(**options)


@activity
def target(n: int) -> int:
    return n


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"timeuot": 1}, "unknown option 'timeuot'; known are timeout, schedule_to_close, retry, queue, label"),
        ({"name": "x"}, ".*`name` belongs to the decorator; a call may have a `label`"),
        ({"timeout": "soon"}, "timeout: "),
        ({"timeout": 0}, "timeout must be longer than nothing, not 0; None means no limit"),
        ({"schedule_to_close": -1}, "schedule_to_close: "),
        ({"retry": 5}, r"retry must be a Retry, such as Retry\(max_attempts=5\) or Retry.never\(\), not 5"),
        ({"retry": None}, "retry must be a Retry"),
        ({"queue": ""}, "queue must be a string"),
        ({"queue": 5}, "queue must be a string .* not 5"),
        ({"label": "x" * 501}, "label must be a string of 1 to 500 characters"),
    ],
)
def test_options_at_a_call_are_checked_by_name(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^target\.options\(\): " + reason):
        target.options(**options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"label": "x"}, "unknown option 'label'; known are .*name, aliases. A `label` belongs to a call"),
        ({"timeout": "soon"}, "timeout: "),
        ({"name": ""}, "name must be a string"),
        ({"name": " "}, "name must be a string"),
        ({"name": None}, "name must be a string"),
        ({"aliases": "old"}, "aliases must be a list of names, not 'old'"),
        ({"aliases": [1]}, "aliases must be a string .* not 1"),
    ],
)
def test_options_at_a_decorator_are_checked_by_name(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match="^@activity: " + reason):
        activity(**options)


def test_a_workflow_has_no_timeouts_to_be_decorated_with() -> None:
    options: Any = {"timeout": 5}
    with pytest.raises(InvalidArgument, match=r"^@workflow: unknown option 'timeout'; known are queue, name, aliases"):
        workflow(**options)


def test_options_at_a_call_go_over_those_of_the_decorator() -> None:
    @activity(name="merged", timeout=5, schedule_to_close="60s", queue="a", retry=Retry(max_attempts=2))
    def merged() -> None: ...

    at_call = merged.options(timeout=None, queue="b").options(label="x").default_options
    assert at_call == CallOptions(
        queue="b", label="x", retry=RetryPolicy(max_attempts=2), schedule_to_close_us=60_000_000
    )
    assert merged.default_options.start_to_close_us == 5_000_000


def test_the_options_of_a_plain_activity_are_not_made_anew() -> None:
    assert target.default_options is DEFAULT_CALL_OPTIONS
    assert target.options().default_options is DEFAULT_CALL_OPTIONS


def test_start_options_are_checked_by_name() -> None:
    assert check_start_options({"id": "a", "queue": "q", "priority": 3}) == {"id": "a", "queue": "q", "priority": 3}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"level": 1}, r"unknown option 'level'; known are id, queue, priority.*client\.options\(\.\.\.\)\.start"),
        ({"id": ""}, "id must be a string"),
        ({"id": 5}, "id must be a string"),
        ({"queue": None}, "queue must be a string"),
        ({"priority": "high"}, "priority must be a whole number"),
        ({"priority": True}, "priority must be a whole number"),
        ({"priority": 2**63}, "priority must be between -1000000000 and 1000000000, not 9223372036854775808"),
    ]
    for options, reason in wrong:
        with pytest.raises(InvalidArgument, match="^the start of a workflow: " + reason):
            check_start_options(options)
