"""What can be a handler, and what is said to whoever takes anything else (see `messages`).

As with activities and workflows, what can be seen at the decoration is refused there; what hangs on types is found
when a worker is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from types import FunctionType, MethodType, NoneType
from typing import Any, Final, Literal, TypeAlias, cast

from outlast.model.errors import InvalidArgument
from outlast.sdk.definition import RUN_MARK, check_shape, code_of, where_of
from outlast.sdk.hints import signature_of
from outlast.sdk.scope import annotations_of

MessageKind: TypeAlias = Literal["signal", "query", "update"]

BY_POSITION: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


# --- methods of a class -----------------------------------------------------------------------------------------------


def check_method(fn: object, kind: MessageKind) -> FunctionType:
    """`fn`, if it can be decorated as a handler. Raises InvalidArgument with what to do instead."""
    decorator = f"@workflow.{kind}"
    if not isinstance(fn, FunctionType):
        raise InvalidArgument(f"{decorator} {_why_no_method(fn)}")
    shown = f"{decorator} cannot take {_described(fn)}"
    if fn.__name__ == "<lambda>":
        raise InvalidArgument(f"{shown}: a lambda has no name to be called by. Write a `def` in the workflow's class.")
    if hasattr(fn, RUN_MARK):
        raise InvalidArgument(
            f"{shown}: it is the run method, which is called once, by the start. Make the handler another method."
        )
    outer = fn.__qualname__.rpartition(".")[0]
    if not outer or outer.endswith("<locals>"):
        raise InvalidArgument(
            f"{shown}: it is not a method. Handlers are methods of a class that is decorated with @workflow; a "
            f"workflow that is a function calls `workflow.set_{kind}_handler(name, fn)`."
        )
    if fn.__name__.startswith("__") and fn.__name__.endswith("__"):
        raise InvalidArgument(
            f"{shown}: Python itself calls {fn.__name__}, for purposes of its own. Give the handler a name of its own."
        )
    _check_common(fn, kind, shown, f"put {decorator} next to the function")
    parameters = list(signature_of(fn, skip_self=False).parameters.values())
    if not parameters or parameters[0].kind not in (*BY_POSITION, Parameter.VAR_POSITIONAL):
        raise InvalidArgument(f"{shown}: it does not take `self`. A handler is called on the run's own instance.")
    return fn


def check_dynamic(fn: Callable[..., Any], verb: str, *, skip_self: bool) -> None:
    parameters = list(signature_of(fn, skip_self=skip_self).parameters.values())
    if len(parameters) != 2 or any(each.kind not in BY_POSITION for each in parameters):
        first = "self, " if skip_self else ""
        raise InvalidArgument(
            f"{verb} cannot take {_described(fn)}: a dynamic handler is called with the name and the arguments of the "
            "message: "
            f"`def {fn.__name__}({first}name: str, args: outlast.MessageArguments)`."
        )


def _why_no_method(fn: object) -> str:
    match fn:
        case staticmethod() | classmethod():
            what = type(cast(object, fn)).__name__
            return (
                f"cannot take a {what}: a message is for one run, and its handler a method of that run's instance. "
                f"Remove @{what}, and take `self`."
            )
        case type():
            return f"cannot take the class {fn.__qualname__}: a handler is one method. Put @workflow on the class."
        case _ if hasattr(fn, "__outlast_kind__"):
            hint = (
                "Let the handler call the activity: it runs elsewhere, the handler is a part of the run"
                if cast(Any, fn).__outlast_kind__ == "activity"
                else "One method takes one of these decorators, once; a second one can call it"
            )
            return f"cannot take {fn!r}: it is decorated already. {hint}."
        case _:
            return f"expects a method that is written with `def` or `async def`, not {fn!r}."


# --- validators -------------------------------------------------------------------------------------------------------


def check_validator(fn: object, update: Any) -> None:
    """`update`: the Update that it shall belong to."""
    decorator = f"@{update.fn.__name__}.validator"
    if not isinstance(fn, FunctionType):
        raise InvalidArgument(f"{decorator} expects a method that is written with `def`, not {fn!r}.")
    shown = f"{decorator} cannot take {_described(fn)}"
    if fn.__qualname__ == update.fn.__qualname__:
        raise InvalidArgument(
            f"{shown}: it has the name of the update itself ({update.where}), which it would replace in the class. "
            f"Call it `validate_{fn.__name__}`."
        )
    if fn.__qualname__.rpartition(".")[0] != update.fn.__qualname__.rpartition(".")[0]:
        raise InvalidArgument(
            f"{shown}: it is in another class than the update ({update.where}), where it would count too. Define the "
            "update again in this class, with a validator of its own."
        )
    if update.validator_fn is not None:
        raise InvalidArgument(
            f"{shown}: {update.title} has a validator already, {_described(update.validator_fn)}. Make one of the two."
        )
    _check_validator_shape(fn, update.fn, shown, skip_self=True)


def _check_validator_shape(
    fn: Callable[..., Any], update_fn: Callable[..., Any], shown: str, *, skip_self: bool
) -> None:
    if inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidArgument(
            f"{shown}: a validator is a plain `def` that decides at once. What has to wait belongs into the update."
        )
    wanted, has = signature_of(update_fn, skip_self=skip_self), signature_of(fn, skip_self=skip_self)
    if wanted != has:
        raise InvalidArgument(
            f"{shown}: it takes {has}, and the update {wanted} ({where_of(code_of(update_fn))}). It is called with the "
            "same arguments, so it takes the same parameters, with the same names and defaults."
        )
    result = annotations_of(cast(FunctionType, inspect.unwrap(getattr(fn, "__func__", fn)))).get("return")
    if result not in (None, NoneType, "None"):
        raise InvalidArgument(
            f"{shown}: it is annotated to return something, and a validator's result is not looked at. Raise an "
            "exception to refuse the update, and annotate it with `-> None`."
        )


# --- functions that a running workflow sets as handlers ---------------------------------------------------------------


def check_set(fn: object, kind: MessageKind, verb: str) -> FunctionType:
    """The function of `fn`, which may be a bound method, if it can be set as a handler."""
    inner = fn.__func__ if isinstance(fn, MethodType) else fn
    if not isinstance(inner, FunctionType):
        raise InvalidArgument(f"{verb} {_why_no_function(fn)}")
    shown = f"{verb} cannot take {_described(inner)}"
    if inner.__name__ == "<lambda>" and signature_of(inner, skip_self=False).parameters:
        raise InvalidArgument(f"{shown}: a lambda has no types for its arguments. Write a `def`.")
    _check_common(inner, kind, shown, "pass the function below it")
    return inner


def check_set_validator(fn: object, update_fn: Callable[..., Any], verb: str) -> None:
    inner = fn.__func__ if isinstance(fn, MethodType) else fn
    if not isinstance(inner, FunctionType):
        raise InvalidArgument(f"{verb}: the validator {_why_no_function(fn)}")
    shown = f"{verb} cannot take {_described(inner)} as the validator"
    _check_validator_shape(cast("Callable[..., Any]", fn), update_fn, shown, skip_self=False)


def _why_no_function(fn: object) -> str:
    if hasattr(fn, "__outlast_kind__"):
        return f"cannot take {fn!r}: it is decorated already. Write a `def` that calls it."
    return f"expects a function that is written with `def` or `async def`, not {fn!r}."


# --- both -------------------------------------------------------------------------------------------------------------


def _check_common(fn: FunctionType, kind: MessageKind, shown: str, otherwise: str) -> None:
    check_shape(fn, shown, otherwise)
    if kind == "query" and inspect.iscoroutinefunction(fn):
        raise InvalidArgument(
            f"{shown}: it is an `async def`. A query looks and answers at once: write `def`. What waits, or changes "
            "anything, is an update."
        )


def _described(fn: Callable[..., Any]) -> str:
    return f"{fn.__qualname__} ({where_of(code_of(fn))})"
