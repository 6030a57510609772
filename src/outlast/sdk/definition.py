"""What may be decorated, and what is said to whoever decorates anything else.

A name in a history must lead back to the same code in another process, years later; so what has no name that a
second process would find (a lambda, a function inside a function) is refused where it is decorated, and not when
a run is stuck. What can be seen only from the types (payloads) is checked later, when names can be resolved.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, cast

from outlast.model.errors import InvalidArgument
from outlast.sdk.scope import Scope, annotations_of


def code_of(fn: Callable[..., Any]) -> CodeType:
    """The user's own code, below whatever decorators have put around it."""
    innermost = inspect.unwrap(fn)
    code: CodeType = cast(FunctionType, innermost if isinstance(innermost, FunctionType) else fn).__code__
    return code


def where_of(code: CodeType) -> str:
    return f"{code.co_filename}:{code.co_firstlineno}"


def check_function(fn: object, decorator: str, *, named: bool) -> FunctionType:
    """`fn`, if it can be an activity or a workflow. Raises InvalidArgument with what to do instead.

    `named`: the user has chosen its name.
    """
    if not isinstance(fn, FunctionType):
        raise InvalidArgument(_why_no_function(fn, decorator))
    shown = _cannot_take(fn, decorator)
    if fn.__name__ == "<lambda>":
        raise InvalidArgument(
            f"{shown}: a lambda has no name that a history could hold, and no types for its arguments. Write a `def`."
        )
    check_shape(fn, shown, f"put {decorator} next to the function")
    if not named:
        check_name(fn.__qualname__, shown, decorator)
    return fn


def _cannot_take(fn: FunctionType, decorator: str) -> str:
    return f"{decorator} cannot take {fn.__qualname__} ({where_of(code_of(fn))})"


def check_shape(fn: FunctionType, shown: str, otherwise: str) -> None:
    """Raises InvalidArgument unless one call of it has one result, and it can be seen whether that is awaited.

    `otherwise`: what to do if a wrapper hides that.
    """
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidArgument(
            f"{shown}: it is a generator (it has a `yield`). One call has one result that is recorded: return a list, "
            "or make each step an activity of its own."
        )
    innermost = inspect.unwrap(fn)
    if not inspect.iscoroutinefunction(fn) and inspect.iscoroutinefunction(innermost):
        raise InvalidArgument(
            f"{shown}: a plain function is wrapped around an `async def`, so nobody can tell that its result is to be "
            f"awaited. Make the wrapper an `async def`, or {otherwise}."
        )
    _check_type_variables(fn, shown)


def check_name(qualname: str, shown: str, decorator: str) -> None:
    if "<locals>" in qualname:
        raise InvalidArgument(
            f"{shown}: it is defined inside a function, so no other process can find it by its name. Define it at the "
            f'top level of a module, or choose a name and answer for it yourself: {decorator}(name="...").'
        )


def _why_no_function(fn: object, decorator: str) -> str:
    match fn:
        case staticmethod():
            inner = "put @staticmethod above it, so that it is applied last"
            return f"{decorator} cannot take a staticmethod: {inner}."
        case classmethod():
            return (
                f"{decorator} cannot take a classmethod: a history cannot say which class it is called on. Make it a "
                f"static method (@staticmethod above {decorator}), or a method of an instance that the worker is given."
            )
        case functools.partial():
            return (
                f"{decorator} cannot take {fn!r}: a partial has no name that a history could hold. Write a `def` that "
                "makes the call."
            )
        case type():
            return (
                f"{decorator} cannot take the class {fn.__qualname__}. Decorate its methods, and give an instance to "
                "the worker."
            )
        case _ if hasattr(fn, "__outlast_kind__"):
            return f"{decorator} cannot take {fn!r}: it is decorated already. Use one of the decorators, once."
        case _ if inspect.ismethod(fn):
            return f"{decorator} cannot take the bound method {fn!r}. Decorate it in the class, where it is defined."
        case _:
            return f"{decorator} expects a function that is written with `def` or `async def`, not {fn!r}."


