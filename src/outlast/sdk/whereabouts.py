"""Where user code is: the innermost frame that is neither Python's own, nor an installed package's, nor ours.

Files are told apart by their path, once each. A workflow that is itself installed as a package lies in site-packages;
`count_as_user_code` names its file when a worker is given it.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_OURS = str(Path(__file__).parent.parent)
_INSTALLED = ("site-packages", "dist-packages")
_STDLIB = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(sysconfig.__file__).parent)})

MAX_PLACES = 10
"""A run can wait in thousands of places; a message that lists more than these helps nobody."""
MAX_DEPTH = 1_000
"""Python's own limit for nested calls. Await chains can be longer, but not in code that a person reads."""

_is_user: dict[str, bool] = {}


def count_as_user_code(path: str) -> None:
    """The file is user code wherever it lies."""
    _is_user[path] = True


def is_user_file(path: str) -> bool:
    known = _is_user.get(path)
    if known is None:
        known = _is_user[path] = _judge(path)
    return known


def _judge(path: str) -> bool:
    if path.startswith(("<frozen ", "<__array_function__")):
        return False
    return not _below(path, _OURS) and not _below(path, *_STDLIB) and not set(_INSTALLED) & set(Path(path).parts)


def _below(path: str, *folders: str) -> bool:
    return any(path.startswith(folder) and path[len(folder) : len(folder) + 1] in ("/", "\\") for folder in folders)


def user_frame() -> str | None:
    """`path:line` of the innermost user code on the present stack, or None if there is none."""
    frame = innermost_user_frame(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def innermost_user_frame(frame: FrameType | None) -> FrameType | None:
    known = _is_user
    while frame is not None:
        path = frame.f_code.co_filename
        if known.get(path) or (path not in known and is_user_file(path)):
            return frame
        frame = frame.f_back
    return None


def place(code: CodeType, line: int | None) -> str:
    return f"{Path(code.co_filename).name}:{line} in {code.co_name}"


def place_of_frame(frame: FrameType | None) -> str | None:
    found = innermost_user_frame(frame)
    return None if found is None else place(found.f_code, found.f_lineno)


def place_of_coroutine(coroutine: Any) -> str | None:
    """Where a suspended coroutine waits: the innermost user code in its chain of awaits."""
    found = None
    for frame in _await_chain(coroutine):
        if is_user_file(frame.f_code.co_filename):
            found = place(frame.f_code, frame.f_lineno)
    return found


def _await_chain(awaited: Any) -> Iterator[FrameType]:
    for _ in range(MAX_DEPTH):
        for kind in ("cr", "gi", "ag"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                awaited = getattr(awaited, f"{kind}_yieldfrom" if kind == "gi" else f"{kind}_await", None)
                break
        else:
            return


def listed(places: Iterable[str | None]) -> str:
    """The places for a message: each once, in order, and not too many."""
    known = list(dict.fromkeys(place for place in places if place is not None))
    shown = ", ".join(known[:MAX_PLACES])
    return shown if len(known) <= MAX_PLACES else f"{shown} and {len(known) - MAX_PLACES} more"
