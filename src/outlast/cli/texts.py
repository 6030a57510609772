"""Recorded values as text for a terminal: on one line, not too long, and without control characters."""

from __future__ import annotations

import os
import re

import msgspec

from outlast.model.failures import Failure
from outlast.model.payloads import JSON, Payload

LINE_LIMIT = 160
"""Characters of a value or message that are shown: with the rest of its line, about two lines of a terminal."""

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (\S+)')


def one_line(text: str, limit: int = LINE_LIMIT) -> str:
    """The text on one line. Control characters are written out: what a workflow records must not steer a terminal."""
    line = " ".join(text[: 4 * limit].split())
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def payload_text(payload: Payload) -> str:
    if payload.encoding != JSON:
        return f"<{one_line(payload.encoding, 40)}, {len(payload.to_bytes())} bytes>"
    # Indent 0: on one line, with a space after each colon and comma.
    return one_line(msgspec.json.format(bytes(payload.data), indent=0).decode())


def error_text(error: str) -> str:
    """Why a turn failed, without the path of our own error classes."""
    return error.removeprefix("outlast.model.errors.")


def failure_text(failure: Failure) -> str:
    """As `ValueError: no such card`."""
    name = failure.type.rpartition(":")[2]
    return one_line(f"{name}: {failure.message}" if failure.message else name)


def failure_chain(failure: Failure | None) -> list[str]:
    """A failure and what caused it, a line each, with the place in the user's code where that is recorded."""
    lines: list[str] = []
    while failure is not None:
        prefix = "  caused by " if lines else ""
        lines.append(f"{prefix}{failure_text(failure)}{_place(failure)}")
        failure = failure.cause
    return lines


def _place(failure: Failure) -> str:
    frames = _FRAME.findall(failure.traceback)
    if not frames:
        return ""
    # Rather the user's line than that of a library which it called.
    path, line, function = next((frame for frame in reversed(frames) if not _is_library(frame[0])), frames[-1])
    return f" (at {one_line(path, 300)}:{line} in {one_line(function)})"


def _is_library(path: str) -> bool:
    return "site-packages" in path or path.startswith((os.path.dirname(os.__file__), "<frozen"))
