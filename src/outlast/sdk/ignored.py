"""Keys of JSON objects that nobody reads.

Whoever gives arguments as JSON (the command line) may slip in the name of an optional field. Readers pass over names
that they do not know, for the sake of histories that older code wrote; what was given there would be lost, silently.

What is ignored cannot be told from the types alone (aliases, validators of the user's own). So it is tried. A key that
is not written again may be unknown, an alias, or a default that is left out when it is written. Put something else
there and read again: where it counts, the reader fails or the result is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, TypeAlias, cast

from msgspec import json

MAX_TRIES: Final = 100
"""Each reads the whole value again. Slips of the hand are among the first; data by the thousand is not typed."""

_SOMETHING_ELSE: Final = {"\0": ["\0"]}
"""Fits no field that anybody declares; where anything fits, the result differs."""


_Place: TypeAlias = tuple[dict[str, object], str, str]
"""An object, one of its keys, and the path of what stands there."""


def ignored_key(given: object, text: bytes, rewrite: Callable[[bytes], bytes], path: str) -> str | None:
    """The path of the first key in `given` that has no influence on `text`.

    `rewrite` reads JSON and writes it again; `text` is what it made of `given`.
    """
    copy = json.decode(json.encode(given))
    for holder, key, where in islice(_not_written(copy, json.decode(text), path), MAX_TRIES):
        before, holder[key] = holder[key], _SOMETHING_ELSE
        try:
            if rewrite(json.encode(copy)) == text:
                return where
        except Exception:  # whatever the reader raises: it has looked
            continue
        finally:
            holder[key] = before
    return None


def _not_written(given: object, written: object, path: str) -> Iterator[_Place]:
    match given, written:
        case dict(), dict():
            holder, again = cast("dict[str, object]", given), cast("dict[str, object]", written)
            for key, value in holder.items():
                where = f"{path}.{key}"
                if key in again:
                    yield from _not_written(value, again[key], where)
                else:
                    yield holder, key, where
        case list(), list():
            pairs = zip(cast("list[object]", given), cast("list[object]", written), strict=False)
            for index, (item, item_again) in enumerate(pairs):
                yield from _not_written(item, item_again, f"{path}[{index}]")
        case _:
            return
