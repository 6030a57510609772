"""Where an exception was raised, as text for people: bounded, and without the frames of this package."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Final

MAX_TRACEBACK: Final = 8_000
"""Characters: some 80 frames. The middle is left out, since both ends matter."""
_MAX_FRAMES: Final = 60
"""Frames that are looked up in source files. A runaway recursion has a thousand, nearly all the same."""
_MAX_LINE: Final = 300

_PACKAGE: Final = str(Path(__file__).resolve().parent.parent) + os.sep


def traceback_text(error: BaseException, last_line: str) -> str:
    """As Python prints it, ending with `last_line`. Causes are not in it: they are failures of their own.

    An exception that was raised by this package for its caller has no frame of its own to show, only the last line.
    """
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if not _is_ours(frame.f_code)]
    if not frames:
        return last_line[:_MAX_LINE]
    left_out = len(frames) - _MAX_FRAMES
    if left_out > 0:
        frames = frames[: _MAX_FRAMES // 2] + frames[-_MAX_FRAMES // 2 :]
    try:
        entries = traceback.StackSummary.extract(iter(frames), capture_locals=False).format()
    except Exception:  # a loader whose get_source() raises
        entries = [f'  File "{frame.f_code.co_filename}", line {line}\n' for frame, line in frames]
    if left_out > 0:
        # Equal lines of a recursion are folded into one, so the middle of the entries need not be the gap.
        entries.insert(len(entries) // 2, f"  [{left_out} frames left out here or nearby]\n")
    text = "Traceback (most recent call last):\n" + "".join(entries) + last_line[:_MAX_LINE]
    return shorten(text, MAX_TRACEBACK)


def shorten(text: str, limit: int) -> str:
    """At most about `limit` characters, without the middle; and nothing that cannot be written as UTF-8."""
    if len(text) > limit:
        head, tail = limit // 3, limit - limit // 3
        text = f"{text[:head]}\n... ({len(text) - limit:,} characters left out) ...\n{text[-tail:]}"
    return writable(text)


def writable(text: str) -> str:
    # Half of a surrogate pair: what `os.fsdecode` makes of foreign file names.
    return text.encode("utf-8", "backslashreplace").decode()


def _is_ours(code: object) -> bool:
    return str(getattr(code, "co_filename", "")).startswith(_PACKAGE)
