"""Type hints as objects: names resolved, and what no value could ever be read back for refused.

Hints may be text (`from __future__ import annotations`) that names classes of a function's body, or classes that come
later in the module. So they are resolved when a plan is first needed, with the module's names and those of the frame
that defined the function. A name that cannot be resolved is an error that says which: it is never taken for Any.
"""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, ForwardRef, TypeAlias, TypeVar

from outlast.model.errors import PayloadError

MISSING: Final = inspect.Parameter.empty
"""Stands for a hint that was not written."""

Names: TypeAlias = Mapping[str, Any]

_ONE_SHOT = (
    collections.abc.Iterable,
    collections.abc.Iterator,
    collections.abc.Generator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
)
_CODE: tuple[Any, ...] = (
    collections.abc.Callable,  # pyright: ignore[reportUnknownMemberType]
    collections.abc.Awaitable,
    collections.abc.Coroutine,
    type,
)


@dataclass(frozen=True, slots=True)
class Hints:
    signature: inspect.Signature
    """Names, kinds and defaults; without the hints, so that it reads well in error messages."""
    parameters: dict[str, Any]
    result: Any


def read_hints(
    fn: Callable[..., Any],
    *,
    name: str,
    skip_self: bool,
    localns: Names | None,
    takes: bool = True,
    returns: bool = True,
) -> Hints:
    """Raises PayloadError naming the parameter whose hint cannot be resolved.

    `takes`, `returns`: whether the hints of parameters, and that of the result, are wanted. What is not is MISSING.
    """
    written = {key: hint for key, hint in _annotations(fn).items() if (returns if key == "return" else takes)}
    scope = _Scope.of(fn, localns)
    signature = signature_of(fn, skip_self=skip_self)
    parameters = {
        each: scope.resolve(written[each], f"parameter {each!r} of {name}") if each in written else MISSING
        for each in signature.parameters
    }
    result = scope.resolve(written["return"], f"result of {name}") if "return" in written else MISSING
    return Hints(signature, parameters, result)


def signature_of(fn: Callable[..., Any], *, skip_self: bool) -> inspect.Signature:
    """Without the hints, none of which need be resolvable."""
    if sys.version_info >= (3, 14):
        import annotationlib

        whole = inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
    else:
        whole = inspect.signature(fn)
    parameters = [each.replace(annotation=MISSING) for each in whole.parameters.values()]
    return inspect.Signature(parameters[1:] if skip_self else parameters)


def _annotations(owner: Any) -> dict[str, Any]:
    """As written: text, ForwardRef, or the object."""
    inner = owner if isinstance(owner, type) else inspect.unwrap(owner)
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(inner, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(inner)


@dataclass(frozen=True, slots=True)
class _Scope:
    globalns: dict[str, Any]
    localns: dict[str, Any]

    @classmethod
    def of(cls, fn: Callable[..., Any], localns: Names | None) -> _Scope:
        inner = inspect.unwrap(fn)
        own = {each.__name__: each for each in getattr(inner, "__type_params__", ())}
        return cls(getattr(inner, "__globals__", {}), {**(localns or {}), **own})

    def resolve(self, written: Any, where: str) -> Any:
        def carrier() -> None: ...

        # typing.get_type_hints does the work for all nested forms; it wants an object that has annotations.
        carrier.__annotations__ = {"it": written}
        try:
            return typing.get_type_hints(carrier, self.globalns, self.localns, include_extras=True)["it"]
        except NameError as error:
            raise unresolved(where, error) from None
        except Exception as error:
            raise PayloadError(f"{where}: the type hint {written!r} cannot be read: {error}") from error


def unresolved(where: str, error: NameError) -> PayloadError:
    missing = error.name or str(error)
    return PayloadError(
        f"{where}: the type hint names {missing!r}, which is not defined where it is needed. Import it at the top of "
        "the module (not only under TYPE_CHECKING), or define it at module level."
    )


# --- hints that no value can be read back for ---------------------------------------------------------------------


def reject_impossible(hint: Any, where: str) -> None:
    """Raises PayloadError for hints that would be accepted and then not hold: what is not data, and type variables."""
    for part in _parts(hint):
        if isinstance(part, (str, ForwardRef)):
            raise PayloadError(f"{where}: the type hint {part!r} is text that was never resolved to a type.")
        origin = typing.get_origin(part) or part
        if isinstance(part, TypeVar) or type(part).__name__ in ("ParamSpec", "TypeVarTuple"):
            raise PayloadError(
                f"{where}: the type variable {part} stands for any type, so a value could not be read back as what it "
                "was. Write the concrete type."
            )
        if is_bare_generic(part):
            raise PayloadError(
                f"{where}: {part.__qualname__} is generic, and the hint does not say of what. Write "
                f"{part.__qualname__}[...] with the concrete type."
            )
        if origin in _ONE_SHOT:
            raise PayloadError(
                f"{where}: {hint_name(part)} can be read only once, and not from a history. Use list[...]."
            )
        if origin in _CODE or origin in (typing.Unpack, types.FunctionType):
            raise PayloadError(
                f"{where}: {hint_name(part)} cannot be recorded: a history holds data. Pass a value by which the code "
                "can choose, such as a name or an Enum."
            )


def is_bare_generic(cls: Any) -> bool:
    """A class of the user's with type parameters that were not given. (`list` alone means list[Any], and is fine.)"""
    return isinstance(cls, type) and bool(getattr(cls, "__parameters__", ())) and cls.__module__ != "typing"


def wants_pydantic(hint: Any) -> bool:
    """Whether it carries constraints that only pydantic enforces: Annotated[int, Field(gt=0)]."""
    return any(
        type(extra).__module__.partition(".")[0] in ("pydantic", "annotated_types")
        for part in _parts(hint)
        for extra in getattr(part, "__metadata__", ())
    )


def _parts(hint: Any) -> Iterator[Any]:
    """The hint and all hints inside it. The values of a Literal and the extras of an Annotated are no hints."""
    yield hint
    origin = typing.get_origin(hint)
    if origin is typing.Literal or origin in _CODE:
        return
    arguments = typing.get_args(hint)
    for argument in arguments[:1] if hasattr(hint, "__metadata__") else arguments:
        if argument is not Ellipsis and argument != ():
            yield from _parts(argument)


def hint_name(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) else str(hint)


# --- classes defined in a function --------------------------------------------------------------------------------


def settle_local_classes(hint: Any, localns: Names) -> None:
    """Resolve text in the fields' hints of classes, where only the defining frame knows the names.

    The readers of types look into a class's module only. So what `from __future__ import annotations` turned into
    text is turned back, in the class itself, to what the class statement meant. Only what can be resolved is touched.
    """
    seen: set[type] = set()
    waiting = [part for part in _parts(hint) if isinstance(part, type)]
    while waiting:
        cls = waiting.pop()
        if cls in seen or "<locals>" not in cls.__qualname__:
            continue
        seen.add(cls)
        fields = _annotations(cls)
        module = sys.modules.get(cls.__module__)
        scope = _Scope({} if module is None else vars(module), {**localns, cls.__name__: cls})
        settled = {name: _settled(scope, written) for name, written in fields.items()}
        if settled != fields:
            cls.__annotations__ = settled
        inner = (part for field in settled.values() for part in _parts(field))
        waiting += [part for part in (*inner, *cls.__bases__) if isinstance(part, type)]


def _settled(scope: _Scope, written: Any) -> Any:
    if not isinstance(written, (str, ForwardRef)):
        return written
    try:
        return scope.resolve(written, "field")
    except PayloadError:
        return written
