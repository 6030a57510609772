"""The arithmetic of retries: when the next attempt comes, and when there is none."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.scripted import STARTED, Scripted, fold
from engine.situations import A1, NOW, OOPS, T
from outlast.engine.decide import Decision, take_turn
from outlast.engine.run import RunState
from outlast.model.events import (
    ActivityAttemptFailed,
    ActivityAttemptLost,
    ActivityFailed,
    ActivityScheduled,
    Event,
)
from outlast.model.failures import Failure, FailureKind
from outlast.model.inputs import ActivityDeadlinePassed, AttemptFailed, AttemptLost, Input
from outlast.model.policies import DEFAULT_RETRY, SECOND_US, RetryPolicy

ALMOST_ONE = 1.0 - 2.0**-53

policies = st.builds(
    RetryPolicy,
    initial_interval_us=st.integers(0, 10**12),
    backoff=st.floats(1.0, 1e300),
    max_interval_us=st.integers(0, 10**15),
    max_attempts=st.integers(0, 50),
    jitter=st.floats(0.0, 1.0),
)
jitters = st.floats(0.0, 1.0, exclude_max=True)


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [(1, 1), (2, 2), (3, 4), (4, 8), (7, 64), (8, 100), (9, 100), (200, 100), (201, 100), (10**6, 100)],
)
def test_the_default_policy_doubles_from_a_second_up_to_a_hundred(attempt: int, seconds: int) -> None:
    assert DEFAULT_RETRY.delay_us(attempt, 0.0) == seconds * SECOND_US


def test_jitter_takes_away_its_share_and_no_more() -> None:
    assert DEFAULT_RETRY.delay_us(1, 0.5) == 900_000
    assert DEFAULT_RETRY.delay_us(1, ALMOST_ONE) == 800_000
    assert RetryPolicy(jitter=0.0).delay_us(1, ALMOST_ONE) == 1_000_000
    assert RetryPolicy(jitter=1.0).delay_us(1, 0.25) == 750_000


def test_a_backoff_of_one_keeps_the_interval() -> None:
    policy = RetryPolicy(initial_interval_us=123, backoff=1.0, jitter=0.0)
    assert {policy.delay_us(attempt, 0.0) for attempt in (1, 2, 50, 10**9)} == {123}


@given(policies, st.integers(1, 10**30), jitters)
@example(RetryPolicy(backoff=100.0), 500, 0.0)
@example(RetryPolicy(initial_interval_us=0, backoff=1e300), 10**30, 0.0)
@example(RetryPolicy(max_interval_us=0), 1, ALMOST_ONE)
def test_a_delay_is_never_negative_and_never_above_the_cap(policy: RetryPolicy, attempt: int, jitter: float) -> None:
    delay_us = policy.delay_us(attempt, jitter)
    assert type(delay_us) is int
    assert 0 <= delay_us <= policy.max_interval_us
    if policy.initial_interval_us == 0:
        assert delay_us == 0


@given(policies, st.integers(1, 1_000))
def test_delays_never_shrink_from_attempt_to_attempt(policy: RetryPolicy, attempt: int) -> None:
    assert policy.delay_us(attempt, 0.0) <= policy.delay_us(attempt + 1, 0.0)


@given(policies, st.integers(1, 1_000), jitters)
def test_jitter_stays_within_its_bounds(policy: RetryPolicy, attempt: int, jitter: float) -> None:
    full_us = policy.delay_us(attempt, 0.0)
    # The full delay was cut to whole microseconds, and floats this large are a little coarse.
    least_us = full_us * (1.0 - policy.jitter) * (1.0 - 1e-12) - 1
    assert least_us <= policy.delay_us(attempt, jitter) <= full_us


@pytest.mark.parametrize(
    ("limit", "attempt", "another"),
    [(0, 1, True), (0, 10**30, True), (1, 1, False), (3, 2, True), (3, 3, False), (3, 4, False)],
)
def test_a_limit_counts_the_first_attempt(limit: int, attempt: int, another: bool) -> None:
    assert RetryPolicy(max_attempts=limit).allows_another(attempt) is another


# --- decisions ------------------------------------------------------------------------------------------------------


def _at_attempt(attempt: int, retry: RetryPolicy, schedule_to_close_us: int | None = None) -> RunState:
    """A run whose activity, scheduled at T, has come to this attempt."""
    scheduled = ActivityScheduled(A1, "charge", retry=retry, schedule_to_close_us=schedule_to_close_us)
    events: list[tuple[Event, int]] = [(STARTED, T), (scheduled, T)]
    events += [(ActivityAttemptLost(A1, number, T), T) for number in range(1, attempt)]
    return fold(events)


def _turn(state: RunState, item: Input, now_us: int = NOW) -> Decision:
    return take_turn(state, Scripted(), [item], now_us)


STEADY = RetryPolicy(initial_interval_us=100, backoff=10.0, max_interval_us=50_000, max_attempts=4, jitter=0.0)


@pytest.mark.parametrize(("attempt", "delay_us"), [(1, 100), (2, 1_000), (3, 10_000)])
def test_a_failed_attempt_is_followed_by_another_after_the_delay(attempt: int, delay_us: int) -> None:
    state = _at_attempt(attempt, STEADY)
    decision = _turn(state, AttemptFailed(A1, attempt, T, OOPS, 0.0))
    assert decision.events == [ActivityAttemptFailed(A1, attempt, T, OOPS, NOW + delay_us)]
    assert decision.dispatch == [A1]
    assert (state.activities[A1].attempt, state.activities[A1].not_before_us) == (attempt + 1, NOW + delay_us)


def test_the_last_allowed_attempt_fails_the_activity() -> None:
    decision = _turn(_at_attempt(4, STEADY), AttemptFailed(A1, 4, T, OOPS, 0.0))
    assert decision.events == [ActivityFailed(A1, OOPS, 4, T)]
    assert decision.dispatch == []


@pytest.mark.parametrize(("asked_us", "wait_us"), [(0, 0), (7, 7), (10**12, 10**12), (-5, 0)])
def test_a_failure_may_say_itself_when_to_try_again(asked_us: int, wait_us: int) -> None:
    failure = Failure("builtins:OSError", "slow down", retry_after_us=asked_us)
    decision = _turn(_at_attempt(1, STEADY), AttemptFailed(A1, 1, T, failure, 0.5))
    assert decision.events == [ActivityAttemptFailed(A1, 1, T, failure, NOW + wait_us)]


def test_retry_after_does_not_raise_the_number_of_attempts() -> None:
    failure = Failure("builtins:OSError", "slow down", retry_after_us=7)
    decision = _turn(_at_attempt(4, STEADY), AttemptFailed(A1, 4, T, failure, 0.5))
    assert decision.events == [ActivityFailed(A1, failure, 4, T)]


def test_retry_after_past_the_deadline_fails_at_once() -> None:
    failure = Failure("builtins:OSError", "come back tomorrow", retry_after_us=86_400 * SECOND_US)
    decision = _turn(_at_attempt(1, STEADY, 10_000), AttemptFailed(A1, 1, T, failure, 0.5))
    assert decision.events == [ActivityFailed(A1, failure, 1, T)]


@pytest.mark.parametrize(
    ("failure", "policy"),
    [
        (Failure("shop:BadCard", "expired", non_retryable=True), STEADY),
        (Failure("shop:BadCard", "expired", non_retryable=True, retry_after_us=1), STEADY),
        (Failure("shop:BadCard", "expired"), RetryPolicy(non_retryable=("builtins:OSError", "shop:BadCard"))),
    ],
)
def test_some_failures_are_never_retried(failure: Failure, policy: RetryPolicy) -> None:
    decision = _turn(_at_attempt(1, policy), AttemptFailed(A1, 1, T, failure, 0.5))
    assert decision.events == [ActivityFailed(A1, failure, 1, T)]
    assert decision.dispatch == []


def test_an_attempt_that_times_out_is_retried_like_any_other() -> None:
    failure = Failure("ActivityTimeout", "not done within 5s", FailureKind.TIMEOUT)
    decision = _turn(_at_attempt(1, STEADY), AttemptFailed(A1, 1, T, failure, 0.0))
    assert decision.events == [ActivityAttemptFailed(A1, 1, T, failure, NOW + 100)]


@pytest.mark.parametrize(("timeout_us", "retried"), [(1_101, True), (1_100, False), (1_000, False)])
def test_no_attempt_is_announced_for_the_deadline_or_later(timeout_us: int, retried: bool) -> None:
    """At NOW, 1000 us after the schedule, the next attempt would come 100 us later."""
    decision = _turn(_at_attempt(1, STEADY, timeout_us), AttemptFailed(A1, 1, T, OOPS, 0.0))
    assert [type(each) for each in decision.events] == [ActivityAttemptFailed if retried else ActivityFailed]


@pytest.mark.parametrize(("attempt", "delay_us"), [(1, 0), (2, 100), (3, 1_000)])
def test_the_first_loss_is_followed_at_once_and_later_ones_after_a_delay(attempt: int, delay_us: int) -> None:
    state = _at_attempt(attempt, STEADY)
    decision = _turn(state, AttemptLost(A1, attempt, "killed", 0.0))
    assert decision.events == [ActivityAttemptLost(A1, attempt, NOW + delay_us, "killed")]
    assert decision.dispatch == [A1]
    assert state.activities[A1].attempt == attempt + 1


@pytest.mark.parametrize(("limit", "attempt"), [(1, 1), (4, 4)])
def test_an_activity_that_kills_its_process_meets_its_max_attempts(limit: int, attempt: int) -> None:
    state = _at_attempt(attempt, RetryPolicy(max_attempts=limit))
    decision = _turn(state, AttemptLost(A1, attempt, "killed", 0.0))
    failure = Failure("ActivityLost", f"attempt {attempt} was lost: killed", FailureKind.LOST)
    assert decision.events == [ActivityFailed(A1, failure, attempt)]
    assert decision.dispatch == []
    assert not state.activities


def test_a_deadline_that_passes_fails_the_activity_whatever_attempts_are_left() -> None:
    state = _at_attempt(2, RetryPolicy(), 10_000)
    decision = _turn(state, ActivityDeadlinePassed(A1), T + 10_000)
    message = "not done within its schedule-to-close timeout of 10000 us"
    failure = Failure("ActivityTimeout", message, FailureKind.TIMEOUT)
    assert decision.events == [ActivityFailed(A1, failure, 2)]
    assert decision.stop == [A1]
    assert not state.activities


def test_a_deadline_alarm_that_comes_early_is_set_again() -> None:
    state = _at_attempt(1, RetryPolicy(), 10_000)
    decision = _turn(state, ActivityDeadlinePassed(A1), T + 9_999)
    assert decision.events == []
    assert decision.alarms == [(T + 10_000, ActivityDeadlinePassed(A1))]


def test_attempts_without_limit_go_on_for_ever() -> None:
    state = _at_attempt(1, RetryPolicy(jitter=0.0))
    state.activities[A1].attempt = 10**9
    decision = _turn(state, AttemptFailed(A1, 10**9, T, OOPS, 0.0))
    assert decision.events == [ActivityAttemptFailed(A1, 10**9, T, OOPS, NOW + 100 * SECOND_US)]
