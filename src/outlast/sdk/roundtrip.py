"""Does a value come back? What a workflow is given must be the value that was passed, live and on replay alike.

Whoever writes a payload reads it back at once and hands both values to `first_loss`. It is called only when the
two are not equal by `==`, so it may be slow; what it finds is put into the error message. `locate` finds the place
of a value that could not be written at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import cast

MAX_DEPTH = 100
"""Nested lists and objects in one payload. Every reader of a history recurses once per level, and Python allows about
1,000 levels in all, whatever stack the reader stands on: what is accepted here must be readable everywhere."""

_MAX_SEARCH = 100_000
"""Values that `locate` looks at. It only words an error; beyond this the error does without a path."""

_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')


def too_deep(text: bytes) -> bool:
    """Whether valid JSON text nests more than MAX_DEPTH levels. Nearly free for short or flat text."""
    if len(text) <= 2 * MAX_DEPTH or text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", text).translate(_TO_SQUARE, _NOT_BRACKETS)
    # Each pass takes the innermost level away, at the speed of C: a loop over the bytes in Python is 50 times slower.
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def field_names(value: object) -> Sequence[str] | None:
    """Names of the fields that make up an object, or None if it is not of a kind that has fields."""
    cls = type(value)
    for attribute in ("__dataclass_fields__", "__struct_fields__", "model_fields"):
        if (fields := getattr(cls, attribute, None)) is not None:
            return [*fields]
    if (fields := getattr(cls, "__attrs_attrs__", None)) is not None:
        return [field.name for field in fields]
    return None


def first_loss(value: object, back: object, path: str, *, strict: bool) -> str | None:
    """What the first difference is between a value and what it comes back as, in words that name the path.

    Not strict: any sequence may come back as the sequence that the hint asks for. Strict, for values of whose types
    no hint tells: a tuple that comes back as a list is a difference.
    """
    match back:
        case dict():
            return _loss_in_dict(value, cast("dict[object, object]", back), path, strict)
        case list() | tuple():
            return _loss_in_sequence(value, cast("Sequence[object]", back), path, strict)
        case set() | frozenset():
            return _loss_in_set(value, cast("Set[object]", back), path, strict)
        case _:
            names = field_names(back)
            return _loss_in_scalar(value, back, path) if names is None else _in_fields(value, back, path, strict, names)


def _loss_in_dict(value: object, back: dict[object, object], path: str, strict: bool) -> str | None:
    if not isinstance(value, Mapping):
        return _changed(value, back, path)
    items = cast("Mapping[object, object]", value)
    for key in items:
        if key not in back:
            if not isinstance(key, str) and len(items) == len(back):
                return f"at {path}: the key {_shown(key)} ({type(key).__name__}) would come back as something else"
            return f"at {path}: the key {_shown(key)} would be lost"
    for key, item in back.items():
        if key not in items:
            return f"at {path}: the key {_shown(key)} would appear from nowhere"
        if (loss := first_loss(items[key], item, f"{path}[{_shown(key)}]", strict=strict)) is not None:
            return loss
    return None


def _loss_in_sequence(value: object, back: Sequence[object], path: str, strict: bool) -> str | None:
    named = type(back) not in (list, tuple)
    if not _is_such_a_sequence(value, back, strict or named):
        return _changed(value, back, path)
    items = cast("Sequence[object]", value)
    if len(items) != len(back):
        return f"at {path}: {len(items)} elements would come back as {len(back)}"
    names: Sequence[str] = getattr(back, "_fields", ()) if named else ()
    for index, item in enumerate(back):
        inner = f"{path}.{names[index]}" if names else f"{path}[{index}]"
        if (loss := first_loss(items[index], item, inner, strict=strict)) is not None:
            return loss
    return None


def _is_such_a_sequence(value: object, back: Sequence[object], exactly: bool) -> bool:
    if exactly:
        return isinstance(value, type(back))
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _loss_in_set(value: object, back: Set[object], path: str, strict: bool) -> str | None:
    wanted: type = type(back) if strict else Set
    if not isinstance(value, wanted):
        return _changed(value, back, path)
    return None if _equal(value, back) else f"at {path}: the elements of the set change"


def _in_fields(value: object, back: object, path: str, strict: bool, names: Sequence[str]) -> str | None:
    if type(value) is not type(back):
        return _changed(value, back, path)
    for name in names:
        if not hasattr(value, name) and not hasattr(back, name):
            continue
        inner = f"{path}.{name}"
        if not hasattr(value, name) or not hasattr(back, name):
            return f"at {inner}: the field is set only before, or only after, it is written and read"
        if (loss := first_loss(getattr(value, name), getattr(back, name), inner, strict=strict)) is not None:
            return loss
    return None


def _loss_in_scalar(value: object, back: object, path: str) -> str | None:
    if _equal(value, back):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"at {path}: {value} cannot be written as JSON"
    if isinstance(value, (datetime, time)) and type(value) is type(back) and str(value) != str(back):
        return f"at {path}: {value} would come back as {back} (JSON keeps time zones as whole minutes)"
    if type(value) is type(back) and type(value).__eq__ is object.__eq__:
        return None  # an opaque object that cannot be compared: its own type has read it back, and must know
    return _changed(value, back, path)


def _changed(value: object, back: object, path: str) -> str:
    before, after = type(value).__qualname__, type(back).__qualname__
    if before == after:
        return f"at {path}: the value (a {before}) would come back as another one"
    return f"at {path}: {before} would come back as {after}"


def _equal(value: object, back: object) -> bool:
    try:
        if value == back:
            return True
        if isinstance(value, Decimal) and type(value) is type(back):
            return str(value) == str(back)  # its NaN can be written, and is equal to nothing
        # Times that a zone has twice, or never, are unequal to everything in other zones (PEP 495).
        if isinstance(value, datetime) and isinstance(back, datetime) and value.tzinfo and back.tzinfo:
            return value.astimezone(UTC) == back.astimezone(UTC)
    except Exception:  # a user's own __eq__
        return False
    return False


def _shown(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 40 else text[:40] + "..."


# --- where is it? -------------------------------------------------------------------------------------------------


def locate(value: object, test: Callable[[object], bool], path: str) -> str | None:
    """The path of the first value inside `value` (or itself) that passes the test, or None."""
    seen: set[int] = set()
    waiting = [(value, path, 0)]
    while waiting and len(seen) < _MAX_SEARCH:
        item, where, depth = waiting.pop()
        if test(item):
            return where
        if depth <= MAX_DEPTH and id(item) not in seen:
            seen.add(id(item))
            waiting.extend([(inner, where + step, depth + 1) for inner, step in _inside(item)][::-1])
    return None


def _inside(value: object) -> Iterator[tuple[object, str]]:
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield key, f" (key {_shown(key)})"
            yield item, f"[{_shown(key)}]"
    elif isinstance(value, (list, tuple, Set)):
        for index, item in enumerate(cast("Sequence[object]", value)):
            yield item, f"[{index}]"
    else:
        for name in field_names(value) or ():
            if hasattr(value, name):
                yield getattr(value, name), f".{name}"


def is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def has_surrogate(value: object) -> bool:
    # Half of a pair: what `os.fsdecode` and careless JSON readers make. UTF-8, and so JSON and databases, has none.
    return isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)
