"""Retry policy of an activity, as it stands in the history."""

from __future__ import annotations

from msgspec import Struct

SECOND_US = 1_000_000


class RetryPolicy(Struct, frozen=True, omit_defaults=True, gc=False):
    """When a failed attempt is followed by another. Defaults are the published ones: a history that leaves a
    field out means these, so they never change.
    """

    initial_interval_us: int = 1 * SECOND_US
    backoff: float = 2.0
    max_interval_us: int = 100 * SECOND_US
    max_attempts: int = 0
    """0 means without limit."""
    jitter: float = 0.2
    """Share of the delay that is random: 0.2 takes away up to a fifth of it."""
    non_retryable: tuple[str, ...] = ()
    """Type paths of failures after which no further attempt is made (see `Failure.type`)."""

    def delay_us(self, attempt: int, jitter: float) -> int:
        """How long to wait after `attempt` (counted from 1) failed. `jitter` is drawn from [0, 1) by the caller."""
        assert attempt >= 1
        assert 0.0 <= jitter < 1.0
        try:
            delay = min(self.initial_interval_us * self.backoff ** (attempt - 1), float(self.max_interval_us))
        except OverflowError:  # beyond what a float holds, so beyond any cap; unless it is that many times nothing
            delay = float(self.max_interval_us) if self.initial_interval_us else 0.0
        return int(delay * (1.0 - self.jitter * jitter))

    def allows_another(self, attempt: int) -> bool:
        return self.max_attempts == 0 or attempt < self.max_attempts


DEFAULT_RETRY = RetryPolicy()
