"""Payloads of calls: the arguments and the result of each function, driven by its type hints.

A `CallPlan` is made once per function, when it is first needed. The caller's side (`encode_arguments`) finds out
everything that can be wrong with a call before anything is recorded: a missing argument, a value that does not fit its
hint, a value that would come back as another. Arguments are kept by position and by name as they were given, and
defaults are left to the code that will run, so that a parameter with a default can be added while runs are open.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, unwrap
from typing import Any

from outlast.model.errors import InvalidArgument, PayloadError
from outlast.model.payloads import NO_ARGUMENTS, Arguments, Payload
from outlast.sdk.hints import MISSING, Names, read_hints
from outlast.sdk.plans import MAX_PAYLOAD_BYTES, Codec, Plan, make_plan

__all__ = ["MAX_PAYLOAD_BYTES", "CallPlan", "Codec", "Converter", "Plan", "UntypedResultWarning"]


class UntypedResultWarning(UserWarning):
    """A function has no result annotation, so its results must be plain JSON, and come back as plain JSON."""


class Converter:
    """Makes plans. `codec` is applied to every payload; `max_bytes` limits the JSON text of each."""

    def __init__(self, codec: Codec | None = None, *, max_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        if codec is not None and codec.name in ("", "json"):
            raise InvalidArgument(
                f"a codec cannot be named {codec.name!r}: the name tells its payloads from plain JSON. "
                'Give it a name of its own, such as "aes-gcm".'
            )
        self._codec = codec
        self._max_bytes = max_bytes

    def plan(self, type_: Any, where: str, *, root: str = "value", localns: Names | None = None) -> Plan:
        """`where` names the value in errors ("parameter 'order' of fulfil_order"), `root` begins paths ("order")."""
        return make_plan(type_, self._codec, self._max_bytes, where=where, root=root, localns=localns)


class CallPlan:
    """How one function's arguments and result are written and read."""

    def __init__(self, name: str, signature: Signature, parameters: Mapping[str, Plan], result: Plan) -> None:
        self._name = name
        self._signature = signature
        self._result = result
        kinds = {each: parameter.kind for each, parameter in signature.parameters.items()}
        by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        self._positional = tuple(parameters[each] for each, kind in kinds.items() if kind in by_position)
        self._named = {
            each: parameters[each]
            for each, kind in kinds.items()
            if kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        }
        self._more = next((parameters[each] for each, kind in kinds.items() if kind is Parameter.VAR_POSITIONAL), None)
        self._extra = next((parameters[each] for each, kind in kinds.items() if kind is Parameter.VAR_KEYWORD), None)
        self._names = tuple(each for each, kind in kinds.items() if kind in by_position)
        self._required = tuple(each for each in kinds if _is_required(signature.parameters[each]))
        # The commonest call gives every parameter by position: nothing to check, if this is how many there are.
        self._plain = -1 if set(self._required) - set(self._names) else len(self._names)

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        converter: Converter,
        *,
        name: str,
        skip_self: bool = False,
        localns: Names | None = None,
        takes: bool = True,
        returns: bool = True,
        warns: bool = True,
    ) -> CallPlan:
        """`takes`, `returns`: whether its arguments are recorded, and its result. If not, they may be anything.

        Raises PayloadError naming the parameter whose type cannot be recorded, and how to fix it.
        Unless told not to, warns UntypedResultWarning, at the function, if it has no result annotation.
        """
        hints = read_hints(fn, name=name, skip_self=skip_self, localns=localns, takes=takes, returns=returns)
        parameters = {
            each: converter.plan(hint, f"parameter {each!r} of {name}", root=each, localns=localns)
            for each, hint in hints.parameters.items()
        }
        result = hints.result if returns else type(None)
        if result is MISSING and warns:
            _warn_untyped(fn, name)
        result_plan = converter.plan(result, f"result of {name}", root="result", localns=localns)
        return cls(name, hints.signature, parameters, result_plan)

    # --- the caller's side ----------------------------------------------------------------------------------------

    def encode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Raises InvalidArgument if the function cannot be called so, PayloadError if a value does not fit."""
        return self._write_arguments(args, kwargs, from_json=False)

    def encode_json_arguments(self, values: Sequence[Any] | Mapping[str, Any]) -> Arguments:
        """Arguments that were given as JSON: an array by position, an object by name. Raises as `encode_arguments`."""
        if isinstance(values, Mapping):
            return self._write_arguments((), values, from_json=True)
        if isinstance(values, (str, bytes)):
            raise InvalidArgument(f"arguments of {self._name} are a JSON array (by position) or object (by name)")
        return self._write_arguments(values, {}, from_json=True)

    def _write_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, from_json: bool) -> Arguments:
        if (kwargs or len(args) != self._plain) and not self._fits(len(args), kwargs):
            self._bind(args, kwargs)
        if not args and not kwargs:
            return NO_ARGUMENTS
        plans = self._plans_by_position(len(args))
        if from_json:
            return Arguments(
                tuple([plan.from_json(value) for plan, value in zip(plans, args, strict=True)]),
                {key: self._plan_by_name(key).from_json(value) for key, value in kwargs.items()},
            )
        positional = tuple([plan.encode(value) for plan, value in zip(plans, args, strict=True)])
        if not kwargs:
            return Arguments(positional)
        return Arguments(positional, {key: self._plan_by_name(key).encode(value) for key, value in kwargs.items()})

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArgument(
                f"{self._name}{self._signature} cannot be called so: {error}. Nothing was recorded."
            ) from None

    def encode_result(self, value: Any) -> Payload:
        return self._result.encode(value)

    # --- where it runs --------------------------------------------------------------------------------------------

    def decode_arguments(self, arguments: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raises PayloadError if the function, as it is now, cannot take what was recorded."""
        args, kwargs = arguments.args, arguments.kwargs
        if (kwargs or len(args) != self._plain) and not self._fits(len(args), kwargs):
            self._check_recorded(arguments)
        plans = self._plans_by_position(len(args))
        positional = tuple([plan.decode(payload) for plan, payload in zip(plans, args, strict=True)])
        if not kwargs:
            return positional, {}
        return positional, {key: self._plan_by_name(key).decode(payload) for key, payload in kwargs.items()}

    def _check_recorded(self, arguments: Arguments) -> None:
        try:
            self._signature.bind(*arguments.args, **arguments.kwargs)
        except TypeError as error:
            raise PayloadError(
                f"{self._name}{self._signature} cannot take the arguments that were sent or recorded: {error}. If its "
                "parameters have changed since, give new ones a default, and keep old ones while runs use them."
            ) from None

    def decode_result(self, payload: Payload) -> Any:
        return self._result.decode(payload)

    # --- both -----------------------------------------------------------------------------------------------------

    def _fits(self, count: int, kwargs: Mapping[str, Any]) -> bool:
        """Whether it is a plain call, without a doubt. What is not may still be good; `Signature.bind` knows, and
        says what is wrong, but takes five times as long as all the rest."""
        taken = self._names[:count]
        if count > len(self._names):
            return False
        for name in kwargs:
            if name not in self._named or name in taken:
                return False
        return all(name in taken or name in kwargs for name in self._required)

    def _plans_by_position(self, count: int) -> tuple[Plan, ...]:
        named = self._positional
        if count == len(named):
            return named
        if count < len(named) or self._more is None:
            return named[:count]
        return named + (self._more,) * (count - len(named))

    def _plan_by_name(self, name: str) -> Plan:
        plan = self._named.get(name, self._extra)
        assert plan is not None, f"{name!r} was bound, so it has a plan"
        return plan


def _is_required(parameter: Parameter) -> bool:
    many = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return parameter.default is MISSING and not many


def _warn_untyped(fn: Callable[..., Any], name: str) -> None:
    inner = unwrap(fn)
    code = getattr(inner, "__code__", None)
    space: dict[str, Any] = getattr(inner, "__globals__", {})
    # At the function's own line, since whoever happens to need the plan first is not at fault.
    warnings.warn_explicit(
        f"{name} has no result annotation: its result must be plain JSON, and comes back as plain JSON. "
        "Annotate it (`-> None` if it returns nothing).",
        UntypedResultWarning,
        code.co_filename if code else "<unknown>",
        code.co_firstlineno if code else 1,
        module=inner.__module__,
        registry=space.setdefault("__warningregistry__", {}),  # as `warnings.warn` does: once, not for every run
    )
