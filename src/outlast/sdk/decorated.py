"""What every function has in common that one of our decorators has taken.

It keeps the looks of the function (name, docstring, whatever others have written on it), the place of its definition,
and the plan of its payloads, which is made when all names in its type hints can be resolved, and not before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

from outlast.sdk.converter import CallPlan, Converter
from outlast.sdk.definition import code_of, where_of
from outlast.sdk.scope import Scope

DEFAULT_CONVERTER = Converter()


class Decorated:
    def __init__(self, fn: Callable[..., Any], scope: Scope, *, name: str, aliases: tuple[str, ...]) -> None:
        functools.update_wrapper(cast(Any, self), fn, updated=())
        # What others have written on the function is to be found here too, as long as it hides nothing of ours.
        self.__dict__.update({key: value for key, value in vars(fn).items() if not hasattr(type(self), key)})
        self.fn: Callable[..., Any] = fn
        """The plain function; for what is bound to an instance, the bound method."""
        self.name: str = name
        """The name in the history."""
        self.aliases = aliases
        self.is_async = inspect.iscoroutinefunction(fn)
        self.where = where_of(code_of(fn))
        """File and line of the definition."""
        self._scope = scope

    @cached_property
    def plan(self) -> CallPlan:
        """How its arguments and its result are written and read. Made at first use, when all names can be resolved.

        Raises what `CallPlan.of` raises: the parameter whose type cannot be read back, and why.
        """
        plan = self.plan_with(DEFAULT_CONVERTER)
        self._scope.settle()
        return plan

    def plan_with(self, converter: Converter) -> CallPlan:
        """The same by another converter. Not kept."""
        raise NotImplementedError

    @property
    def localns(self) -> Mapping[str, Any]:
        """Names that were visible at the definition, besides those of the module."""
        return self._scope.names()
