"""Plays the part of the worker for tests of the guard: modules of user code, and turns around calls into them."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from outlast.model.errors import DeterminismViolation
from outlast.sdk import guard

_names = (f"guarded_{number}" for number in itertools.count())


def module(directory: Path, source: str, name: str | None = None) -> ModuleType:
    """User code in a file of its own, imported."""
    name = name or next(_names)
    path = directory / f"{name}.py"
    path.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


@dataclass(frozen=True, slots=True)
class Turn:
    value: Any
    raised: DeterminismViolation | None
    """What came out of the user's code."""
    violation: DeterminismViolation | None
    """What the end of the turn said."""


def turn(function: Callable[..., Any], *args: Any, live: bool = True, prepare: object = None) -> Turn:
    """Registers the workflow and runs it in one turn, a coroutine up to its end."""
    guard.install()
    closely = guard.prepare(prepare or function, "workflow")  # type: ignore[arg-type]
    value, raised = None, None
    guard.begin_turn(live, closely)
    try:
        value = finished(function(*args))
    except DeterminismViolation as violation:
        raised = violation
    finally:
        violation = guard.end_turn()
    return Turn(value, raised, violation)


def finished(value: Any) -> Any:
    if not inspect.iscoroutine(value):
        return value
    try:
        value.send(None)
    except StopIteration as stop:
        return stop.value
    value.close()
    raise AssertionError("the coroutine waits for something, which no test here makes it do")
