"""The names that were visible where a function was defined, besides those of its module.

An annotation may be a string (all are, under `from __future__ import annotations`), and name what only the function
or the class around knows. It is resolved when a worker starts; until then the names have to be kept.

Kept are the namespaces of classes, and of a function around them what can stand in an annotation: types and modules,
so that nobody's large objects live longer for it. A name may also be bound only after the decorator has run; only if
one is missing is the function's frame kept too, since a frame keeps all the frames that called it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType, FunctionType, GenericAlias, ModuleType, UnionType
from typing import Any

MAX_FRAMES = 20
"""How far up the stack the definition is looked for: decorators that call ours are never nested so deep."""

TYPING = (type, ModuleType, GenericAlias, UnionType)
"""With all that is of a class from `typing`, what can stand in an annotation."""


class Scope:
    __slots__ = ("_frame", "_spaces")

    def __init__(self, spaces: tuple[Mapping[str, Any], ...] = (), frame: FrameType | None = None) -> None:
        self._spaces = spaces
        """Innermost first."""
        self._frame = frame

    @classmethod
    def of(cls, fn: FunctionType) -> Scope:
        """Of a function whose definition is going on somewhere up the present stack."""
        innermost = inspect.unwrap(fn)
        assert isinstance(innermost, FunctionType)
        frame = _defining_frame(innermost.__code__)
        spaces: list[Mapping[str, Any]] = []
        while frame is not None and frame.f_code.co_name != "<module>":
            if frame.f_code.co_flags & inspect.CO_OPTIMIZED:
                # A function. What stands around it has passed its names on as cells, which are among its own.
                spaces.append(_types(frame.f_locals))
                known = {*innermost.__globals__, *vars(builtins), *(name for space in spaces for name in space)}
                return cls(tuple(spaces), None if known.issuperset(_named(innermost)) else frame)
            spaces.append(frame.f_locals)
            frame = frame.f_back
        return cls(tuple(spaces))

    def names(self) -> Mapping[str, Any]:
        frame = self._frame
        found = {} if frame is None else _types(frame.f_locals)
        for space in reversed(self._spaces):
            found.update(space)
        return found

    def settle(self) -> None:
        """What is not bound by now will never be: let the frame go."""
        if self._frame is not None:
            self._spaces = (self.names(),)
            self._frame = None


def _defining_frame(code: CodeType) -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    for _ in range(MAX_FRAMES):
        # A function's code is a constant of the code that defines it: no name could be as sure as that.
        if frame is None or any(constant is code for constant in frame.f_code.co_consts):
            return frame
        frame = frame.f_back
    return None


def _types(names: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in names.items()
        if issubclass(type(value), TYPING) or type(value).__module__ == "typing"
    }


def _named(fn: FunctionType) -> Iterator[str]:
    """Names in annotations that are strings, or hold some. Rather one too many than one too few."""
    for hint in annotations_of(fn).values():
        yield from _named_in(hint)


def annotations_of(fn: FunctionType) -> Mapping[str, Any]:
    """As they stand: what is a string, or cannot be evaluated yet, is not evaluated."""
    if sys.version_info >= (3, 14):
        import annotationlib  # new in 3.14, where annotations are evaluated when somebody asks for them

        return annotationlib.get_annotations(fn, format=annotationlib.Format.FORWARDREF)
    return fn.__annotations__


def _named_in(hint: Any) -> Iterator[str]:
    text = hint if isinstance(hint, str) else getattr(hint, "__forward_arg__", None)
    if isinstance(text, str):
        try:
            tree = ast.parse(text, mode="eval")
        except SyntaxError:
            return  # whoever resolves it will say so, with the name of the parameter
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != text:
                yield from _named_in(node.value)
    else:
        for inner in getattr(hint, "__args__", ()):
            yield from _named_in(inner)
