"""Times for the reader, always UTC. Not `datetime`: a timer may be set beyond the year 9999."""

from __future__ import annotations

import time

US = 1_000_000


def to_the_second(at_us: int) -> str:
    """As `2026-06-15T08:23:11Z`."""
    return _format("%Y-%m-%dT%H:%M:%SZ", at_us)


def to_the_microsecond(at_us: int) -> str:
    """As `2026-06-15T08:23:11.000250Z`, which RFC 3339 reads."""
    return f"{_format('%Y-%m-%dT%H:%M:%S', at_us)}.{at_us % US:06}Z"


def on_the_clock(at_us: int, day_of_us: int) -> str:
    """As `08:23:11`; on another day than that of `day_of_us` with the date."""
    same_day = _format("%Y-%m-%d", at_us) == _format("%Y-%m-%d", day_of_us)
    return _format("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", at_us)


def rounded_us(duration_us: int) -> int:
    """What a reader wants to know of a duration: whole seconds from ten seconds on, else milliseconds."""
    unit = US if duration_us >= 10 * US else 1_000
    return max(0, duration_us) // unit * unit


def _format(pattern: str, at_us: int) -> str:
    try:
        return time.strftime(pattern, time.gmtime(at_us // US))
    except (OverflowError, OSError, ValueError):  # the platform's own limit: on Windows the year 3000
        return f"{at_us // US} s after 1970"
