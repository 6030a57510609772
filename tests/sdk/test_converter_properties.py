"""Whatever is accepted comes back equal; whatever is not gets the one error. For types and values drawn at random."""

from __future__ import annotations

import contextlib
import math
from dataclasses import make_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from outlast.model.errors import PayloadError
from outlast.model.payloads import Payload
from outlast.sdk.converter import Converter
from outlast.sdk.roundtrip import MAX_DEPTH, too_deep

CONVERTER = Converter()

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SCALARS: dict[Any, SearchStrategy[Any]] = {
    str: text,
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=8),
    UUID: st.uuids(),
    date: st.dates(),
    datetime: st.datetimes(),
    timedelta: st.timedeltas(),
    Decimal: st.decimals(allow_nan=False),
}
KEYS = (str, int, UUID, date)


@st.composite
def typed_values(draw: Any, depth: int = 3) -> tuple[Any, SearchStrategy[Any]]:
    """A type, and the strategy for values that fit it."""
    form = draw(st.sampled_from(["scalar"] * 3 + ["list", "tuple", "dict", "optional", "dataclass", "struct", "set"]))
    if depth == 0 or form == "scalar":
        hint = draw(st.sampled_from(list(SCALARS)))
        return hint, SCALARS[hint]
    if form == "set":
        hint = draw(st.sampled_from(KEYS))
        return set[hint], st.sets(SCALARS[hint], max_size=3)
    inner, values = draw(typed_values(depth=depth - 1))
    match form:
        case "list":
            return list[inner], st.lists(values, max_size=3)
        case "tuple":
            return tuple[inner, int], st.tuples(values, st.integers())
        case "dict":
            key = draw(st.sampled_from(KEYS))
            return dict[key, inner], st.dictionaries(SCALARS[key], values, max_size=3)
        case "optional":
            return inner | None, values | st.none()
        case "dataclass":
            made = make_dataclass("Made", [("a", inner), ("b", int | None, None)], slots=draw(st.booleans()))
            return made, st.builds(made, values, st.none() | st.integers())
        case _:
            struct = msgspec.defstruct("Struct", [("a", inner), ("b", str, "")], omit_defaults=True)
            return struct, st.builds(struct, values, text)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(st.data())
def test_every_value_of_every_supported_type_comes_back_equal(data: st.DataObject) -> None:
    hint, values = data.draw(typed_values())
    plan = CONVERTER.plan(hint, "value")
    value = data.draw(values)
    payload = plan.encode(value)
    stored = msgspec.json.decode(msgspec.json.encode(payload), type=Payload)
    back = plan.decode(stored)
    assert back == value
    assert type(back) is type(value)
    assert plan.decode(plan.encode(back)) == value


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_plain_json_needs_no_hint(value: Any) -> None:
    plan = CONVERTER.plan(Any, "value")
    assert plan.decode(plan.encode(value)) == value


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=4)
    | st.binary(max_size=3)
    | st.dates()
    | st.decimals()
    | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(text | st.integers() | st.none(), inner, max_size=3)
        | st.frozensets(st.integers() | text, max_size=2)
    ),
    max_leaves=6,
)


def has_nan(value: Any) -> bool:
    match value:
        case float():
            return math.isnan(value)
        case dict():
            return any(has_nan(each) for each in value.values())
        case list() | tuple():
            return any(has_nan(each) for each in value)
        case _:
            return False


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(anything, st.sampled_from([Any, int, float | None, list[int], dict[str, Any], tuple[Any, ...], set[str]]))
def test_anything_at_all_comes_back_equal_or_is_refused(value: Any, hint: Any) -> None:
    plan = CONVERTER.plan(hint, "value")
    try:
        payload = plan.encode(value)
    except PayloadError:
        return
    assert not has_nan(value)
    back = plan.decode(payload)
    # The one thing that a hint may change: which kind of sequence or set it is.
    assert back == value or (list(back) == list(value) if hint == list[int] else set(back) == set(value))


@given(st.binary(max_size=30), st.sampled_from([Any, int, list[int], dict[str, Any]]))
def test_any_recorded_bytes_are_read_or_refused(data: bytes, hint: Any) -> None:
    with contextlib.suppress(PayloadError):
        CONVERTER.plan(hint, "value").decode(Payload.from_json(data))


brackets = st.recursive(
    st.just("") | st.sampled_from(['"["', '"\\"{"', "1"]),
    lambda inner: st.lists(inner.filter(bool), max_size=3).map(lambda parts: f"[{','.join(parts)}]"),
    max_leaves=20,
)


@given(brackets, st.integers(MAX_DEPTH - 8, MAX_DEPTH + 1))
def test_the_depth_of_a_text_is_measured_exactly(inner: str, wrapped: int) -> None:
    nested = "[" * wrapped + inner + "]" * wrapped
    deepest = level = 0
    quoted = escaped = False
    for char in nested:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted and char in "[]":
            level += 1 if char == "[" else -1
            deepest = max(deepest, level)
    assert too_deep(nested.encode()) is (deepest > MAX_DEPTH)