def _check_type_variables(fn: FunctionType, shown: str) -> None:
    """Annotations that are strings are looked at when they can be resolved, by the payload plans."""
    for name, hint in annotations_of(fn).items():
        variables = _type_variables(hint)
        if variables:
            what = "the type of the result" if name == "return" else f"the type of parameter {name!r}"
            raise InvalidArgument(_on_type_variables(shown, what, variables))
    parameters: tuple[object, ...] = getattr(fn, "__type_params__", ())
    if parameters:
        raise InvalidArgument(_on_type_variables(shown, "its signature", parameters))


def _on_type_variables(shown: str, what: str, variables: tuple[object, ...]) -> str:
    return (
        f"{shown}: {what} depends on a type variable ({', '.join(map(str, variables))}), so it is not known how to "
        "read the value back from the history. Use a concrete type, or a union of them."
    )


def _type_variables(hint: object) -> tuple[object, ...]:
    if isinstance(hint, TypeVar | ParamSpec | TypeVarTuple):
        return (hint,)
    # A generic class without brackets stands for itself with Any, and is judged by its payload plan.
    return () if isinstance(hint, type) else tuple(getattr(hint, "__parameters__", ()))


# --- classes ----------------------------------------------------------------------------------------------------------

RUN_MARK = "__outlast_run__"
"""Attribute of a function that was marked with @workflow.run: its Scope."""


def mark_run(fn: object) -> None:
    function = check_function(fn, "@workflow.run", named=True)
    setattr(function, RUN_MARK, Scope.of(function))


def has_run_method(cls: type) -> bool:
    return bool(_run_methods(cls))


def run_method(cls: type) -> FunctionType:
    """The method that is marked with @workflow.run. Raises InvalidArgument unless there is exactly one."""
    marked = _run_methods(cls)
    if len(marked) == 1:
        return marked[0]
    shown = f"@workflow cannot take the class {cls.__qualname__}"
    if marked:
        places = ", ".join(f"{fn.__name__} ({where_of(code_of(fn))})" for fn in marked)
        raise InvalidArgument(f"{shown}: more than one method is marked with @workflow.run: {places}. Mark one.")
    raise InvalidArgument(
        f"{shown}: no method is marked with @workflow.run. Mark the one that is the workflow's main function; a method "
        "that replaces a marked one of a base class is to be marked too."
    )


def _run_methods(cls: type) -> list[FunctionType]:
    found = effective(cls).values()
    return [value for value in found if isinstance(value, FunctionType) and hasattr(value, RUN_MARK)]


def effective(cls: type) -> dict[str, object]:
    """The attributes of instances of `cls`, unbound, by name: what a class overrides counts no more."""
    found: dict[str, object] = {}
    for base in cls.__mro__:
        for name, value in vars(base).items():
            found.setdefault(name, value)
    return found


def check_class(cls: type, *, named: bool) -> FunctionType:
    """The run method of a class that can be a workflow. Raises InvalidArgument with what to do instead."""
    method = run_method(cls)
    shown = f"@workflow cannot take the class {cls.__qualname__} ({where_of(code_of(method))})"
    if not named:
        check_name(cls.__qualname__, shown, "@workflow")
    if inspect.isabstract(cls):
        raise InvalidArgument(f"{shown}: it is abstract. Decorate the class that implements it.")
    required = _required_arguments(cls)
    if required:
        raise InvalidArgument(
            f"{shown}: __init__ requires {', '.join(required)}. The class is made anew on every replay, without "
            f"arguments: take them in {method.__name__}, or give them defaults."
        )
    return method


def _required_arguments(cls: type) -> list[str]:
    constructor = inspect.getattr_static(cls, "__init__")
    if not isinstance(constructor, FunctionType):
        return []
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in optional]
