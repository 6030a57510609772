"""Durations: how users write them, and integer microseconds, which is what everything inside uses.

Two written forms are read: words with units ("2 hours", "1h30m", "1 hour, 30 minutes", "1.5 days") and ISO 8601
("PT2H30M", "P1DT12H", "P2W"). In both, units go from large to small, each at most once, and only the last part may have
decimals: then a slip of the hand ("1m 5h") is an error and not another duration. The arithmetic is exact: no floats.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from fractions import Fraction
from typing import Final, TypeAlias

from outlast.model.errors import InvalidArgument

Duration: TypeAlias = float | int | timedelta | str
"""A number of seconds, a timedelta, or text such as "2 hours", "1h30m", "500ms", "PT2H30M"."""

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US
WEEK_US: Final = 7 * DAY_US

MAX_DURATION_US: Final = 3_652_425 * DAY_US
"""10,000 years. Added to any time of this era it fits a 64-bit integer; beyond it somebody has mixed up units."""

_MAX_LENGTH = 100
"""Characters of text. The longest sensible duration has some 60; a number of megabytes must not be parsed."""

_WORDS: dict[str, int] = {
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), WEEK_US),
    **dict.fromkeys(("d", "day", "days"), DAY_US),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), HOUR_US),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), MINUTE_US),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), SECOND_US),
    **dict.fromkeys(("ms", "msec", "msecs", "millisecond", "milliseconds"), 1_000),
    # Both characters that are called "micro": U+00B5 and, after casefold(), U+03BC.
    **dict.fromkeys(("us", "\u00b5s", "\u03bcs", "usec", "usecs", "microsecond", "microseconds"), 1),
}
_CALENDAR_WORDS = frozenset(("mo", "mon", "mos", "month", "months", "y", "yr", "yrs", "year", "years"))
_ISO_DATE: dict[str, int] = {"w": WEEK_US, "d": DAY_US}
_ISO_TIME: dict[str, int] = {"h": HOUR_US, "m": MINUTE_US, "s": SECOND_US}

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z\u00b5\u03bc]+)")
_GAP = re.compile(r"\s*(?:,|\band\b)?\s*")
_ISO = re.compile(r"p(?P<date>[^t]*)(?:t(?P<time>.+))?")
_ISO_PART = re.compile(r"([0-9]+(?:[.,][0-9]+)?)([a-z])")

_EXAMPLES = (
    'Write a number of seconds, a timedelta, or text such as "2 hours", "1h30m", "500ms", "1.5 days", "PT2H30M".'
)
_CALENDAR = "months and years have no fixed length. Give days or weeks, or work out the end date and wait until then."


def to_microseconds(value: Duration) -> int:
    """The duration in microseconds, rounded to the nearest one. Never negative.

    Raises InvalidArgument, with the value and examples, for anything that is not clearly a duration.
    """
    given: object = value  # not all callers are type-checked
    match given:
        case bool():  # an int to Python; True seconds are never meant
            raise _refusal(given, "a bool is not a length of time.")
        case int():
            return _in_range(given, given * SECOND_US)
        case float():
            if not math.isfinite(given):
                raise _refusal(given, "it is not a finite number.")
            if given < 0:
                raise _refusal(given, "it is negative.")
            # Far out of range the product would be infinite, and cannot be rounded.
            return _in_range(given, round(given * SECOND_US) if given < 1e15 else int(given) * SECOND_US)
        case timedelta():
            return _in_range(given, given // timedelta(microseconds=1))
        case str():
            return _in_range(given, _parse(given))
        case _:
            raise _refusal(given, f"a {type(given).__name__} is not a length of time.")


def format_duration(us: int) -> str:
    """For people, and exact: "2h", "1h30m", "1m1.5s", "250ms", "1.5ms". `to_microseconds` reads it back."""
    if us < 0:
        return "-" + format_duration(-us)
    if us == 0:
        return "0s"
    if us < SECOND_US:
        return f"{us}us" if us < 1_000 else _decimal(us, 1_000) + "ms"
    text = ""
    for unit, name in ((DAY_US, "d"), (HOUR_US, "h"), (MINUTE_US, "m")):
        count, us = divmod(us, unit)
        if count:
            text += f"{count}{name}"
    return text + _decimal(us, SECOND_US) + "s" if us else text


def _decimal(us: int, unit_us: int) -> str:
    whole, rest = divmod(us, unit_us)
    if rest == 0:
        return str(whole)
    places = len(str(unit_us)) - 1
    return f"{whole}.{rest:0{places}d}".rstrip("0")


def _refusal(value: object, reason: str) -> InvalidArgument:
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "an integer of more than 20 digits"
    if len(shown) > _MAX_LENGTH:
        shown = shown[:_MAX_LENGTH] + "..."
    return InvalidArgument(f"{shown} is not a duration: {reason} {_EXAMPLES}")


def _in_range(value: object, us: int) -> int:
    if us < 0:
        raise _refusal(value, "it is negative.")
    if us > MAX_DURATION_US:
        raise _refusal(value, "it is longer than 10,000 years.")
    return us


def _parse(text: str) -> int:
    if len(text) > _MAX_LENGTH:
        raise _refusal(text, "the text is too long.")
    folded = text.strip().casefold()
    if not folded:
        raise _refusal(text, "it is empty.")
    if folded.startswith("-"):
        raise _refusal(text, "it is negative.")
    parts = _iso_parts(text, folded) if folded.startswith("p") else _word_parts(text, folded)
    return _sum(text, parts)


def _word_parts(text: str, folded: str) -> list[tuple[str, int]]:
    parts: list[tuple[str, int]] = []
    end = 0
    while end < len(folded):
        begin = end
        if parts and (gap := _GAP.match(folded, end)):
            begin = gap.end()
        part = _PART.match(folded, begin)
        if part is None:
            bare = re.fullmatch(r"[0-9.]+", folded)
            raise _refusal(text, "it has no unit." if bare else f"cannot read {folded[end:].strip()!r} in it.")
        number, word = part.groups()
        if word in _CALENDAR_WORDS:
            raise _refusal(text, _CALENDAR)
        if word not in _WORDS:
            raise _refusal(text, f"{word!r} is not a unit of time.")
        parts.append((number, _WORDS[word]))
        end = part.end()
    return parts


def _iso_parts(text: str, folded: str) -> list[tuple[str, int]]:
    found = _ISO.fullmatch(folded)
    if found is None:
        raise _refusal(text, "it begins like an ISO 8601 duration and is none.")
    parts: list[tuple[str, int]] = []
    for section, units in ((found["date"], _ISO_DATE), (found["time"] or "", _ISO_TIME)):
        end = 0
        while end < len(section):
            part = _ISO_PART.match(section, end)
            if part is None:
                raise _refusal(text, f"cannot read {section[end:]!r} in it.")
            number, letter = part.groups()
            if units is _ISO_DATE and letter in "ym":
                raise _refusal(text, _CALENDAR + " (Minutes stand behind a T: PT5M.)")
            if letter not in units:
                raise _refusal(text, f"{letter.upper()!r} is not a unit at this place.")
            parts.append((number.replace(",", "."), units[letter]))
            end = part.end()
    if not parts:
        raise _refusal(text, "it has no parts.")
    return parts


def _sum(text: str, parts: list[tuple[str, int]]) -> int:
    total = Fraction(0)
    previous_us: int | None = None
    for index, (number, unit_us) in enumerate(parts):
        if previous_us is not None and unit_us >= previous_us:
            raise _refusal(text, "units must go from large to small, each at most once.")
        if "." in number and index < len(parts) - 1:
            raise _refusal(text, "only the last part may have decimals.")
        total += Fraction(number) * unit_us
        previous_us = unit_us
    return round(total)
