from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.model.durations import MAX_DURATION_US, format_duration, to_microseconds
from outlast.model.errors import InvalidArgument

SECOND, MINUTE, HOUR, DAY, WEEK = 10**6, 60 * 10**6, 3600 * 10**6, 86400 * 10**6, 7 * 86400 * 10**6


@pytest.mark.parametrize(
    ("written", "us"),
    [
        (0, 0),
        (1, SECOND),
        (1.5, 1_500_000),
        (0.3, 300_000),
        (1e-6, 1),
        (timedelta(days=1, microseconds=3), DAY + 3),
        ("0s", 0),
        ("2 hours", 2 * HOUR),
        ("1h30m", 90 * MINUTE),
        ("90s", 90 * SECOND),
        ("500ms", 500_000),
        ("250 us", 250),
        ("250 \u00b5s", 250),
        ("250 \u03bcs", 250),
        ("1 hour 30 minutes", 90 * MINUTE),
        ("1 hour, 30 minutes and 5 seconds", 90 * MINUTE + 5 * SECOND),
        ("1.5 days", 36 * HOUR),
        ("2 weeks", 2 * WEEK),
        ("1h 0.5m", HOUR + 30 * SECOND),
        ("  3 Days\n", 3 * DAY),
        ("10MIN", 10 * MINUTE),
        ("0.1s", 100_000),
        ("PT2H30M", 150 * MINUTE),
        ("P1DT12H", 36 * HOUR),
        ("P2W", 2 * WEEK),
        ("pt1,5s", 1_500_000),
        ("PT0.000001S", 1),
        ("3652425 days", MAX_DURATION_US),
    ],
)
def test_every_usual_way_to_write_a_duration_is_read(written: Any, us: int) -> None:
    assert to_microseconds(written) == us


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (True, "bool"),
        (None, "NoneType"),
        (b"5s", "bytes"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (-1, "negative"),
        (-1e-9, "negative"),
        (timedelta(microseconds=-1), "negative"),
        ("-5s", "negative"),
        (10**30, "10,000 years"),
        (1e308, "10,000 years"),
        (timedelta.max, "10,000 years"),
        ("3652425 days 1us", "10,000 years"),
        ("", "empty"),
        ("  ", "empty"),
        ("5", "no unit"),
        ("5.5", "no unit"),
        ("soon", "cannot read"),
        ("s", "cannot read"),
        ("5 parsecs", "not a unit"),
        ("1e3s", "not a unit"),
        ("1h,", "cannot read"),
        ("1h and", "cannot read"),
        ("1h,,2m", "cannot read"),
        ("1h-5m", "cannot read"),
        ("\uff11h", "cannot read"),
        ("1h 1h", "large to small"),
        ("1m 1h", "large to small"),
        ("PT1M1H", "large to small"),
        ("1.5h 2m", "decimals"),
        ("PT1.5H2M", "decimals"),
        ("1 month", "no fixed length"),
        ("2y", "no fixed length"),
        ("P1Y", "no fixed length"),
        ("P1M", "no fixed length"),
        ("P", "no parts"),
        ("PT", "ISO 8601"),
        ("PT5D", "at this place"),
        ("P5H", "at this place"),
        ("PT5", "cannot read"),
        ("9" * 200 + "s", "too long"),
    ],
)
def test_what_is_not_clearly_a_duration_is_refused_with_the_reason_and_examples(written: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a duration") as caught:
        to_microseconds(written)
    text = str(caught.value)
    assert reason in text
    assert '"1h30m"' in text
    assert len(text) < 600
    if isinstance(written, str) and len(written) < 50:
        assert repr(written) in text


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0s"),
        (7, "7us"),
        (1_500, "1.5ms"),
        (250_000, "250ms"),
        (5 * SECOND, "5s"),
        (1_234_567, "1.234567s"),
        (61_500_000, "1m1.5s"),
        (2 * HOUR, "2h"),
        (90 * MINUTE, "1h30m"),
        (2 * WEEK + 1, "14d0.000001s"),
        (-5 * SECOND, "-5s"),
    ],
)
def test_durations_are_shown_as_people_write_them(us: int, text: str) -> None:
    assert format_duration(us) == text


@given(st.integers(0, MAX_DURATION_US) | st.integers(0, 10**9))
def test_what_is_shown_is_read_back_exactly(us: int) -> None:
    assert to_microseconds(format_duration(us)) == us


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(microseconds=MAX_DURATION_US)))
def test_a_timedelta_loses_nothing(value: timedelta) -> None:
    assert timedelta(microseconds=to_microseconds(value)) == value


@given(st.text(max_size=40) | st.from_regex(r"[0-9.]{1,4} ?[a-zA-Z]{1,7},? ?[0-9]*[a-z]?", fullmatch=True))
def test_any_text_gives_a_duration_or_the_one_error(text: str) -> None:
    try:
        us = to_microseconds(text)
    except InvalidArgument:
        return
    assert 0 <= us <= MAX_DURATION_US
