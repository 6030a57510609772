"""Fields whose default is a forbidden function that C code calls: `Field(default_factory=datetime.now)`.

Pydantic and msgspec make defaults in compiled code, where neither a patch nor watched calls see `datetime.now`. What
can be seen is the call of the class, and whether it gave the field a value. Where that is not known
(`Order(**values)`), the call is let through: it is more often a copy of a complete record than not.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from types import CodeType
from typing import Any, cast

from msgspec import Struct

from outlast.sdk.guard_reach import Reach, attribute_of
from outlast.sdk.guard_rules import Rule, When, forbidden


class _Default(Struct, frozen=True):
    names: frozenset[str]
    """The field's name and its aliases."""
    position: int
    rule: Rule


_defaults: dict[int, tuple[type, tuple[_Default, ...]]] = {}
"""By the id of the class, which is kept."""
initialisers: dict[int, CodeType] = {}
"""Code of `__init__` of pydantic's models, by id: what a profile hook sees of their construction."""


def note_fields(reach: Reach) -> None:
    for cls in reach.classes:
        if id(cls) not in _defaults:
            found = tuple(_pydantic(cls) or _msgspec(cls))
            if found:
                _defaults[id(cls)] = (cls, found)


def left_out(cls: type, given: Collection[str], positional: int) -> Rule | None:
    """The rule for a default that this construction will have made, if there is one."""
    for default in _defaults.get(id(cls), (cls, ()))[1]:
        if default.position >= positional and default.names.isdisjoint(given):
            return default.rule
    return None


def has_defaults(cls: type) -> bool:
    return id(cls) in _defaults


def keywords_of(code: CodeType, offset: int) -> tuple[str, ...] | None:
    """Names of the keyword arguments of the call at `offset`; None where that is not known."""
    from opcode import opname

    instructions = code.co_code
    name, before = opname[instructions[offset]], opname[instructions[offset - 2]]
    if name == "CALL_KW" or (name == "CALL" and before == "KW_NAMES"):
        names: object = code.co_consts[instructions[offset - 1]]
        known = before in ("KW_NAMES", "LOAD_CONST") and isinstance(names, tuple)
        return cast("tuple[str, ...]", names) if known else None
    return () if name == "CALL" else None


def _unseen(cls: type, field: str, factory: object) -> Rule | None:
    rule = forbidden.find(factory)
    if rule is None or rule.when is not When.ALWAYS or rule.hooked:
        return None
    why = f"fills the field `{field}` from {rule.name}, which {rule.why}"
    return Rule(rule.name, why, f"{cls.__name__}({field}=...) with {rule.instead}")


def _pydantic(cls: type) -> list[_Default]:
    fields = vars(cls).get("__pydantic_fields__", vars(cls).get("model_fields"))
    maker = next((vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)), None)
    if not isinstance(fields, Mapping) or not getattr(maker, "__module__", "").startswith("pydantic."):
        return []  # an `__init__` of the user's own may give the field a value
    found: list[_Default] = []
    for position, (name, field) in enumerate(cast("Mapping[str, object]", fields).items()):
        aliases = (attribute_of(field, "validation_alias"), attribute_of(field, "alias"), name)
        names = [each for each in aliases if isinstance(each, str)]
        rule = _unseen(cls, names[0], attribute_of(field, "default_factory"))
        if rule is not None:
            found.append(_Default(frozenset(names), position, rule))
    if found and isinstance(code := getattr(maker, "__code__", None), CodeType):
        initialisers[id(code)] = code
    return found


def _msgspec(cls: type) -> list[_Default]:
    base = getattr(sys.modules.get("msgspec"), "Struct", None)
    if base is None or not issubclass(cls, base):
        return []
    names: tuple[str, ...] = cast(Any, cls).__struct_fields__
    defaults: tuple[object, ...] = cast(Any, cls).__struct_defaults__
    first = len(names) - len(defaults)
    found = [
        _Default(frozenset({names[position]}), position, rule)
        for position, default in enumerate(defaults, first)
        if (rule := _unseen(cls, names[position], getattr(default, "factory", None))) is not None
    ]
    return found if "__init__" not in {name for each in cls.__mro__[:-2] for name in vars(each)} else []
