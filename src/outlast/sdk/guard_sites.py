"""Whose code is it, and who is to blame.

Only call sites in the user's code count. The user's code is every file outside the standard library, site-packages
and Outlast, and also the package that a registered workflow comes from, wherever that is installed.

A forbidden function may be reached through a library. Some libraries only pass the call on (`random.randint` to
`os.urandom`, a dataclass to its `default_factory`): they are transparent, and the user's code above them is to
blame. Others call on their own account (`logging` asks for the time), and nobody is. The network, processes and
threads are different: whoever opens a connection in the middle of a turn does it because the user's code asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from enum import Enum
from itertools import islice
from types import CodeType, FrameType

from outlast.sdk.guard_rules import Rule


class Origin(Enum):
    USER = "user"
    LIBRARY = "library"
    OURS = "ours"
    GENERATED = "generated"
    """Made by `exec`, and nobody says for whom; seen through."""


_TRANSPARENT = """
random uuid secrets os posixpath ntpath genericpath pathlib io codecs shutil tempfile glob subprocess socket threading
concurrent multiprocessing urllib dataclasses functools contextlib collections types attr attrs pydantic pydantic_core
"""
"""Top-level packages that pass calls on."""
_EXEMPT = """
logging importlib _frozen_importlib _frozen_importlib_external pdb bdb code warnings traceback linecache debugpy pydevd
_pydevd_bundle _pydev_bundle pydevd_plugins
"""
"""What happens beneath these does not enter into what the workflow does: logs, imports, the debugger's prompt."""
_TRANSPARENT_PACKAGES = frozenset(_TRANSPARENT.split())
_EXEMPT_PACKAGES = frozenset(_EXEMPT.split())

_LIBRARY_PARTS = frozenset({"site-packages", "dist-packages", "__pypackages__"})
_STDLIB = os.path.normcase(os.path.dirname(os.__file__)) + os.sep
_OURS = os.path.normcase(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_CALL_TEXT_LIMIT = 80
"""A line of a terminal."""

_claimed: list[str] = []
origins: dict[str, Origin] = {}
"""By `co_filename`; filled as files are met."""


def claim(module_name: str) -> None:
    """The package of a workflow is the user's code, even where it is installed in site-packages."""
    parts = module_name.split(".")
    for end in range(1, len(parts) + 1):
        module = sys.modules.get(".".join(parts[:end]))
        file = getattr(module, "__file__", None)
        if file is None:
            continue  # a namespace package, which may be shared with others
        path = os.path.normcase(os.path.abspath(file))
        prefix = os.path.dirname(path) + os.sep if hasattr(module, "__path__") else path
        if _by_place(path) is Origin.LIBRARY and prefix not in _claimed:
            _claimed.append(prefix)
            origins.clear()
        return


def origin_of_file(filename: str) -> Origin:
    origin = origins.get(filename)
    if origin is None:
        path = os.path.normcase(filename)
        if filename.startswith("<"):
            origin = Origin.LIBRARY if filename.startswith("<frozen") else Origin.GENERATED
        elif any(path.startswith(prefix) for prefix in _claimed):
            origin = Origin.USER
        else:
            origin = _by_place(path)
        origins[filename] = origin
    return origin


def _by_place(path: str) -> Origin:
    if path.startswith(_OURS):
        return Origin.OURS
    if path.startswith(_STDLIB) or not _LIBRARY_PARTS.isdisjoint(path.split(os.sep)):
        return Origin.LIBRARY
    return Origin.USER


def origin_of_module(name: str | None) -> Origin:
    if name == "__main__":
        return Origin.USER
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return origin_of_file(file) if isinstance(file, str) else Origin.GENERATED


def origin_of(code: CodeType, namespace: Mapping[str, object]) -> Origin:
    """Code without a file (a prompt, a notebook, a dataclass's `__init__`) belongs to the module it runs in."""
    origin = origin_of_file(code.co_filename)
    if origin is not Origin.GENERATED:
        return origin
    name = namespace.get("__name__")
    return origin_of_module(name) if isinstance(name, str) else Origin.GENERATED


class Site:
    """A frame of the user's that is to blame. `direct` if it made the forbidden call itself."""

    __slots__ = ("direct", "frame")

    def __init__(self, frame: FrameType, direct: bool) -> None:
        self.frame = frame
        self.direct = direct


def find_site(caller: FrameType, *, deep: bool = False) -> Site | None:
    """Who is to blame for a call made by `caller`; None if nobody is. `deep` looks through all libraries."""
    shown: FrameType | None = None
    blamed = False
    frame: FrameType | None = caller
    while frame is not None:
        origin = origin_of(frame.f_code, frame.f_globals)
        if origin is Origin.OURS:
            break  # beneath is the event loop; what it runs under is not the workflow's
        if frame.f_code.co_name == "__del__":
            return None  # the garbage collector may run anybody's finaliser in the middle of a turn
        if origin is Origin.USER:
            blamed = True
            if shown is None and not _is_synthetic(frame):
                shown = frame
        else:
            package = _package(frame)
            if package in _EXEMPT_PACKAGES:
                return None
            if not blamed and not deep and origin is Origin.LIBRARY and package not in _TRANSPARENT_PACKAGES:
                return None
        frame = frame.f_back
    return None if shown is None else Site(shown, direct=shown is caller)


def _is_synthetic(frame: FrameType) -> bool:
    """Generated for the user's class (`__init__` of a dataclass): to blame is the line that called it."""
    filename = frame.f_code.co_filename
    return (filename == "<string>" or filename.startswith("<attrs")) and "__file__" in frame.f_globals


def _package(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name.partition(".")[0] if isinstance(name, str) else ""


# --- words ------------------------------------------------------------------------------------------------------


def describe(rule: Rule, site: Site) -> str:
    code, line = site.frame.f_code, site.frame.f_lineno
    written = call_text(code, site.frame.f_lasti) or rule.name
    called = f"`{written}`"
    last = rule.name.rpartition(".")[2]
    if not site.direct and last not in written:
        called += f", and so {rule.name},"
    elif rule.name not in written:
        called += f" ({rule.name})"
    return (
        f"workflow code called {called} at {code.co_filename}:{line}, in {code.co_qualname}. "
        f"This {rule.why}. Use {rule.instead}. Nothing of this turn was written; the run waits, and goes on when the "
        f"code is changed. If what it returns cannot change what the workflow does, put it into a "
        f"`with workflow.unsafe():` block."
    )


def call_text(code: CodeType, offset: int) -> str | None:
    """The call at `offset` as it stands in the source, on one line; None where the source is not at hand."""
    line, end_line, column, end_column = next(islice(code.co_positions(), offset // 2, None), (None,) * 4)
    if line is None or end_line is None or column is None or end_column is None:
        return None
    import linecache

    lines = [linecache.getline(code.co_filename, number).encode() for number in range(line, end_line + 1)]
    if not all(lines):
        return None
    lines[-1] = lines[-1][:end_column]
    lines[0] = lines[0][column:]
    text = " ".join(part.decode(errors="replace").strip() for part in lines)
    return text if len(text) <= _CALL_TEXT_LIMIT else text[: _CALL_TEXT_LIMIT - 3] + "..."
